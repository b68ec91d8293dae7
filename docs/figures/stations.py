"""Draws the stations between a call and its scores, and what passes between them: `stations.svg`.

    python docs/figures/stations.py

Names and files are those of the functions and classes that are listed here.  Numbers are those of
one request, which the demonstration model scores on the CPU.
"""

import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import pyrerank
from pyrerank.devices.select import KINDS
from pyrerank.embedder import EmbeddingTask
from pyrerank.engine.batch import pack
from pyrerank.engine.core import Core
from pyrerank.engine.failures import Failures
from pyrerank.engine.features import Features
from pyrerank.engine.graphs import Graphs
from pyrerank.engine.planner import plan
from pyrerank.engine.prefix import Prefix
from pyrerank.kernels.calls import score_head as call_of_score_head
from pyrerank.kernels.ops import score_head
from pyrerank.media.fetch import Fetcher
from pyrerank.media.images import read_image
from pyrerank.media.reader import Reader
from pyrerank.media.sources import open_source
from pyrerank.media.video import read_video
from pyrerank.model.decoder import Decoder
from pyrerank.model.heads import ScoreHead
from pyrerank.model.linear import Linear
from pyrerank.model.vision import VisionTower
from pyrerank.prompts.encoder import Encoder, PairEncoder
from pyrerank.prompts.templates import Template
from pyrerank.prompts.tokens import PlainText
from pyrerank.prompts.truncation import truncate
from pyrerank.prompts.unformat import unformat_pair
from pyrerank.reranker import ScoringTask
from pyrerank.weights.chat import Chat
from pyrerank.weights.checkpoint import Checkpoint
from pyrerank.weights.find import find_folder
from pyrerank.weights.modules import Modules
from pyrerank.weights.tensors import TensorFile

FOLDER = Path(__file__).parent
SOURCE = Path(pyrerank.__file__).parent
sys.path.append(str(FOLDER))
from drawing import OTHER, OURS, arrow, frame, picture, rect, text  # noqa: E402

QUERY = "What is the capital of China?"
DOCUMENTS = ("Beijing is the capital of China.", "Gravity attracts bodies.")
WIDTH, STATION, HELPER = 760, 420, 300  # of the picture, a station, and what helps one
HEIGHT, GAP = 46, 34  # of a box, and between stations
BETWEEN = 8  # helpers of a station
TINT = "0.13"  # opacity
BOLD = 'font-weight="bold"'


@dataclass(frozen=True)
class Box:
    """What does a part of the work.

    Attributes:
        code: the functions and classes, whose files the box shows.
        does: what they do, in lines.
        colour: OURS on the host, OTHER on the device.
    """

    code: Sequence[Any]
    does: Sequence[str]
    colour: str = OURS

    @property
    def files(self) -> str:
        """The files of the code; a folder is said once for those that follow each other in it."""
        paths = [Path(inspect.getfile(code)).relative_to(SOURCE) for code in self.code]
        names = [
            path.name if n and path.parent == paths[n - 1].parent else path.as_posix()
            for n, path in enumerate(paths)
        ]
        return ", ".join(dict.fromkeys(names))

    def draw(self, x: float, y: float, width: float, height: float) -> list[str]:
        return [
            rect(x, y, width, height, self.colour, TINT),
            frame(x, y, width, height),
            text(x + 8, y + 18, self.files, style=BOLD),
            *(text(x + 8, y + 36 + 18 * n, words) for n, words in enumerate(self.does)),
        ]


DRIVER = Box([Core, Failures], ["drive the stations from Encoder.encode on, and say what failed."])


@dataclass(frozen=True)
class Station:
    """A box on the way from a call to its scores.

    Attributes:
        box: itself.
        gives, here: the name of what it gives to the next one, and what that is in this request.
        helpers: boxes beside it, which give it something.
    """

    box: Box
    gives: str
    here: str
    helpers: Sequence[Box] = ()


@torch.inference_mode()
def stations() -> list[Station]:
    """The way of one request, which is walked."""
    core = pyrerank.Reranker("demo", device="cpu", dtype="float32").core
    pairs = [core.encoder.pair("document", QUERY, document) for document in DOCUMENTS]
    prompts = core.encoder.encode(pairs)
    [planned] = plan([prompts], core.token_budget, share=True)
    batch = pack(planned.ids, planned.spans, planned.shared)
    hidden = core.model.decoder(batch, core.attend, core.model.no_prefix(), prune=True)
    rows = core.model.head(hidden, batch.cu_seqlens, core.model.decoder.norm)
    scores = [core.task.result(p, row, "pair") for p, row in zip(prompts, rows, strict=True)]
    lengths = " and ".join(str(len(prompt.ids)) for prompt in prompts)
    return [
        Station(
            Box([Reader, read_image, read_video], ["Reader.read: takes text, images and videos"]),
            "Content",
            "the text of the query, and of each document",
            [Box([open_source, Fetcher], ["the bytes of files and URLs"])],
        ),
        Station(
            Box(
                [PairEncoder.pair, unformat_pair],
                ["PairEncoder.pair: validates, and undoes a caller's template"],
            ),
            "Pair",
            f"{len(pairs)} of them: instruction, query, document",
        ),
        Station(
            Box(
                [Encoder.encode, Template, PlainText, truncate],
                ["Encoder.encode: words the prompt, makes tokens, truncates"],
            ),
            "Prompt",
            f"{len(prompts)} of them: {lengths} token ids",
            [
                Box([find_folder, Checkpoint], ["the folder, and its tokenizer"]),
                Box([Modules, Chat], ["its default prompt, chat template, limits"]),
            ],
        ),
        Station(
            Box([plan], ["plan: which prompts go together, and what each shares"]),
            "Pass",
            f"both prompts, of which the second shares {planned.shared[1]} tokens",
        ),
        Station(
            Box([pack], ["pack: tensors of the tokens that are computed"]),
            "Batch",
            f"{batch.tokens} tokens: ids, positions, where sequences start",
            [Box([Features, VisionTower], ["features of the pictures of a pass"], OTHER)],
        ),
        Station(
            Box(
                [Decoder, Linear],
                [
                    "Decoder: embeds the tokens. Then each layer",
                    "normalises, attends, normalises, multiplies (MLP);",
                    "the last layer does so for last tokens alone.",
                    "Linear: a matrix of a layer; its weights have a scheme.",
                ],
                OTHER,
            ),
            "hidden states",
            f"{_shape(hidden)}, of each prompt's last token",
            [
                Box([TensorFile], ["weights, used where their files lie"]),
                Box(KINDS, ["the arithmetic of each device"], OTHER),
                Box([Prefix], ["keys and values that the last pass left"], OTHER),
                Box([Graphs], ["on an NPU: replays decoder and head"], OTHER),
            ],
        ),
        Station(
            Box(
                [ScoreHead],
                [
                    "ScoreHead: final norm, product with one vector, sigmoid.",
                    "PoolHead, of an embedder: final norm, pooling, layers.",
                ],
                OTHER,
            ),
            "rows",
            f"{_shape(rows)}, score and logit of each prompt",
            [Box([score_head, call_of_score_head], ["one kernel for all of it"], OTHER)],
        ),
        Station(
            Box(
                [ScoringTask, EmbeddingTask],
                ["ScoringTask.result: makes a result of a row"],
            ),
            "Score",
            " and ".join(f"{score.score:.2f}" for score in scores),
        ),
    ]


def _shape(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def draw(way: Sequence[Station]) -> str:
    parts = [
        text(0, 14, "Blue works on the host, orange on the device."),
        text(0, 32, f"{DRIVER.files} {' '.join(DRIVER.does)}"),
        text(40, 64, "contents", style=BOLD),
        text(150, 64, f"a query and {len(DOCUMENTS)} documents, as the caller gives them"),
    ]
    y = 42.0
    for station in way:
        parts.append(arrow(20, y, 20, y + GAP))
        y += GAP
        count = max(1, len(station.helpers))
        beside = count * HEIGHT + (count - 1) * BETWEEN
        height = max(beside, HEIGHT + 18 * (len(station.box.does) - 1))
        parts += station.box.draw(1, y, STATION, height)
        for n, helper in enumerate(station.helpers):
            top = y + n * (HEIGHT + BETWEEN)
            parts += helper.draw(WIDTH - HELPER - 1, top, HELPER, HEIGHT)
            parts.append(arrow(WIDTH - HELPER - 1, top + HEIGHT / 2, STATION + 1, top + HEIGHT / 2))
        y += height
        parts += [text(40, y + 22, station.gives, style=BOLD), text(150, y + 22, station.here)]
    parts.append(arrow(20, y, 20, y + GAP))
    return picture(WIDTH, int(y + GAP + 4), "The stations from a call to its scores", parts)


if __name__ == "__main__":
    (FOLDER / "stations.svg").write_text(draw(stations()))
