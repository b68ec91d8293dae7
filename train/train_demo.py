"""Makes the demonstration model that ships as ``model="demo"``: see pyrerank/demo/README.md.

    python train/train_demo.py --xquad DIR --wordnet DIR --output DIR

The decoder compares words and is set by hand, as examples/make_checkpoint.py explains; how much
each word tells is counted in text. The vision tower is trained, in transformers: it is to write, in
the first squares of a picture, the words for what it sees. To the decoder a picture is then a text.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from pyrerank import Reranker
from pyrerank.media.reader import Content
from pyrerank.model.patches import patches
from pyrerank.prompts.templates import TEMPLATES, Wording

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import make_checkpoint
import words
from colours import Steps
from data import Corpus, Task, picture_task, running_text
from pictures import COLOURS, KINDS, NUMBERS, SHAPES, SHIPPED, SIDES, WORDS, draw, scene
from tokenizer import train_tokenizer, write_tokenizer

VOCABULARY = 16000
WIDTH, DEPTH = 96, 4
NAMES = [*COLOURS, *SHAPES, *WORDS, *SIDES, *(name for name, _ in NUMBERS)]
# DeepStack, after the second block, says only the colour of the first square.
DEEPSTACK = "deepstack_merger_list.0"
SAID_BY = [(DEEPSTACK, name) for name in COLOURS] + [("merger", name) for name in NAMES]
PICTURES = 48  # of each step
SQUARE = 32 * 32  # pixels


def prompt_text() -> str:
    """A text with all words of the prompt."""
    template, null = TEMPLATES["qwen3-vl"], Content(text="NULL")
    wording = Wording().parts(template.parts, None, dict.fromkeys(("query", "document"), null))
    return "".join(wording.texts) + template.default_instruction + " yes no"


def config(tokenizer: Tokenizer) -> dict[str, object]:
    """config.json, in the published layout."""
    id = tokenizer.token_to_id
    config = make_checkpoint.config("bfloat16", vision=True, embedding=False)
    for name in ("image", "video", "vision_start", "vision_end"):
        token = f"<|{name}_pad|>" if name in ("image", "video") else f"<|{name}|>"
        config[f"{name}_token_id"] = id(token)
    config["text_config"] |= {
        "bos_token_id": id("<|endoftext|>"),
        "eos_token_id": id("<|im_end|>"),
        "rope_theta": 5e6,  # as published; it is good for short texts, and shows wrong positions
        "vocab_size": tokenizer.get_vocab_size(),
    }
    config["vision_config"] = vision_config()
    config["pyrerank_task"] = "score"  # it was trained for nothing else
    return config


def vision_config() -> dict[str, object]:
    return {
        "deepstack_visual_indexes": [1],
        "depth": DEPTH,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": WIDTH,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 240,
        "model_type": "qwen3_vl",
        "num_heads": WIDTH // 32,
        "num_position_embeddings": 64,
        "out_hidden_size": make_checkpoint.HIDDEN,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }


class Tower:
    """The vision tower of transformers, and what it says of pictures."""

    def __init__(self) -> None:
        self.model = Qwen3VLVisionModel(Qwen3VLVisionConfig(**vision_config()))
        for module in self.model.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.weight.shape[1] ** -0.5)
        nn.init.normal_(self.model.patch_embed.proj.weight, std=1536**-0.5)
        nn.init.normal_(self.model.pos_embed.weight, std=0.5)
        embed = self.model.patch_embed  # is computed as a product, which is faster than conv3d
        embed.forward = lambda x: F.linear(x, embed.proj.weight.flatten(1), embed.proj.bias)
        self._seen: dict[str, Tensor] = {}
        for owner in (DEEPSTACK, "merger"):
            self.model.get_submodule(f"{owner}.linear_fc1").register_forward_hook(
                lambda module, inputs, output, owner=owner: self._seen.update({owner: output})
            )

    def __call__(self, frames: list[np.ndarray]) -> Tensor:
        """The logit of each name in each square of each picture, float32 [squares, SAID_BY]."""
        grids = torch.tensor([(1, f.shape[1] // 16, f.shape[2] // 16) for f in frames])
        self.model(patches(frames, torch.float32), grids)
        deep, last = self._seen[DEEPSTACK], self._seen["merger"]
        return torch.cat([deep[:, : len(COLOURS)], last[:, : len(NAMES)]], 1)

    def tensors(self, table: Tensor, ids: dict[str, int]) -> dict[str, Tensor]:
        """The trained tower, with mergers that write rows of the decoder's ``table``.

        A name that is said becomes the embedding of its word. Its weight is the median of all
        names, so that a square that says two names weighs no more than others. The neurons of a
        merger come in pairs, each of which makes a step between the logits -1/4 and 1/4.
        """
        tensors = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        rows = {name: table[ids[f"\u0120{name}"]].clone() for name in NAMES}
        silent = table[ids["<|image_pad|>"]].clone()
        silent[: make_checkpoint.CODE] = 0.0  # so that a name that is half said is still that name
        weight = torch.stack([row[make_checkpoint.WEIGHT] for row in rows.values()]).median()
        for row in (silent, *rows.values()):
            row[make_checkpoint.WEIGHT] = weight
        silent[make_checkpoint.FOUND] = -make_checkpoint.SMALL  # asks for nothing in a query
        for owner, names in [(DEEPSTACK, list(COLOURS)), ("merger", NAMES)]:
            trained, bias = (tensors[f"{owner}.linear_fc1.{part}"] for part in ("weight", "bias"))
            logits = [(trained[n].clone(), bias[n].item()) for n in range(len(names))]
            for layer in ("linear_fc1", "linear_fc2"):
                tensors[f"{owner}.{layer}.weight"].zero_()
                tensors[f"{owner}.{layer}.bias"].zero_()
            steps = Steps(tensors, owner)
            for name, (where, offset) in zip(names, logits, strict=True):
                steps.add(where, -offset, 0.5, rows[name] - silent)
        tensors["merger.linear_fc2.bias"] += silent
        return tensors


def batch(rng: random.Random) -> tuple[list[np.ndarray], Tensor, Tensor]:
    """Draws pictures to learn from.

    The things of every other picture have any colour, which does not count.  Otherwise the tower
    would not know a shape in a colour in which it never saw it.

    Returns:
        The pictures; what their squares say, float32 [squares, SAID_BY], as 0 or 1; and 1 in the
        same shape where that counts.
    """
    frames, said, counts = [], [], []
    while len(frames) < PICTURES:
        drawn = scene(rng, rng.choices(KINDS, [2, 1, 2, 1])[0])  # the hard kinds come more often
        if drawn.held_out():
            continue
        any_colour = rng.random() < 0.5
        frames.append(np.asarray(draw(drawn, rng, any_colour))[None])
        squares = torch.zeros(frames[-1].shape[1] * frames[-1].shape[2] // SQUARE, len(SAID_BY))
        for square, name in enumerate(drawn.said()):
            if name:
                squares[square, SAID_BY.index(("merger" if square else DEEPSTACK, name))] = 1.0
        said.append(squares)
        counts.append(torch.ones_like(squares))
        if any_colour:
            counts[-1][:, [name in COLOURS for _, name in SAID_BY]] = 0.0
    return frames, torch.cat(said), torch.cat(counts)


def train(tower: Tower, steps: int) -> None:
    optimizer = torch.optim.AdamW(tower.model.parameters(), betas=(0.9, 0.98), weight_decay=0.02)
    began = time.monotonic()
    for step in range(steps):
        rate = 1.5e-3 * min(1, (step + 1) / 100) * (1 - step / steps)
        optimizer.param_groups[0]["lr"] = rate
        frames, said, counts = batch(random.Random(step))
        soft = 0.98 * said + 0.01  # keeps logits near the steps of the mergers
        logits = tower(frames)
        losses = F.binary_cross_entropy_with_logits(logits, soft, counts, reduction="none")
        loss = losses.sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(tower.model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            right = (
                ((logits > 0) == (said > 0))
                .logical_or(counts == 0)
                .all(1)
                .split([frame.shape[1] * frame.shape[2] // SQUARE for frame in frames])
            )
            share = sum(bool(picture.all()) for picture in right) / len(right)
            seconds = time.monotonic() - began
            print(f"{step}: {seconds:.0f} s, loss {loss.item():.3f}, {share:.0%} right", flush=True)


def make(arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    folder = arguments.output / "model"
    running = running_text(arguments.xquad, arguments.wordnet)
    named = [prompt_text()] * 5000 + [f" {' '.join(words.SAME)}"] * 1000  # each becomes a token
    tokenizer = train_tokenizer([*running, *named], VOCABULARY)
    write_tokenizer(tokenizer, folder)
    (folder / "config.json").write_text(json.dumps(config(tokenizer), indent=2) + "\n")
    table = words.embeddings(tokenizer, running)
    tensors = make_checkpoint.decoder_tensors(table, "model.language_model.", embedding=False)
    tower = Tower()
    train(tower, arguments.steps)
    for name, tensor in tower.tensors(table, tokenizer.get_vocab()).items():
        tensors["model.visual." + name] = tensor
    stored = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in tensors.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    print(f"{sum(tensor.numel() for tensor in stored.values()):,} parameters")
    (arguments.output / "pictures").mkdir(exist_ok=True)
    for name, shipped in SHIPPED.items():
        draw(shipped, random.Random(name)).save(arguments.output / f"pictures/{name}.png")


def reciprocal_ranks(engine: Reranker, tasks: Iterable[Task]) -> list[float]:
    """For each task, 1 over the rank of the first document; equal scores rank before it."""
    found = []
    for task in tasks:
        first, *others = engine.score(task.query, task.documents)
        found.append(1 / (1 + sum(score >= first for score in others)))
    return found


def evaluate(folder: Path, xquad: Path) -> dict[str, float]:
    """Measures quality on what is held out, through pyrerank: the MRR of one passage among 10, and
    the accuracy of one picture among 8."""
    engine = Reranker(folder, device="cpu")
    result = {}
    for language in ("en", "zh"):
        corpus = Corpus(xquad / language, language, held_out=True)
        for whole in (False, True):
            rng = random.Random(0)
            tasks = [corpus.task(question, 10, rng, whole) for question in corpus.questions]
            ranks = reciprocal_ranks(engine, tasks)
            name = f"MRR {language}, {'whole' if whole else 'shortened'} passages"
            result[name] = sum(ranks) / len(ranks)
    rng = random.Random(0)
    ranks = reciprocal_ranks(engine, (picture_task(rng, 8, held_out=True) for _ in range(500)))
    result["accuracy, pictures"] = sum(rank == 1 for rank in ranks) / len(ranks)
    return {name: round(value, 3) for name, value in result.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the demonstration model.")
    parser.add_argument("--xquad", type=Path, required=True, help="has en/ and zh/")
    parser.add_argument("--wordnet", type=Path, required=True, help="WordNet's data.* files")
    parser.add_argument("--output", type=Path, required=True, help="gets model/ and pictures/")
    parser.add_argument("--steps", type=int, default=9000, help="of the vision tower's training")
    arguments = parser.parse_args()
    make(arguments)
    print(json.dumps(evaluate(arguments.output / "model", arguments.xquad), indent=2))


if __name__ == "__main__":
    main()
