"""The command line works as users meet it, mostly in a process of its own, with files and pipes."""

import base64
import functools
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import write_random
from fetching import Server
from lines import CAT, COFFEE, PICTURES, STARS, jsonl

from pyrerank import Embedder, Fetcher, Media, Reranker
from pyrerank.cli.jsonl import CHUNK
from pyrerank.cli.main import main
from pyrerank.media import fetch

pytestmark = pytest.mark.slow

DATA = Path(__file__).parents[1] / "data"
DOCUMENTS = ["Beijing is the capital of China.", "Gravity attracts. " * 20, "北京是中国的首都。"]
QUERY = "capital of China?"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    write_random(folder, "qwen3-reranker", tied=True, seed=3, dtype=torch.bfloat16)
    return str(folder)


@pytest.fixture(scope="module")
def engine(model) -> Reranker:
    return Reranker(model, dtype="float32")


@pytest.fixture(scope="module")
def vision_model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("vision")
    write_random(folder, "qwen3-vl-reranker", tied=True, seed=4, dtype=torch.bfloat16)
    return str(folder)


@pytest.fixture(scope="module")
def vision_engine(vision_model) -> Reranker:
    return Reranker(vision_model, dtype="float32")


@pytest.fixture(scope="module")
def embedder(vision_model) -> Embedder:
    return Embedder(vision_model, dtype="float32")


def run(*args: str, stdin: bytes = b"", **options) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-P", "-m", "pyrerank", *args]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=120, **options)


def records(raw: bytes) -> list[dict]:
    return [json.loads(line) for line in raw.splitlines()]


class TestArguments:
    def test_score(self, model, engine):
        done = run("score", "--model", model, "--dtype", "float32", "--query", QUERY, *DOCUMENTS)
        assert (done.returncode, done.stderr) == (0, b"")
        lines = done.stdout.decode().splitlines()
        want = engine.score(QUERY, DOCUMENTS)
        assert [float(line.split()[0]) for line in lines] == pytest.approx(want, abs=1e-6)
        assert [line.split()[1] for line in lines] == ["[0]", "[1]", "[2]"]
        assert lines[2].endswith(DOCUMENTS[2])

    def test_rank(self, model, engine, capsys):
        assert main(["rank", "--model", model, "--query", QUERY, "--top-n", "2", *DOCUMENTS]) == 0
        lines = capsys.readouterr().out.splitlines()
        best = engine.rank(QUERY, DOCUMENTS, top_n=2)
        assert [line.split()[1] for line in lines] == [f"[{r.index}]" for r in best]

    def test_documents_from_a_file(self, model, capsys, tmp_path):
        file = tmp_path / "documents.jsonl"
        file.write_bytes(jsonl(*({"_id": i, "text": d} for i, d in enumerate(DOCUMENTS))))
        common = ["rank", "--model", model, "--query", QUERY]
        assert main([*common, "--documents", str(file)]) == 0
        from_file = capsys.readouterr().out
        assert main([*common, *DOCUMENTS]) == 0
        assert capsys.readouterr().out == from_file

    def test_lines_fit_the_terminal(self, model, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "40")
        assert main(["score", "--model", model, "--query", QUERY, "word\n" * 99, "汉" * 99]) == 0
        words, han = capsys.readouterr().out.splitlines()
        assert len(words) == 40 and words.endswith("…")
        assert len(han) + han.count("汉") in (38, 39, 40) and han.endswith("…")

    def test_explain(self, model, engine, capsys):
        assert main(["explain", "--model", model, "--query", QUERY, DOCUMENTS[0]]) == 0
        explanation = engine.explain(QUERY, DOCUMENTS[0])
        out = capsys.readouterr().out
        assert out.startswith(explanation.text) and str(explanation.ids) in out

    def test_info(self, capsys):
        assert main(["info"]) == 0
        out = capsys.readouterr().out
        for word in ("pyrerank:", "torch:", "extension: target", "score_head", "cpu:", "CANN:"):
            assert word in out
        assert "missing for an NPU:" in out

    def test_help_and_version_need_no_torch(self):
        for argument in ("--help", "--version"):
            script = (
                "import sys; sys.modules['torch'] = None\n"
                f"from pyrerank.cli.main import main; main(['{argument}'])"
            )
            done = subprocess.run(
                [sys.executable, "-P", "-c", script], capture_output=True, text=True
            )
            assert done.returncode == 0 and "pyrerank" in done.stdout

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["score", "--query", "q"], "give texts as arguments, or --documents FILE, or"),
            (["score", "--query", "q", "d", "--input", "x"], "give texts as arguments"),
            (["score", "d"], "--query is missing"),
            (["rank", "--query", "q", "d", "--top-n", "0"], "top_n must be a positive int"),
            (["score", "--query", "q", "d", "--dtype", "int3"], "dtype must be one of"),
            (["score", "--query", "q", "d", "--device", "tpu"], "device must be"),
            (["score", "--query", "q", "d", "--output", "x"], "--output goes with --input"),
            (["score", "--input", "-", "--resume"], "--resume needs --output"),
            (["rank", "--input", "/dev/null", "--top-n", "0"], "top_n must be a positive int"),
            (["explain", "--query", "q"], "give texts as arguments, or --documents FILE"),
            (["embed"], "give texts as arguments, or --input FILE"),
            (["embed", "t", "--output", "x.npy"], "--output goes with --input"),
            (["embed", "t", "--dim", "97"], "dim must be an int from 1 to 96"),
            (["embed", "t", "--max-image-tokens", "3"], "max_image_tokens must be an int from 4"),
            (["embed", "t", "--max-video-frames", "3"], "max_video_frames must be an even int"),
            (["score", "d", "--query-image", str(CAT)], "the query of documents[0] has a picture"),
            (["score", "--input", "/not/there.jsonl"], "No such file"),
            (["score", "--query", "q", "--documents", "/not/there"], "No such file"),
        ],
    )
    def test_mistakes(self, model, capsys, arguments, message):
        assert main([*arguments, "--model", model]) == 2
        assert message in capsys.readouterr().err

    def test_no_model(self, capsys, tmp_path):
        assert main(["score", "--model", str(tmp_path / "no"), "--query", "q", "d"]) == 2
        assert "is not a folder, nor can it be a hub name" in capsys.readouterr().err
        assert main(["score", "--model", str(tmp_path), "--query", "q", "d"]) == 2
        assert "has no config.json" in capsys.readouterr().err

    def test_bad_documents_file(self, model, capsys, tmp_path):
        file = tmp_path / "documents.jsonl"
        file.write_bytes(jsonl({"text": "a"}) + b"{broken\n")
        assert main(["rank", "--model", model, "--query", "q", "--documents", str(file)]) == 2
        assert "documents.jsonl, line 2: Expecting property name" in capsys.readouterr().err
        file.write_bytes(b"\n" + jsonl({"_id": "d1", "title": "no more than this"}))
        assert main(["rank", "--model", model, "--query", "q", "--documents", str(file)]) == 2
        assert "line 2: a document needs a 'text', an 'image'" in capsys.readouterr().err


class TestLines:
    def test_score_through_pipes(self, model, engine):
        stdin = jsonl(
            {"id": "a", "query": QUERY, "document": DOCUMENTS[0]},
            {"query": QUERY, "documents": DOCUMENTS},
            {"query": QUERY, "document": DOCUMENTS[0], "instruction": "Find it."},
        )
        args = ("score", "--model", model, "--dtype", "float32", "--input", "-")
        done = run(*args, stdin=stdin)
        assert (done.returncode, done.stderr) == (0, b"")
        one, many, told = records(done.stdout)
        want = engine.details(QUERY, DOCUMENTS)
        assert one["line"] == 1 and one["id"] == "a" and "id" not in many
        assert one["score"] == pytest.approx(want[0].score, abs=1e-6)
        assert one["tokens"] == want[0].tokens and one["truncated"] == 0
        assert [r["index"] for r in many["results"]] == [0, 1, 2]
        assert [r["logit"] for r in many["results"]] == pytest.approx(
            [w.logit for w in want], abs=1e-4
        )
        [instructed] = engine.score(QUERY, DOCUMENTS[:1], instruction="Find it.")
        assert told["score"] == pytest.approx(instructed, abs=1e-6) != one["score"]

    def test_rank_with_one_query_for_all(self, model, engine, tmp_path, capsys):
        source, target = tmp_path / "in", tmp_path / "out"
        source.write_bytes(jsonl({"documents": DOCUMENTS}, {"documents": DOCUMENTS[1:]}))
        args = ["--dtype", "float32", "--input", str(source), "--output", str(target)]
        assert main(["rank", "--model", model, "--query", QUERY, "--top-n", "2", *args]) == 0
        first, second = records(target.read_bytes())
        want = engine.rank(QUERY, DOCUMENTS, top_n=2)
        assert [(r["index"], r["document"]) for r in first["results"]] == [
            (w.index, w.document) for w in want
        ]
        assert len(second["results"]) == 2

    def test_bad_lines_are_reported_and_the_rest_is_scored(self, model, capsysbinary, monkeypatch):
        bad = [
            (b"{broken", "Expecting property name"),
            (b"[1]", "expected a JSON object, got list"),
            (b"\xff\xfe", "invalid start byte"),
            (jsonl({"document": "d"}), "no 'query'"),
            (jsonl({"query": "q"}), "either 'document' or 'documents'"),
            (jsonl({"query": "q", "document": "d", "documents": []}), "either"),
            (jsonl({"query": "q", "documents": []}), "documents is empty"),
            (jsonl({"query": "q", "documents": "d"}), "wrap a single content in a list"),
            (
                jsonl({"query": None, "document": "d"}),
                "the query of document must be a str, a dict",
            ),
            (jsonl({"query": "q", "document": 3}), "document must be a str, a dict"),
            (jsonl({"query": "q", "documents": ["a", None]}), "documents[1] must be a str, a dict"),
            (
                jsonl({"query": ["q"], "documents": ["a"]}),
                "the query of documents[0], part[0] must be a dict",
            ),
            (
                jsonl({"query": "q", "documents": ["a", {"image": str(CAT)}]}),
                "documents[1] has a picture, and this model reads text only",
            ),
            (b'{"query": "q", "document": "\\ud800"}', "lone surrogate, U+D800"),
            (jsonl({"query": "q", "document": "d", "doc": 1}), "unknown field 'doc'"),
            (jsonl({"query": "q", "document": "d", "instruction": 3}), "instruction must be str"),
            (jsonl({"query": "q", "document": "d", "instruction": "w " * 9999}), "too long"),
            (b'{"id": "\\ud800", "query": "q", "document": "d"}', "id holds a lone surrogate"),
            (b"[" * 100_000, "nested too deep"),
        ]
        good = jsonl({"query": QUERY, "document": "d"})
        lines = [good] + [raw.strip() + b"\n" + good for raw, _ in bad]
        done = run("score", "--model", model, "--input", "-", stdin=b"".join(lines))
        assert done.returncode == 1
        out = records(done.stdout)
        assert [r["line"] for r in out] == list(range(1, 2 * len(bad) + 2))
        for record, (_, message) in zip(out[1::2], bad, strict=True):
            assert message in record["error"], record
            assert f"line {record['line']}: {record['error']}" in done.stderr.decode()
        assert len({r["score"] for r in out[0::2]}) <= 2  # one a batch
        assert f"{len(bad)} input lines were in error" in done.stderr.decode()

    def test_blank_lines_and_a_byte_order_mark(self, model):
        line = jsonl({"query": "q", "document": "d"})
        stdin = b"\xef\xbb\xbf" + line + b"\n   \n" + line.rstrip()
        done = run("score", "--model", model, "--input", "-", stdin=stdin)
        assert done.returncode == 0
        assert [r["line"] for r in records(done.stdout)] == [1, 4]

    def test_an_empty_input(self, model):
        done = run("score", "--model", model, "--input", "-")
        assert (done.returncode, done.stdout) == (0, b"")

    def test_an_existing_output_is_left_alone(self, model, tmp_path, capsys):
        source, target = tmp_path / "in", tmp_path / "out"
        source.write_bytes(jsonl({"query": "q", "document": "d"}))
        target.write_text("precious")
        files = ["--input", str(source), "--output", str(target)]
        assert main(["score", "--model", model, *files]) == 2
        assert "exists; add --resume" in capsys.readouterr().err
        target.write_text("precious\n")
        assert main(["score", "--model", model, *files, "--resume"]) == 2
        assert "out holds results, and out.resume, which says of which" in capsys.readouterr().err
        assert target.read_text() == "precious\n"

    def test_a_reader_that_leaves(self, model):
        lines = jsonl(*({"query": "q", "document": f"d{i}"} for i in range(3000)))
        command = [sys.executable, "-P", "-m", "pyrerank", "score", "--model", model]
        with subprocess.Popen(
            [*command, "--input", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            process.stdout.close()
            _, err = process.communicate(lines)
        assert (process.returncode, err) == (0, b"")


@pytest.fixture(scope="module")
def thousand_pairs(tmp_path_factory) -> Path:
    """100 real queries with ten real passages each, a pair a line."""
    passages = records((DATA / "xquad/en/corpus.jsonl").read_bytes())
    queries = records((DATA / "xquad/en/queries.jsonl").read_bytes())
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    with file.open("wb") as out:
        for i, query in enumerate(queries[:100]):
            for j in range(10):
                passage = passages[(i + j) % len(passages)]
                out.write(jsonl({"query": query["text"], "document": passage["text"]}))
    return file


@pytest.fixture(scope="module")
def whole(model, thousand_pairs) -> bytes:
    """The output of a run that nothing interrupted."""
    target = thousand_pairs.with_name("whole.jsonl")
    files = ["--input", str(thousand_pairs), "--output", str(target)]
    assert main(["score", "--model", model, *files]) == 0
    return target.read_bytes()


class TestResume:
    def test_a_thousand_pairs(self, whole, engine, thousand_pairs):
        results, pairs = records(whole), records(thousand_pairs.read_bytes())
        assert [r["line"] for r in results] == list(range(1, 1001))
        some = range(0, 1000, 97)
        want = engine.score([pairs[i]["query"] for i in some], [pairs[i]["document"] for i in some])
        assert [results[i]["score"] for i in some] == pytest.approx(want, abs=2e-2)

    def test_interrupted_and_resumed_to_the_same_bytes(self, model, thousand_pairs, whole):
        target = thousand_pairs.with_name("resumed.jsonl")
        arguments = ["score", "--model", model, "--output", str(target), "--input"]
        lines = thousand_pairs.read_bytes().splitlines(keepends=True)
        lines[CHUNK - 1] = b"{\n"
        command = [sys.executable, "-P", "-m", "pyrerank", *arguments, "-"]
        # the input stops in the middle, so it is certain what is done when the signal comes
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            process.stdin.write(b"".join(lines[:100]))
            process.stdin.flush()
            assert b"line 64: " in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate()
        assert process.returncode == 130 and b"interrupted; --resume goes on" in err
        written = target.read_bytes()
        assert written.count(b"\n") == CHUNK
        short = thousand_pairs.with_name("short.jsonl")
        short.write_bytes(b"".join(lines[:150]))
        assert main([*arguments, str(short), "--resume"]) == 1
        want = whole.splitlines(keepends=True)
        got = target.read_bytes().splitlines(keepends=True)
        assert target.read_bytes().startswith(written) and len(got) == 150
        assert (
            got[: CHUNK - 1] + got[CHUNK : 2 * CHUNK] == want[: CHUNK - 1] + want[CHUNK : 2 * CHUNK]
        )

    def test_resume_without_an_output_starts_it(self, model, tmp_path):
        source, target = tmp_path / "in", tmp_path / "out"
        source.write_bytes(jsonl({"query": "q", "document": "d"}))
        files = ["--input", str(source), "--output", str(target)]
        assert main(["score", "--model", model, *files, "--resume"]) == 0
        before = target.read_bytes()
        assert main(["score", "--model", model, *files, "--resume"]) == 0
        assert target.read_bytes() == before


def scores_in(table: str) -> list[float]:
    return [float(line.split()[0]) for line in table.splitlines()]


class TestPictures:
    def test_documents_with_pictures(
        self, vision_model, vision_engine, tmp_path, capsys, monkeypatch
    ):
        monkeypatch.setenv("COLUMNS", "400")
        documents = [
            {"_id": "cat", "image": str(CAT), "title": "no part of it"},
            {"text": "a cup\nof coffee", "image": [str(COFFEE), data_uri(CAT)]},
            {"text": ["stars", ", many"], "video": str(STARS)},
            {"video": [str(COFFEE), str(COFFEE)]},
            {"text": "a cat"},
        ]
        file = tmp_path / "documents.jsonl"
        file.write_bytes(jsonl(*documents))
        options = ["--model", vision_model, "--dtype", "float32", "--documents", str(file)]
        options += ["--query", "a cat?", "--query-image", str(CAT), "--query-image", str(COFFEE)]
        options += ["--query-video", str(STARS), "--max-video-frames", "4"]
        assert main(["score", *options]) == 0
        table = capsys.readouterr().out
        contents = [
            {key: value for key, value in document.items() if key in ("text", "image", "video")}
            for document in documents
        ]
        query = {"text": "a cat?", "image": [CAT, COFFEE], "video": STARS}
        want = vision_engine.score(query, contents, media=Media(max_video_frames=4))
        assert scores_in(table) == pytest.approx(want, abs=2e-6)
        assert len(set(want)) == 5
        shown = [line.partition("]")[2].strip() for line in table.splitlines()]
        assert shown[0] == f"[{CAT}]"
        assert shown[1].startswith(f"[{COFFEE}] [data:image/jpeg;base64] a cup of c")
        assert shown[2].startswith(f"[{STARS}] stars , many")
        assert shown[3].startswith(f"[{COFFEE}] [{COFFEE}]") and shown[4] == "a cat"

    def test_rank_for_a_picture(self, vision_model, vision_engine, capsys, monkeypatch):
        """The path is relative to the working directory."""
        monkeypatch.chdir(PICTURES)
        options = ["--model", vision_model, "--dtype", "float32", "--max-image-tokens", "9"]
        assert main(["rank", *options, "--query-image", "cat.jpg", "--top-n", "2", *DOCUMENTS]) == 0
        media = Media(max_image_tokens=9)
        want = vision_engine.rank({"image": CAT}, DOCUMENTS, media=media, top_n=2)
        assert scores_in(capsys.readouterr().out) == pytest.approx(
            [ranked.score for ranked in want], abs=2e-6
        )

    def test_query_videos_are_files_and_not_frames_of_one(
        self, vision_model, vision_engine, capsys
    ):
        options = ["--query-video", str(CAT), "--query-video", str(CAT)]
        assert main(["explain", "--model", vision_model, *options, "d"]) == 0
        video = {"type": "video", "video": CAT}
        out = capsys.readouterr().out
        assert out.startswith(vision_engine.explain([video, video], "d").text)
        assert not out.startswith(vision_engine.explain({"video": [CAT, CAT]}, "d").text)

    def test_explain(self, vision_model, vision_engine, tmp_path, capsys):
        documents = [{"image": str(CAT)}, {"text": "a cat"}]
        file = tmp_path / "documents.jsonl"
        file.write_bytes(jsonl(*documents))
        options = ["--query", "a cat?", "--documents", str(file), "--max-image-tokens", "20"]
        assert main(["explain", "--model", vision_model, *options]) == 0
        media = Media(max_image_tokens=20)
        want = [vision_engine.explain("a cat?", d, media=media) for d in documents]
        out = capsys.readouterr().out
        assert out.startswith(want[0].text) and f"\n\n{want[1].text}" in out
        assert all(str(explanation.ids) in out for explanation in want)
        assert 8 < want[0].text.count("<|image_pad|>") <= 20

    def test_lines(self, vision_model, vision_engine, tmp_path):
        parts = [
            {"type": "image_url", "image_url": {"url": data_uri(CAT)}},
            {"type": "text", "text": "a cat"},
        ]
        documents = [parts, {"image": str(COFFEE)}, "a cat", {"video": [str(CAT), str(CAT)]}]
        source, target = tmp_path / "in", tmp_path / "out"
        source.write_bytes(
            jsonl(
                {"document": {"image": str(CAT)}},
                {"query": parts, "documents": documents},
                {"query": {"image": str(COFFEE)}, "document": parts},
                {"documents": ["a", {"image": [str(CAT), "gone.jpg"]}]},
                {"document": {"video": str(STARS)}, "id": 5},
            )
        )
        options = ["--model", vision_model, "--dtype", "float32", "--max-image-tokens", "30"]
        files = ["--input", str(source), "--output", str(target)]
        assert main(["score", *options, "--query-image", str(COFFEE), *files]) == 1
        one, many, own, bad, last = records(target.read_bytes())
        media = Media(max_image_tokens=30)
        coffee = {"image": COFFEE}
        contents = [{"image": CAT}, parts, {"video": STARS}]
        want = vision_engine.details(coffee, contents, media=media)
        for record, detail in zip((one, own, last), want, strict=True):
            assert record["logit"] == pytest.approx(detail.logit, abs=1e-5)
            assert record["tokens"] == detail.tokens
        want = vision_engine.details(parts, documents, media=media)
        assert [r["tokens"] for r in many["results"]] == [detail.tokens for detail in want]
        assert [r["logit"] for r in many["results"]] == pytest.approx(
            [detail.logit for detail in want], abs=1e-5
        )
        assert "documents[1], image[1]: 'gone.jpg' does not exist" in bad["error"]
        assert "results" not in bad and last["id"] == 5

    def test_ranked_lines_carry_the_documents_as_given(self, vision_model, tmp_path):
        documents = ["a", {"image": str(CAT)}]
        source, target = tmp_path / "in", tmp_path / "out"
        source.write_bytes(jsonl({"query": "a cat?", "documents": documents}))
        files = ["--input", str(source), "--output", str(target)]
        assert main(["rank", "--model", vision_model, *files]) == 0
        [record] = records(target.read_bytes())
        for result in record["results"]:
            assert result["document"] == documents[result["index"]]

    def test_fetching(self, vision_model, vision_engine, capsys, monkeypatch, tmp_path):
        options = ["score", "--model", vision_model, "--dtype", "float32"]
        server = Server()
        try:
            options += ["--query-image", server.url + "/cat", "a cat"]
            assert main(options) == 2
            assert "fetching is off" in capsys.readouterr().err
            for allowed in (["--fetch"], ["--fetch-host", "127.0.0.1"]):
                assert main([*options, *allowed]) == 2
                assert "127.0.0.1, not a public address" in capsys.readouterr().err
            monkeypatch.setattr(fetch, "Fetcher", functools.partial(Fetcher, private=True))
            assert main([*options, "--fetch-host", "localhost", "--fetch"]) == 2
            assert "not one of the allowed hosts" in capsys.readouterr().err
            assert not server.handler.asked
            want = vision_engine.score({"image": CAT}, ["a cat"])
            for allowed in (["--fetch"], ["--fetch-host", "a.test", "--fetch-host", "127.0.0.1"]):
                assert main([*options, *allowed]) == 0
                assert scores_in(capsys.readouterr().out) == pytest.approx(want, abs=2e-6)
            assert server.handler.asked == ["/cat", "/cat"]
            source = tmp_path / "in"
            source.write_bytes(jsonl({"document": "a"}, {"documents": ["b", "c"]}))
            lines = ["--fetch", "--input", str(source), "--output", str(tmp_path / "out")]
            assert main([*options[:-1], *lines]) == 0
            assert len(server.handler.asked) == 4  # of which run it is, and then for the lines
        finally:
            server.close()

    def test_a_video_without_pyav(self, vision_model, capsys, monkeypatch, tmp_path):
        monkeypatch.setitem(sys.modules, "av", None)
        options = ["score", "--model", vision_model]
        assert main([*options, "--query-video", str(STARS), "d"]) == 2
        assert "pip install 'pyrerank[video]'" in capsys.readouterr().err
        source = tmp_path / "in"
        lines = jsonl({"query": "q", "document": "d"})
        lines += jsonl({"query": {"video": str(STARS)}, "document": "d"}) + lines
        source.write_bytes(lines)
        assert main([*options, "--input", str(source)]) == 1
        assert "pip install 'pyrerank[video]'" in capsys.readouterr().err
        # of no line but of the whole run
        assert main([*options, "--query-video", str(STARS), "--input", str(source)]) == 2
        assert "pip install 'pyrerank[video]'" in capsys.readouterr().err


def data_uri(file: Path) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(file.read_bytes()).decode()


class TestEmbed:
    def test_texts(self, vision_model, capsys):
        options = ["embed", "--model", vision_model, "--dtype", "float32"]
        assert main([*options, "--dim", "64", "--instruction", "Find it.", *DOCUMENTS]) == 0
        short = Embedder(vision_model, dtype="float32", dim=64)
        want = short.embed(DOCUMENTS, instruction="Find it.")
        out = records(capsys.readouterr().out.encode())
        assert [r["line"] for r in out] == [1, 2, 3] and all(r["truncated"] == 0 for r in out)
        vectors = np.array([r["embedding"] for r in out], np.float32)
        np.testing.assert_allclose(vectors, want, atol=1e-6)
        assert main([*options, "--dim", "64", "--no-normalize", DOCUMENTS[0]]) == 0
        [raw] = records(capsys.readouterr().out.encode())
        length = np.linalg.norm(raw["embedding"])
        assert abs(length - 1) > 0.01
        plain = short.embed(DOCUMENTS[:1])[0]
        np.testing.assert_allclose(np.array(raw["embedding"]) / length, plain, atol=1e-5)

    def test_lines_of_every_kind(self, vision_model, embedder, tmp_path):
        lines = [
            {"_id": "d1", "title": "t", "text": DOCUMENTS[0]},
            {"id": "d2", "text": DOCUMENTS[0], "instruction": "Find it."},
            {"image": str(CAT), "text": "a cat", "documents": [1]},
            {"video": str(STARS), "instruction": None},
        ]
        stdin = jsonl(*lines[:2]) + b"\n" + jsonl(*lines[2:])
        options = ["--model", vision_model, "--dtype", "float32", "--instruction", "Say so."]
        options += ["--max-image-tokens", "50"]
        done = run("embed", *options, "--input", "-", stdin=stdin)
        assert (done.returncode, done.stderr) == (0, b"")
        out = records(done.stdout)
        media = Media(max_image_tokens=50)
        want = [
            embedder.embed([DOCUMENTS[0]], instruction="Say so."),
            embedder.embed([DOCUMENTS[0]], instruction="Find it."),
            embedder.embed([{"image": CAT, "text": "a cat"}], instruction="Say so.", media=media),
            embedder.embed([{"video": STARS}], media=media),
        ]
        vectors = np.array([r["embedding"] for r in out], np.float32)
        np.testing.assert_allclose(vectors, np.concatenate(want), atol=1e-5)
        assert [(r["line"], r.get("id")) for r in out] == [
            (1, None),
            (2, "d2"),
            (4, None),
            (5, None),
        ]
        assert out[2]["tokens"] > 40
        source, target = tmp_path / "in", tmp_path / "out.npy"
        source.write_bytes(stdin)
        files = ["--input", str(source), "--output", str(target)]
        assert main(["embed", *options, *files]) == 0
        np.testing.assert_array_equal(np.load(target), vectors)

    def test_bad_lines(self, vision_model, embedder, tmp_path, capsys):
        bad = [
            (b"{broken\n", "Expecting property name"),
            (jsonl("text"), "expected a JSON object, got str"),
            (jsonl({"_id": "d1"}), "a document needs a 'text', an 'image' or a 'video'"),
            (jsonl({"text": 3}), "input, text must be str, got int"),
            (jsonl({"image": str(PICTURES)}), "is not a file"),
            (jsonl({"image": [str(CAT), 3]}), "input, image[1] must be a path"),
            (jsonl({"text": "a", "instruction": 3}), "instruction must be str"),
            (jsonl({"text": "a", "id": []}), "id must be str"),
        ]
        good = jsonl({"text": DOCUMENTS[0]})
        source, target = tmp_path / "in", tmp_path / "out.npy"
        source.write_bytes(good + b"".join(line for line, _ in bad) + good)
        files = ["--input", str(source), "--output", str(target)]
        options = ["--model", vision_model, "--dtype", "float32"]
        assert main(["embed", *options, *files]) == 1
        err = capsys.readouterr().err.splitlines()
        for number, (line, (_, message)) in enumerate(zip(err, bad, strict=False), 2):
            assert line.startswith(f"line {number}: ") and message in line
        assert err[-1] == "pyrerank: 8 input lines were in error"
        rows = np.load(target)
        [want] = embedder.embed(DOCUMENTS[:1])
        np.testing.assert_allclose(rows[[0, -1]], [want, want], atol=1e-5)
        assert np.isnan(rows[1:-1]).all() and len(rows) == 10
        assert main(["embed", *options, *files, "--resume"]) == 1
        assert "8 input lines were in error" in capsys.readouterr().err

    def test_an_output_of_another_run(self, model, tmp_path, capsys):
        source, target = tmp_path / "in", tmp_path / "out.npy"
        source.write_bytes(jsonl({"text": "a"}))
        options = ["embed", "--model", model, "--input", str(source), "--output", str(target)]
        assert main([*options, "--dim", "32"]) == 0
        before = target.read_bytes()
        assert main(options) == 2
        assert "exists; add --resume" in capsys.readouterr().err
        assert main([*options, "--resume"]) == 2
        assert "another run: --dim was 32 and is 96" in capsys.readouterr().err
        assert target.read_bytes() == before

    @pytest.mark.parametrize("name", ["out.npy", "out.jsonl"])
    def test_interrupted_and_resumed_to_the_same_bytes(self, model, tmp_path, name):
        passages = records((DATA / "xquad/zh/queries.jsonl").read_bytes())
        texts = [jsonl({"text": p["text"][i:]}) for i in range(6) for p in passages]
        texts[CHUNK - 1] = b"{\n"
        texts[CHUNK + 5] = jsonl({"image": str(CAT)})  # an error of a text model
        source, whole, target = tmp_path / "in", tmp_path / f"whole-{name}", tmp_path / name
        source.write_bytes(b"".join(texts))
        options = ["embed", "--model", model, "--output"]
        assert main([*options, str(whole), "--input", str(source)]) == 1
        command = [sys.executable, "-P", "-m", "pyrerank", *options, str(target), "--input", "-"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            process.stdin.write(b"".join(texts[: CHUNK + 20]))
            process.stdin.flush()
            # the first chunk is on the disk, and the second waits for its end
            assert b"line 64: " in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate()
        assert process.returncode == 130 and b"interrupted" in err
        written = target.read_bytes()
        if name.endswith(".npy"):
            np.testing.assert_array_equal(np.load(target), np.load(whole)[:CHUNK])
        else:
            assert whole.read_bytes().startswith(written) and written.count(b"\n") == CHUNK
        assert main([*options, str(target), "--input", str(source), "--resume"]) == 1
        assert target.read_bytes() == whole.read_bytes()
