"""Measures how far bfloat16 moves scores of pyrerank and of transformers from those in float32.

    python bench/rounding.py --json bench/results/rounding-cpu.json

Each case is a kind of checkpoint with a number of layers. For every seed there is a checkpoint with
random weights, stored in bfloat16, whose scores spread over 0.05 to 0.95, as the tests make it
(tests/support/checkpoints.py). All score the same pairs, transformers one at a time. The script
needs `pip install '.[test]'`.

The reference takes the decoder's last hidden state from transformers in float32, and the rows "yes"
and "no" from the checkpoint. In bfloat16, their product is computed in float32 as well. So the last
step, which transformers would round once more, is exact for both that are compared.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "tests/support"), str(ROOT / "examples")]

from checkpoints import NO, YES, write_random  # noqa: E402
from published import Content, Published  # noqa: E402

from pyrerank import Reranker  # noqa: E402
from pyrerank.bench import machine  # noqa: E402

FAMILIES = ("qwen3-reranker", "qwen3-vl-reranker")
PICTURES = ("cat.jpg", "coffee.jpg", "rocket.jpg")
TEXTS = ("queries", "corpus")
Pair = tuple[str, Content]


def pairs(family: str) -> list[Pair]:
    """Questions with passages, in English and Chinese; for VL models also with pictures."""
    found: list[Pair] = []
    for language in ("en", "zh"):
        queries, passages = (
            [json.loads(line)["text"] for line in file.read_text("utf-8").splitlines()]
            for file in (ROOT / "tests/data/xquad" / language / f"{n}.jsonl" for n in TEXTS)
        )
        documents: list[Content] = [*passages[:6]]
        if family == "qwen3-vl-reranker":
            documents = [*passages[:3], *([picture(name), "?"] for name in PICTURES)]
        found += itertools.product(queries[:4], documents)
    return found


def picture(name: str) -> PIL.Image.Image:
    image = PIL.Image.open(ROOT / "tests/data/pictures" / name).convert("RGB")
    return image.resize((192, 160))


def by_transformers(folder: Path, scored: Sequence[Pair], dtype: torch.dtype) -> torch.Tensor:
    published = Published(folder)
    head = published.model.get_output_embeddings().weight.detach()
    w = head[YES] - head[NO]  # in float32
    body = published.model.model.to(dtype)
    with torch.inference_mode():
        hidden = [
            body(**published.prompt(query, document).inputs()).last_hidden_state[0, -1].float()
            for query, document in scored
        ]
    return torch.stack(hidden).mv(w).sigmoid()


def by_pyrerank(folder: Path, scored: Sequence[Pair]) -> torch.Tensor:
    engine = Reranker(folder, device="cpu", dtype="bfloat16")
    queries, documents = zip(*scored, strict=True)
    contents = [
        document if isinstance(document, str) else {"image": document[0], "text": document[1]}
        for document in documents
    ]
    return torch.tensor(engine.score([*queries], contents, progress=False))


def errors(family: str, layers: int, seed: int) -> dict[str, torch.Tensor]:
    """The distance of a checkpoint's scores in bfloat16 from those in float32."""
    scored = pairs(family)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_random(
            folder, family, tied=True, dtype=torch.bfloat16, seed=seed, num_hidden_layers=layers
        )
        exact = by_transformers(folder, scored, torch.float32)
        rounded = {
            "pyrerank": by_pyrerank(folder, scored),
            "transformers": by_transformers(folder, scored, torch.bfloat16),
        }
    return {name: (scores - exact).abs() for name, scores in rounded.items()}


def figures(error: torch.Tensor) -> dict[str, float]:
    quantiles = {"median": 0.5, "90%": 0.9, "99%": 0.99, "largest": 1.0}
    found = {name: torch.quantile(error, share).item() for name, share in quantiles.items()}
    return {"mean": error.mean().item(), **found}


def measure(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for family, layers in itertools.product(arguments.families, arguments.layers):
        each = [errors(family, layers, seed) for seed in range(arguments.seeds)]
        for name in each[0]:
            error = torch.cat([one[name] for one in each])
            row = {"family": family, "layers": layers, "pairs": len(error), "engine": name}
            yield row | figures(error)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=FAMILIES)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 28])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    arguments = parser.parse_args()
    print("| family | layers | pairs | engine | mean | median | 90% | 99% | largest |")
    print("|---|---|---|---|---|---|---|---|---|")
    rows = []
    for row in measure(arguments):
        rows.append(row)
        cells = (f"{cell:.1e}" if isinstance(cell, float) else str(cell) for cell in row.values())
        print(f"| {' | '.join(cells)} |", flush=True)
    if arguments.json:
        report = {"machine": machine.describe(torch.device("cpu")), "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
