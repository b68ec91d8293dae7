"""The demonstration model ranks well, end to end, and `pyrerank demo` shows it.

Quality is measured on articles, and on pairs of colour and form, that the model was not trained on.
A wrong position, mask or resize shows as lost quality.
"""

import base64
import io
import json
import random
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import PIL.Image
import published
import pytest
from published import Published

from pyrerank import Reranker, rank
from pyrerank.cli.main import main
from pyrerank.demo import ranking as demo
from pyrerank.weights.find import DEMO

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "train"))
from data import HELD_OUT, Corpus, Task, picture_task  # noqa: E402
from train_demo import reciprocal_ranks  # noqa: E402

XQUAD = ROOT / "tests/data/xquad"


@pytest.fixture(scope="module")
def engine() -> Reranker:
    return Reranker("demo", device="cpu")


def questions(language: str, count: int) -> list[Task]:
    """Questions, each with the passage that answers it and nine others, shortened."""
    corpus = Corpus(XQUAD / language, language, held_out=True)
    rng = random.Random(0)
    return [corpus.task(q, 10, rng) for q in rng.sample(corpus.questions, count)]


def pictures(count: int, seed: int = 0) -> list[Task]:
    """Phrases, each with one picture of eight that it fits."""
    rng = random.Random(seed)
    return [picture_task(rng, 8, held_out=True) for _ in range(count)]


# ---- quality ------------------------------------------------------------------------------------


def test_the_articles_of_the_tests_were_held_out():
    for language in ("en", "zh"):
        lines = (XQUAD / language / "corpus.jsonl").read_text("utf-8").splitlines()
        assert {json.loads(line)["_id"].split("_")[0] for line in lines} <= HELD_OUT


@pytest.mark.parametrize(("language", "count", "least"), [("en", 100, 0.93), ("zh", 30, 0.93)])
def test_mean_reciprocal_rank_of_texts(engine, language, count, least):
    ranks = reciprocal_ranks(engine, questions(language, count))
    assert sum(ranks) / len(ranks) >= least


def test_first_pictures(engine):
    ranks = reciprocal_ranks(engine, pictures(150))
    assert sum(rank == 1 for rank in ranks) / len(ranks) >= 0.95


@pytest.mark.parametrize(
    ("query", "first", "second"),
    [
        ("an automobile in a town", "A car drives through the city.", "A ship leaves the harbour."),
        ("红色圆形", "a red circle", "a blue square"),
        ("three black cats", "三只黑猫", "两只黑狗"),
    ],
)
def test_some_words_of_one_meaning_are_one(query, first, second):
    for documents in ([first, second], [second, first]):
        assert rank(query, documents, model="demo")[0].document == first


@pytest.fixture(scope="module")
def transformers():
    """transformers' model of the same checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        settings = json.loads((DEMO / "config.json").read_text())
        patch.setattr(published, "IMAGE_PAD", settings["image_token_id"])
        patch.setattr(published, "VIDEO_PAD", settings["video_token_id"])
        yield Published(DEMO)


@pytest.mark.parametrize("kind", ["en", "zh", "pictures"])
def test_scores_and_rankings_are_those_of_transformers(transformers, kind):
    engine = Reranker("demo", dtype="float32", device="cpu")
    for task in pictures(4, seed=1) if kind == "pictures" else questions(kind, 4):
        expected = [
            transformers.score(
                task.query, [document["image"]] if isinstance(document, dict) else document
            )
            for document in task.documents
        ]
        scores = engine.score(task.query, task.documents)
        assert scores == pytest.approx(expected, abs=1e-5)
        order = sorted(range(len(scores)), key=scores.__getitem__)
        assert all(expected[i] <= expected[j] + 1e-5 for i, j in pairwise(order))  # but for ties


# ---- what ships ---------------------------------------------------------------------------------


def test_weights_fit_the_wheel():
    assert sum(file.stat().st_size for file in DEMO.iterdir()) <= 8_000_000


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    with pytest.raises(ValueError, match=r"config\.json"):
        Reranker("demo")


class Page(HTMLParser):
    """What a page shows, in order: texts of headings and of rows, pictures, addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.shown: list[str] = []
        self.pictures: list[bytes] = []
        self.addresses: list[str] = []
        self._in = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self._in = tag
        for name, value in attributes:
            if name in ("src", "href", "action", "data"):
                self.addresses.append(value)
            if tag == "img" and name == "src":
                self.pictures.append(base64.b64decode(value.removeprefix("data:image/png;base64,")))
                self.shown.append(value)

    def handle_data(self, data):
        if self._in == "span":
            self.shown.append(data)

    def handle_endtag(self, tag):
        self._in = ""


def test_the_page_shows_what_is_printed(tmp_path, capsys):
    file = tmp_path / "page.html"
    assert main(["demo", "--html", str(file)]) == 0
    printed = capsys.readouterr().out
    page = Page(file.read_text("utf-8"))
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    for picture in page.pictures:
        PIL.Image.open(io.BytesIO(picture)).load()

    wanted = []
    for ranking in demo.rankings("cpu"):
        for content in (ranking.query, *(ranking.documents[i] for i, _ in ranking.scores)):
            if isinstance(content, dict):
                data = (demo.FOLDER / content["image"]).read_bytes()
                content = f"data:image/png;base64,{base64.b64encode(data).decode()}"
            wanted.append(content)
        assert f"{ranking.scores[0][1]:.6f}  [{ranking.scores[0][0]}]" in printed
    assert page.shown == wanted


def test_the_page_shows_markup_as_text():
    ranking = demo.Ranking("a <b>", ["</ol><script>"], [(0, 0.5)])
    page = demo.page([ranking])
    assert "<script" not in page
    assert Page(page).shown == ["a <b>", "</ol><script>"]


def test_every_query_has_the_answer_one_would_expect():
    """The first of each, by its words."""
    firsts = [ranking.documents[ranking.scores[0][0]] for ranking in demo.rankings("cpu")]
    assert firsts == [
        "The ferry leaves the harbour at eight and takes forty minutes to the island.",
        "世界上最高的山是珠穆朗玛峰，高八千八百多米。",
        {"image": "pictures/three-red-circles.png"},
        {"image": "pictures/green-star-left.png"},
        "The bank is open from nine to five.",
    ]
