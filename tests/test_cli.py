"""The command line, mostly as a user meets it: another process, files and pipes."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import write_random

from pyrerank import Reranker
from pyrerank.cli import main
from pyrerank.jsonl import CHUNK_PAIRS

DATA = Path(__file__).parent / "data"
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


def run(*args: str, stdin: bytes = b"", **options) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-P", "-m", "pyrerank", *args]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=120, **options)


def jsonl(*items: object) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)


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
                f"from pyrerank.cli import main; main(['{argument}'])"
            )
            done = subprocess.run(
                [sys.executable, "-P", "-c", script], capture_output=True, text=True
            )
            assert done.returncode == 0 and "pyrerank" in done.stdout

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["score", "--query", "q"], "give documents as arguments, or --documents"),
            (["score", "--query", "q", "d", "--input", "x"], "give documents as arguments"),
            (["score", "d"], "--query is missing"),
            (["rank", "--query", "q", "d", "--top-n", "0"], "top_n must be a positive int"),
            (["score", "--query", "q", "d", "--dtype", "int3"], "dtype must be one of"),
            (["score", "--query", "q", "d", "--device", "tpu"], "device must be"),
            (["score", "--query", "q", "d", "--output", "x"], "--output goes with --input"),
            (["score", "--input", "-", "--resume"], "--resume needs --output"),
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
        assert "documents.jsonl, line 2: not an object" in capsys.readouterr().err


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
            (jsonl({"query": "q", "documents": "d"}), "wrap a single document in a list"),
            (jsonl({"query": None, "document": "d"}), "must be str, got NoneType"),
            (jsonl({"query": "q", "document": 3}), "document must be str, got int"),
            (jsonl({"query": "q", "documents": ["a", None]}), "documents[1] must be str"),
            (jsonl({"query": ["q"], "documents": ["a"]}), "query must be str, got list"),
            (b'{"query": "q", "document": "\\ud800"}', "lone surrogate, U+D800"),
            (jsonl({"query": "q", "document": "d", "doc": 1}), "unknown field 'doc'"),
            (jsonl({"query": "q", "document": "d", "instruction": 3}), "instruction must be str"),
            (jsonl({"query": "q", "document": "d", "instruction": "w " * 9999}), "too long"),
            (b'{"id": "\\ud800", "query": "q", "document": "d"}', "id holds a lone surrogate"),
            (b"[" * 100_000, "recursion"),
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
        assert "a line that pyrerank did not write" in capsys.readouterr().err
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
        arguments = ["score", "--model", model, "--input", str(thousand_pairs)]
        arguments += ["--output", str(target)]
        lines = thousand_pairs.read_bytes().splitlines(keepends=True)
        command = [sys.executable, "-P", "-m", "pyrerank", "score", "--model", model]
        pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
        # the input stops in the middle, so it is certain what is done when the signal comes
        with subprocess.Popen([*command, "--input", "-"], **pipes) as process:
            process.stdin.write(b"".join(lines[:500]))
            process.stdin.flush()
            written = [process.stdout.readline() for _ in range(500 // CHUNK_PAIRS * CHUNK_PAIRS)]
            process.send_signal(signal.SIGINT)
            out, err = process.communicate()
        assert process.returncode == 130 and b"interrupted" in err
        target.write_bytes(b"".join(written) + out)
        assert whole.startswith(target.read_bytes())
        assert main([*arguments, "--resume"]) == 0
        assert target.read_bytes() == whole

    @pytest.mark.parametrize("kept", [0, 1, 40, 5000, -7, -1, None])
    def test_cut_anywhere(self, model, thousand_pairs, whole, kept):
        target = thousand_pairs.with_name(f"cut{kept}.jsonl")
        files = ["--input", str(thousand_pairs), "--output", str(target)]
        lines = thousand_pairs.read_bytes().splitlines(keepends=True)[:150]
        short = thousand_pairs.with_name("short.jsonl")
        short.write_bytes(b"".join(lines))
        want = b"".join(whole.splitlines(keepends=True)[: 150 // CHUNK_PAIRS * CHUNK_PAIRS])
        target.write_bytes(want[:kept])
        files[1] = str(short)
        assert main(["score", "--model", model, *files, "--resume"]) == 0
        assert target.read_bytes().startswith(want)
        assert target.read_bytes().count(b"\n") == 150

    def test_resume_without_an_output_starts_it(self, model, tmp_path):
        source, target = tmp_path / "in", tmp_path / "out"
        source.write_bytes(jsonl({"query": "q", "document": "d"}))
        files = ["--input", str(source), "--output", str(target)]
        assert main(["score", "--model", model, *files, "--resume"]) == 0
        before = target.read_bytes()
        assert main(["score", "--model", model, *files, "--resume"]) == 0
        assert target.read_bytes() == before
