"""The command line heeds every option and field that it takes, or refuses it by name."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from lines import CAT, jsonl

from pyrerank import Reranker
from pyrerank.cli.main import COMMANDS, main
from pyrerank.media.json_content import content_of
from pyrerank.prompts.templates import HEAD, TAIL
from pyrerank.weights.checkpoint import Checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("in").write_bytes(jsonl({"document": "d"}))
    Path("docs").write_bytes(jsonl({"text": "a"}))
    Path("typo").write_bytes(jsonl({"_id": 1, "txt": "a"}))
    Path("told").write_bytes(jsonl({"text": "a", "instruction": "Find it."}))
    Path("twice").write_bytes(b'{"text": "a", "text": "b"}\n')


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("score --query q --input in --output -", "--output names a file; leave it out"),
        ("score --query q --input in --output x.npy", "x.npy is for vectors; scores are"),
        ("rank --query q --input in --output x.npy", "x.npy is for vectors; scores are"),
        ("score --query q --input= d", "give texts as arguments, or --documents FILE, or"),
        ("score --query q --documents= d", "give texts as arguments, or --documents FILE, or"),
        ("score --query q --documents docs d", "give texts as arguments, or --documents FILE"),
        ("score --query q --documents docs --input in", "give texts as arguments"),
        ("score --query q --documents docs --output x", "--output goes with --input"),
        ("score --query q --documents docs --resume", "--resume needs --output"),
        ("embed d --resume", "--resume needs --output"),
        ("embed --input docs d", "give texts as arguments, or --input FILE"),
        ("score --query q --documents typo", "line 1: the field 'txt' would not be heeded"),
        ("rank --query q --documents told", "line 1: 'instruction' is not for a document"),
        ("rank --query q --documents twice", "line 1: the field 'text' is there twice"),
        ("score --query q --graph d", "graph=True needs a device with graphs"),
        ("score --input in --output x --query-image no.jpg", "'no.jpg' does not exist"),
        ("score --query q --max-image-tokens 3 d", "max_image_tokens must be an int from 4"),
    ],
)
def test_refused(capsys, arguments, message):
    name, *rest = arguments.split()
    assert main([name, "--model", "demo", "--device", "cpu", *rest]) == 2
    assert message in capsys.readouterr().err
    assert not Path("x").exists() and not Path("x.npy").exists()


def test_a_picture_for_a_model_of_texts(random_reranker, capsys):
    options = ["--query-image", str(CAT), "--input", "in", "--output", "x"]
    assert main(["score", "--model", str(random_reranker), *options]) == 2
    assert "--query-image and --query-video need a Qwen3-VL" in capsys.readouterr().err
    assert not Path("x").exists()


def test_another_file_in_place_of_the_journal_is_left_alone(capsys):
    Path("x.resume").write_text("precious")
    assert main(["score", "--model", "demo", "--query", "q", "--input", "in", "--output", "x"]) == 2
    assert "x.resume is in the way, and not of pyrerank" in capsys.readouterr().err
    assert not Path("x").exists() and Path("x.resume").read_text() == "precious"


@pytest.mark.parametrize(
    "arguments",
    [
        "score --query q d --top-n 1",
        "score --query q d --dim 3",
        "embed d --query q",
        "embed --documents docs",
        "explain --query q d --output x",
        "explain --query q d --resume",
        "explain --query q d --dtype float32",
        "info --model demo",
    ],
)
def test_unknown_to_the_command(capsys, arguments):
    with pytest.raises(SystemExit) as exit:
        main(arguments.split())
    assert exit.value.code == 2
    capsys.readouterr()


@pytest.mark.parametrize(
    "field", ["txt", "texts", "Text", "images", "imgae", "Image", "videos", "vidoe"]
)
def test_misspelt_fields(field):
    with pytest.raises(ValueError, match=f"the field '{field}' would not be heeded"):
        content_of({"_id": 1, field: "a"})
    [kind] = [kind for kind in ("text", "image", "video") if kind[0] == field[0].lower()]
    content_of({kind: "a", field: "a"})  # it is there: the other is the caller's


def test_fields_of_the_callers():
    fields = ("_id", "title", "metadata", "context", "url", "image_url", "video_id", "date", "lang")
    for kind in ("text", "image", "video"):
        item = dict.fromkeys(fields, "x") | {kind: "a"}
        assert content_of(item, "instruction") == {kind: "a"}
    with pytest.raises(ValueError, match="the field 'image_url' would not be heeded; call it 'im"):
        content_of({"text": "a", "image_url": {"url": "http://a/b.png"}})
    content_of({"text": "a", "introduction": "b"}, "instruction")
    with pytest.raises(ValueError, match="'instructions' would not be heeded"):
        content_of({"text": "a", "instructions": "b"}, "instruction")


def test_explain_shows_what_score_runs(capsys, monkeypatch):
    """Also where a document comes in the published template, with an instruction of its own; and
    the tokenizer is read once."""
    opened = []
    read = Checkpoint.tokenizer
    monkeypatch.setattr(Checkpoint, "tokenizer", lambda *given: opened.append(1) or read(*given))
    options = ["--model", "demo", "--instruction", "Find it."]
    assert main(["explain", *options, "--query", "q", "a", "b", "c"]) == 0
    shown = capsys.readouterr().out
    engine = Reranker("demo", device="cpu", instruction="Find it.")
    for document in "abc":
        assert engine.explain("q", document).text in shown
    assert len(opened) == 2
    query = HEAD + "user\n<Instruct>: own\n<Query>: q\n"
    document = "<Document>: d" + TAIL
    assert main(["explain", *options, "--query", query, document]) == 0
    shown = capsys.readouterr().out
    assert engine.explain(query, document).text in shown and "own" in shown


def test_warnings_are_sentences(capsys, monkeypatch):
    def warned(*_: object, **__: object) -> list[float]:
        warnings.warn("2 documents were cut", UserWarning, stacklevel=2)
        return [0.5]

    monkeypatch.setattr(Reranker, "score", warned)
    assert main(["score", "--model", "demo", "--query", "q", "d"]) == 0
    assert capsys.readouterr().err == "pyrerank: warning: 2 documents were cut\n"


def test_cut_prompts_are_told(capsys):
    Path("long").write_bytes(jsonl({"document": "word " * 20000}, {"document": "d"}))
    files = ["--input", "long", "--output", "x"]
    for more in ([], ["--resume"]):
        assert main(["score", "--model", "demo", "--query", "q", *files, *more]) == 0
        err = capsys.readouterr().err
        assert err.startswith("pyrerank: warning: 1 prompts were cut to the limit of ")


def test_a_table_where_the_terminal_has_no_unicode():
    command = [sys.executable, "-P", "-m", "pyrerank", "score", "--model", "demo", "--query", "q"]
    done = subprocess.run(
        [*command, "北京"], capture_output=True, env={"PYTHONIOENCODING": "ascii", "PATH": ""}
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.rstrip().endswith(rb"\u5317\u4eac")


def test_an_arithmetic_error_of_a_library_is_a_sentence(capsys, monkeypatch):
    def overflow(args):
        raise OverflowError("the number is too large")

    monkeypatch.setitem(COMMANDS, "info", overflow)
    assert main(["info"]) == 2
    assert capsys.readouterr().err == "pyrerank: error: the number is too large\n"
