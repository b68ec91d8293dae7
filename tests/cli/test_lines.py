"""A bad line never stops the others, whatever it holds: hostile lines stand among good ones."""

import base64
import io
import json
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from checkpoints import write_random
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pyrerank import DeviceError, Embedder, Media, OutOfMemory, Reranker
from pyrerank.cli.jsonl import EmbedTask, ScoreTask, process
from pyrerank.cli.main import main
from pyrerank.cli.outputs import JsonLines, NpyRows
from pyrerank.engine.core import Core

pytestmark = pytest.mark.slow

PICTURES = Path(__file__).parents[1] / "data/pictures"
QUERY = "capital of China?"
NAN = "北"  # a character whose tokens the checkpoint has spoilt


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """With NaN in the embedding of one token."""
    folder = tmp_path_factory.mktemp("lines-model")
    write_random(folder, "qwen3-vl-reranker", tied=True, seed=4)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(NAN).ids
    tensors["model.language_model.embed_tokens.weight"][ids] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def score(model) -> ScoreTask:
    return ScoreTask(Reranker(model, dtype="float32"), Media(), QUERY)


@pytest.fixture(scope="module")
def rank(score) -> ScoreTask:
    return ScoreTask(score.engine, Media(), QUERY, ranked=True)


@pytest.fixture(scope="module")
def embed(model) -> EmbedTask:
    return EmbedTask(Embedder(model, dtype="float32"), Media())


def line(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def png(size: tuple[int, int] = (64, 64)) -> str:
    file = io.BytesIO()
    PIL.Image.new("1", size).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


GOOD = {
    "score": [line(document="Beijing"), line(query="q", documents=["a", {"image": png()}])],
    "rank": [line(documents=["Beijing", "", "c"]), line(id=2, documents=[{"image": png()}, "b"])],
    "embed": [line(text="Beijing"), line(image=png(), id="é")],
}

TEXTS = st.text(st.characters(exclude_categories=()), max_size=6)  # lone surrogates, too
NAMES = "text image video type image_url video_url url detail id query document documents images"
KEYS = TEXTS | st.sampled_from([*NAMES.split(), "instruction", "Text"])
TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXTS
    | st.sampled_from([10**4299, -(10**4000), NAN, "\ud800", png(), png()[:-9], "data:;base64,%"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)
PARTS = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "image_url", "image", "video"]) | TREES},
        optional={"text": TREES, "image": TREES, "image_url": st.dictionaries(KEYS, TREES)},
    ),
    max_size=2,
)
CONTENTS = TREES | PARTS
OBJECTS = st.fixed_dictionaries(
    {},
    optional={
        "query": CONTENTS,
        "document": CONTENTS,
        "documents": st.lists(CONTENTS, max_size=3) | CONTENTS,
        "instruction": TREES,
        "id": TREES,
        "text": TREES,
        "image": TREES,
        "video": TREES,
    },
)
HOSTILE = st.binary(max_size=20).map(lambda raw: raw.replace(b"\n", b"\r")) | OBJECTS.map(
    lambda value: json.dumps(value).encode()
)
DETAIL = [{"type": "image_url", "image_url": {"url": png(), "detail": "\ud800"}}]
KNOWN = [
    line(documents=[DETAIL, "a"]),  # what is echoed, and is not Unicode
    line(document=[{"type": "image", "image": "data:\ud800;base64,"}]),
    line(document={"image": "http://\ud800.test/"}),
    line(document={"image": "\ud800.jpg"}, documents=1),
    line(documents=["a"], id="\ud800"),
    line(text="\ud800", image="\x00"),
    line(document=NAN, id="nan"),
    line(documents=["a", NAN]),
    line(text=NAN),
    line(image=png((20000, 20000))),  # a bomb
    line(image=png((1, 4000))),
    line(video="data:video/mp4;base64,AAAA"),
    line(id=float("nan"), text="a"),
    b'{"id": 1e999, "document": "a"}',
    b'{"id": ' + b"9" * 5000 + b', "text": "a"}',
    b'{"document": "a", "document": "b"}',
    b'{"text": "a", "x": {"y": 1, "y": 2}}',
    b'{"document": [{"type": ' + b"[" * 900 + b"]" * 900 + b"}]}",
    b'{"id": ' + b"[" * 10**5,
    b"\xef\xbb\xbf",
    b"\xef\xbb\xbf{}\r",
    b"\x00",
    b"\xff\xfe{\x00}\x00",
    b'{"document": "' + b"\xed\xa0\x80" + b'"}',
    b"NaN",
    b"null",
    b"{}",
]


def strict(raw: bytes) -> list[dict]:
    """The records of an output, which is JSON in valid Unicode."""

    def constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    lines = raw.decode().split("\n")[:-1]
    found = [json.loads(each, parse_constant=constant) for each in lines]
    for record in found:
        json.dumps(record, ensure_ascii=False).encode()
    return found


def worked(task: ScoreTask | EmbedTask, lines: list[bytes]) -> tuple[list[dict], int]:
    out = io.BytesIO()
    done = process(task, [each + b"\n" for each in lines], JsonLines(out), progress=False)
    return strict(out.getvalue()), done.errors


def without_line(record: dict) -> dict:
    return {key: value for key, value in record.items() if key != "line"}


@pytest.mark.parametrize("kind", ["score", "rank", "embed"])
@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(hostile=st.lists(HOSTILE, min_size=1, max_size=8))
@example(hostile=KNOWN)
def test_hostile_lines_among_good_ones(kind, request, hostile):
    task = request.getfixturevalue(kind)
    good = GOOD[kind]
    lines = [*good]
    for n, each in enumerate(hostile):
        lines += [each, good[n % len(good)]]
    records, errors = worked(task, lines)
    there = [number for number, each in enumerate(lines, 1) if each.strip()]
    assert [record["line"] for record in records] == there
    assert errors == sum("error" in record for record in records)
    clean, none = worked(task, good)
    assert none == 0
    by_line = {record["line"]: without_line(record) for record in records}
    for number, each in enumerate(lines, 1):
        if each in good:
            assert by_line[number] == without_line(clean[good.index(each)])
    if isinstance(task, EmbedTask):
        file = io.BytesIO()
        task_lines = [each + b"\n" for each in lines]
        process(task, task_lines, NpyRows(file, task.engine.dim), progress=False)
        rows = np.load(io.BytesIO(file.getvalue()))
        wrong = ["error" in record for record in records]
        assert np.isnan(rows).all(1).tolist() == wrong == np.isnan(rows).any(1).tolist()


@pytest.mark.parametrize("kind", ["score", "rank", "embed"])
def test_known_ones_are_in_error(kind, request):
    """All of these, but for two that are only strange."""
    records, _ = worked(request.getfixturevalue(kind), KNOWN)
    fine = {KNOWN[record["line"] - 1] for record in records if "error" not in record}
    assert fine <= {
        line(documents=[DETAIL, "a"]),
        line(id=float("nan"), text="a"),
    } and not (kind == "rank" and fine)


def test_a_row_that_is_not_finite(score, embed):
    records, errors = worked(score, [line(documents=["a", NAN]), line(document="a")])
    assert errors == 1 and "score" in records[1]
    message = "documents[1]: the model gave NaN or infinity for it"
    assert records[0]["error"].startswith(message)
    assert "the checkpoint's weights are not finite: model.language" in records[0]["error"]
    records, _ = worked(embed, [line(text=NAN, id=3)])
    assert records[0]["error"].startswith("input: the model gave NaN") and records[0]["id"] == 3


def test_what_takes_too_much_memory_is_worked_alone(embed, monkeypatch):
    outcomes = embed.engine.core.outcomes

    def short(inputs, progress):
        if len(inputs) > 1 or inputs[0].content.text == "large":
            raise OutOfMemory("cpu has too little free memory")
        return outcomes(inputs, progress=progress)

    clean, _ = worked(embed, GOOD["embed"])
    monkeypatch.setattr(embed.engine.core, "outcomes", short)
    records, errors = worked(embed, [*GOOD["embed"], line(text="large")])
    assert errors == 1 and records[:2] == clean
    assert records[2]["error"] == "input: cpu has too little free memory"
    with pytest.raises(OutOfMemory):  # for any of several: no line is to blame
        monkeypatch.setattr(embed.engine.core, "outcomes", lambda *_, **__: short([1, 2], None))
        worked(embed, GOOD["embed"])


def test_a_device_that_fails_stops_and_says_how_to_go_on(model, tmp_path, monkeypatch, capsys):
    def lost(*_: object, **__: object) -> None:
        raise DeviceError("npu:0 failed")

    monkeypatch.setattr(Core, "outcomes", lost)
    source = tmp_path / "in"
    source.write_bytes(line(query="q", document="d"))
    files = ["--input", str(source), "--output", str(tmp_path / "out")]
    assert main(["score", "--model", str(model), "--dtype", "float32", *files]) == 2
    err = capsys.readouterr().err
    assert err == "pyrerank: error: npu:0 failed; --resume goes on with an --output file\n"
    monkeypatch.undo()
    assert main(["score", "--model", str(model), "--dtype", "float32", *files, "--resume"]) == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_an_input_that_cannot_be_read_twice(model, capfdbinary):
    read, write = os.pipe()
    os.write(write, GOOD["embed"][0])
    os.close(write)
    assert main(["embed", "--model", str(model), "--input", f"/dev/fd/{read}"]) == 0
    os.close(read)
    assert len(strict(capfdbinary.readouterr().out)) == 1
