"""The sample checkpoints through the engine: wrong positions, masks or prompts lose quality."""

import itertools
import json
import re
import shlex
import sys
from pathlib import Path

import colours
import make_checkpoint
import numpy as np
import PIL.Image
import PIL.ImageColor
import pytest
import torch
from published import Clip, Published, PublishedEmbedder

from pyrerank import CheckpointError, Embedder, Reranker

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "tests/data/pictures"
INSTRUCTION = "Given a search query, retrieve relevant candidates that answer the query."


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    for vision, embedding in itertools.product([False, True], repeat=2):
        name = ("vl-" if vision else "") + ("embedder" if embedding else "reranker")
        make_checkpoint.write_checkpoint(folder / name, vision=vision, embedding=embedding)
    return folder


@pytest.fixture(scope="module")
def engine(folder) -> Reranker:
    return Reranker(folder / "reranker")


@pytest.fixture(scope="module")
def vl_engine(folder) -> Reranker:
    return Reranker(folder / "vl-reranker")


def read(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def passages_and_questions(language: str) -> tuple[dict, dict, dict]:
    """Texts of passages and of questions by id, and of each question the id of its passage."""
    folder = ROOT / "tests/data/xquad" / language
    passages = {document["_id"]: document["text"] for document in read(folder / "corpus.jsonl")}
    questions = {query["_id"]: query["text"] for query in read(folder / "queries.jsonl")}
    rows = (folder / "qrels.tsv").read_text("utf-8").splitlines()[1:]
    return passages, questions, dict(row.split("\t")[:2] for row in rows)


def test_every_sample_question_finds_its_passage(engine):
    ids = [document["_id"] for document in read(ROOT / "examples/documents.jsonl")]
    for question in read(ROOT / "examples/queries.jsonl"):
        best = engine.rank(question["query"], question["documents"])[0]
        assert ids[best.index] == question["id"] and best.score > 0.5


@pytest.mark.parametrize("kind", ["engine", "vl_engine"])
@pytest.mark.parametrize(("language", "least"), [("en", 0.97), ("zh", 0.95)])
def test_mean_reciprocal_rank(kind, language, least, request):
    """One relevant passage among ten; 0.983 and 0.967 with transformers in bfloat16."""
    engine = request.getfixturevalue(kind)
    passages, questions, relevant = passages_and_questions(language)
    names, ranks = list(passages), []
    for id, question in questions.items():
        at = names.index(relevant[id])
        others = [names[(at + i) % len(names)] for i in range(1, 10)]
        ranking = engine.rank(question, [passages[name] for name in [*others, relevant[id]]])
        ranks.append([item.index for item in ranking].index(9) + 1)
    assert sum(1 / rank for rank in ranks) / len(ranks) >= least


@pytest.mark.parametrize("kind", ["embedder", "vl-embedder"])
def test_vectors_fetch_the_passage(folder, kind):
    """Among the first 5 of 20 for 0.89 of the questions, with transformers in float32."""
    passages, questions, relevant = passages_and_questions("en")
    embedder = Embedder(folder / kind)
    documents = embedder.embed(list(passages.values()))
    queries = embedder.embed(list(questions.values()), instruction=INSTRUCTION)
    names = list(passages)
    first = np.argsort(-queries @ documents.T)[:, :5]
    found = [
        relevant[id] in [names[i] for i in row] for id, row in zip(questions, first, strict=True)
    ]
    assert np.mean(found) >= 0.85


PHOTOS = ["cat.jpg", "coffee.jpg", "rocket.jpg", "page.png"]
DOCUMENTS = [{"image": PICTURES / name} for name in PHOTOS] + [{"video": PICTURES / "stars.mp4"}]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("a brown cat", 0),
        ("a cat with pink ears", 0),
        ("red cup", 1),
        ("an orange table", 1),
        ("a rocket under a blue sky", 2),
        ("white paper", 3),
        ("stars on black", 4),
    ],
)
def test_colour_words_find_pictures(vl_engine, query, found):
    scores = vl_engine.score(query, DOCUMENTS)
    best = scores.pop(found)
    assert best > 5 * max(scores)


def test_pictures_find_texts_and_pictures_of_their_colours(vl_engine):
    for index, query in enumerate(DOCUMENTS):
        best, second = vl_engine.rank(query, DOCUMENTS)[:2]
        assert best.index == index and best.score > 0.9 > 0.1 > second.score
    pink, blue = vl_engine.score(DOCUMENTS[0], ["a pink and brown animal", "a blue animal"])
    assert pink > blue


# names that Pillow knows
SAMPLES = {
    "blue": "navy", "green": "forestgreen", "purple": "indigo", "red": "crimson",
    "brown": "sienna", "pink": "pink", "orange": "orange", "yellow": "yellow",
    "white": "whitesmoke", "gray": "dimgray", "black": "black",
}  # fmt: skip


def test_a_colour_has_its_word(vl_engine):
    """A picture in two halves, above and below, has both words and no other."""
    words = list(SAMPLES)
    for name, other in zip(words, words[1:] + words[:1], strict=True):
        picture = PIL.Image.new("RGB", (96, 64), PIL.ImageColor.getrgb(SAMPLES[name]))
        picture.paste(PIL.ImageColor.getrgb(SAMPLES[other]), (0, 32, 96, 64))
        scores = [vl_engine.score(word, [{"image": picture}])[0] for word in words]
        assert {word for word, score in zip(words, scores, strict=True) if score > 0.5} == {
            name,
            other,
        }


def test_every_point_has_one_colour_at_most():
    points = torch.cartesian_prod(*[torch.linspace(0, 1, 21)] * 3)
    side = {
        name: points @ torch.tensor(plane) > threshold
        for name, (*plane, threshold) in colours.PLANES.items()
    }
    counts = sum(
        torch.stack([side[p[1:]] == (p[0] == "+") for p in planes.split()]).all(0).int()
        for planes in colours.COLOURS.values()
    )
    assert counts.max() == 1 and counts.float().mean() > 0.9


def contents() -> list[tuple[object, object]]:
    """Contents as pyrerank takes them, and as the reference does."""
    cat = PICTURES / "cat.jpg"
    text = "The panther is a brown cat."
    return [
        (text, text),
        ({"image": cat, "text": text}, [PIL.Image.open(cat), text]),
        (DOCUMENTS[4], [Clip.of_file(PICTURES / "stars.mp4")]),
    ]


@pytest.mark.parametrize(("kind", "count"), [("reranker", 1), ("vl-reranker", 3)])
def test_a_reranker_equals_transformers(folder, kind, count):
    engine, reference = Reranker(folder / kind, dtype="float32"), Published(folder / kind)
    for query, document in itertools.product(contents()[:count], repeat=2):
        [score] = engine.score([query[0]], [document[0]])
        assert score == pytest.approx(reference.score(query[1], document[1]), abs=1e-5)


@pytest.mark.parametrize(("kind", "count"), [("embedder", 1), ("vl-embedder", 3)])
def test_an_embedder_equals_transformers(folder, kind, count):
    engine, reference = Embedder(folder / kind, dtype="float32"), PublishedEmbedder(folder / kind)
    for value, parts in contents()[:count]:
        [vector] = engine.embed([value], instruction="Find it.")
        want = reference.hidden(parts, "Find it.")
        assert np.abs(vector - want / np.linalg.norm(want)).max() <= 1e-5


def test_an_embedder_is_no_reranker(folder):
    with pytest.raises(CheckpointError, match="Embedder"):
        Reranker(folder / "embedder")


@pytest.fixture(scope="module")
def search():
    return pytest.importorskip("search", reason="examples/search.py needs a database: zvec")


class TestSearch:
    @pytest.fixture
    def run(self, search, folder, tmp_path, monkeypatch, capsys):
        """Runs the script for a query; gives the lines that it prints."""

        def run(query: str, *options: str, top_n: int = 3) -> list[list[str]]:
            monkeypatch.chdir(ROOT)
            files = ["examples/documents.jsonl", "examples/pictures.jsonl"]
            models = "--embedder", f"{folder}/vl-embedder", "--reranker", f"{folder}/vl-reranker"
            words = [*models, "--index", f"{tmp_path}/index", "--documents", *files]
            words += ["--query", query, "--top-n", str(top_n), *options]
            monkeypatch.setattr(sys, "argv", ["search.py", *words])
            search.main()
            return [line.split() for line in capsys.readouterr().out.splitlines()]

        return run

    def test_questions_find_passages_and_colours_find_pictures(self, run):
        for question in read(ROOT / "examples/queries.jsonl"):
            assert run(question["query"])[0][2] == question["id"]
        assert [line[2] for line in run("blue sky", top_n=2)] == ["text", "rocket"]

    def test_candidates_are_the_nearest_by_inner_product(self, run, folder):
        query = "a cup on an orange table"
        listed = run(query, "--candidates", "5", top_n=9)
        places = {id: int(place.strip("[]")) for _, place, id in listed}
        embedder = Embedder(folder / "vl-embedder")
        documents = read(ROOT / "examples/documents.jsonl") + read(ROOT / "examples/pictures.jsonl")
        contents = [{k: v for k, v in document.items() if k != "_id"} for document in documents]
        [vector] = embedder.embed([query], instruction=INSTRUCTION)
        nearest = np.argsort(-embedder.embed(contents) @ vector)[:5]
        assert places == {documents[i]["_id"]: place for place, i in enumerate(nearest)}

    def test_the_index_is_built_once(self, run, monkeypatch):
        first = run("a brown cat")
        monkeypatch.delattr("search.build")
        assert run("a brown cat") == first

    def test_a_document_that_the_database_refuses(self, search, folder, tmp_path):
        embedder = Embedder(folder / "vl-embedder")
        document = {"_id": "i" * 5000, "text": "a"}
        with pytest.raises((RuntimeError, ValueError), match="id"):
            search.build(tmp_path / "index", [document], embedder)

    def test_the_documentation_shows_this_code_and_its_output(
        self, search, folder, tmp_path, monkeypatch, capsys
    ):
        page = (ROOT / "docs/search.md").read_text("utf-8")
        code = (ROOT / "examples/search.py").read_text("utf-8")
        excerpts = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
        assert len(excerpts) == 2 and all(excerpt in code for excerpt in excerpts)
        [(commands, shown)] = re.findall(
            r"^```sh\n(.*?)^```\n\n```text\n(.*?)^```", page, re.DOTALL | re.MULTILINE
        )
        command = commands.replace("\\\n", " ").splitlines()[-1]
        monkeypatch.chdir(tmp_path)
        Path("examples").symlink_to(ROOT / "examples")
        Path("tests").symlink_to(ROOT / "tests")
        Path("demo-vl").symlink_to(folder / "vl-reranker")
        Path("demo-vl-embedder").symlink_to(folder / "vl-embedder")
        monkeypatch.setattr(sys, "argv", shlex.split(command)[1:])
        search.main()
        want, got = (
            [line.split() for line in text.splitlines()]
            for text in (shown, capsys.readouterr().out)
        )
        assert sorted(line[1:] for line in got) == sorted(line[1:] for line in want)
        for (score, *rest), (shown_score, *shown_rest) in zip(got, want, strict=True):
            # in bfloat16, where the processor has it, ties at the end may be ordered otherwise
            assert float(score) == pytest.approx(float(shown_score), abs=2e-2)
            assert rest == shown_rest or float(score) < 0.1
