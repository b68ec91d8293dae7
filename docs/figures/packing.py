"""Draws how the planner packs the prompts of a call: `packing.svg`.

    python docs/figures/packing.py

Prompts, lengths and what they share are the engine's own: the published template, the vocabulary of
Qwen3, `pyrerank.engine.planner.plan` and `pyrerank.engine.batch.pack`.
"""

import sys
import tempfile
from pathlib import Path

from tokenizers import Tokenizer

from pyrerank.engine.batch import pack
from pyrerank.engine.planner import Pass, plan
from pyrerank.prompts.encoder import PairEncoder
from pyrerank.prompts.items import Prompt

FOLDER = Path(__file__).parent
sys.path.append(str(FOLDER.parents[1] / "examples"))
import qwen_vocab  # noqa: E402
from drawing import DARK, LIGHT, OTHER, OURS, frame, line, picture, rect, text  # noqa: E402

TOKEN_BUDGET = 160  # small, so that there are two passes
WIDTH, LEFT = 760, 96
SCALE = (WIDTH - LEFT - 24) / TOKEN_BUDGET
COLOURS = (OURS, OTHER)  # of a pass
SHADES = (DARK, LIGHT)
CALL = {
    "What is the capital of China?": (
        "Beijing is the capital of China.",
        "Beijing, the seat of the government, has more than twenty million inhabitants.",
        "Gravity attracts bodies with mass.",
    ),
    "Why is the sky blue?": (
        "Air scatters blue light more than red light, so the sky looks blue by day.",
        "At sunset the light goes a longer way through the air, and what is left of it is red.",
        "The sea is blue because water absorbs red light.",
    ),
}


def encode(tokenizer: Tokenizer) -> list[Prompt]:
    encoder = PairEncoder(tokenizer, "qwen3")
    pairs = [(query, document) for query, documents in CALL.items() for document in documents]
    return encoder.encode([encoder.pair("document", *pair) for pair in pairs])


def draw(prompts: list[Prompt]) -> str:
    passes = list(plan([prompts], TOKEN_BUDGET, share=True))
    whole = sum(len(prompt.ids) for prompt in prompts)
    computed = sum(planned.computed for planned in passes)
    parts = [
        text(
            0, 14, f"{len(prompts)} prompts have {whole} tokens; {computed} of them are computed."
        ),
        text(0, 30, "Empty: shared with the prompt above, whose keys and values are attended to."),
    ]
    y = 42
    for planned, colour in zip(passes, COLOURS, strict=True):
        for n, (member, prompt, skip) in enumerate(
            zip(planned.members, planned.prompts, planned.shared, strict=True)
        ):
            parts += _prompt(member, len(prompt.ids), skip, y, colour, SHADES[n % 2])
            y += 24
    for n, (planned, colour) in enumerate(zip(passes, COLOURS, strict=True)):
        parts += _pass(n, planned, y + 24, colour)
        y += 84
    return picture(WIDTH, y + 4, "How prompts are packed into passes", parts)


def _prompt(member: int, length: int, skip: int, y: int, colour: str, shade: str) -> list[str]:
    end = LEFT + SCALE * length
    return [
        text(0, y + 14, f"prompt {member}"),
        frame(LEFT, y, SCALE * skip, 20),
        text(LEFT + SCALE * skip - 6, y + 14, f"{skip} shared" if skip else "", "end"),
        rect(LEFT + SCALE * skip, y, SCALE * (length - skip), 20, colour, shade),
        text(end + 6, y + 14, f"{length - skip} computed"),
    ]


def _pass(n: int, planned: Pass, y: int, colour: str) -> list[str]:
    batch = pack(planned.ids, planned.spans, planned.shared)
    starts = batch.cu_seqlens.tolist()
    parts = [
        text(0, y + 14, f"pass {n}"),
        text(0, y + 36, "cu_seqlens"),
        text(0, y + 52, "keys of each"),
    ]
    each = zip(planned.members, starts, starts[1:], strict=False)
    for i, (member, start, end) in enumerate(each):
        middle = LEFT + SCALE * (start + end) / 2
        parts += [
            text(middle, y - 5, f"prompt {member}", "middle"),
            rect(LEFT + SCALE * start, y, SCALE * (end - start), 20, colour, SHADES[i % 2]),
            text(middle, y + 52, batch.kv_lengths[i], "middle"),
        ]
    for start in starts:
        x = LEFT + SCALE * start
        parts += [line(x, y, x, y + 24), text(x, y + 36, start, "middle")]
    return parts


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        qwen_vocab.write(Path(folder))
        tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    (FOLDER / "packing.svg").write_text(draw(encode(tokenizer)))
