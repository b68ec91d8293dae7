"""The pages of docs/: pictures are drawn from data of the engine and the kernels, and messages and
names are those of the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import packing
import pytest
import score_head
import stations
from strict_build import load_strict

import pyrerank

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_the_picture_of_packing_is_the_planners(tokenizer):
    assert packing.draw(packing.encode(tokenizer)) == (DOCS / "figures/packing.svg").read_text()


def test_the_picture_of_the_stations_is_of_this_code():
    assert stations.draw(stations.stations()) == (DOCS / "figures/stations.svg").read_text()


def test_every_picture_has_a_script():
    figures = list((DOCS / "figures").glob("*.svg"))
    assert figures and all(figure.with_suffix(".py").is_file() for figure in figures)


def test_what_is_to_be_changed_is_where_the_page_on_the_engine_says():
    page = (DOCS / "engine.md").read_text("utf-8")
    section = page.partition("## Where to change what")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| .+? \| (.*`.*) \|$", section, re.M)
    assert len(rows) > 15
    for row in rows:
        texts, names = "", []
        for word in re.findall(r"`([\w/.]+)`", row):
            paths = [path for path in (ROOT / "pyrerank" / word, ROOT / word) if path.exists()]
            files = [file for path in paths for file in (path, *path.glob("*.py"))]
            texts += "".join(file.read_text("utf-8") for file in files if file.is_file())
            names += [] if paths else [word]
        assert [name for name in names if not re.search(rf"\b{name}\b", texts)] == [], row


class TestPipeline:
    @pytest.fixture
    def kernels(self):
        return load_strict()

    @pytest.fixture
    def trace(self, kernels):
        kernels.reset_counters()
        return score_head.trace(kernels)

    def test_the_trace_is_what_was_counted(self, kernels, trace):
        counters = kernels.counters()
        vector = [i for i in trace if i["pipe"] == "V" and i["bytes"]]
        assert len(vector) == counters["vector_instructions"]
        assert sum(map(score_head.cycles, vector)) == counters["vector_repeats"]
        copies = [i for i in trace if i["pipe"].startswith("MTE") and i["bytes"]]
        assert len(copies) == counters["copies"]
        moved = sum(i["bytes"] for i in trace if i["region"])
        assert moved == counters["gm_read_bytes"] + counters["gm_write_bytes"]
        barriers = [i for i in trace if i["api"] == "PipeBarrier"]
        assert len(barriers) == counters["barriers"]

    def test_a_row_is_computed_after_its_copy_and_copied_when_a_buffer_is_free(self, trace):
        steps = score_head.schedule(trace)

        def of(pipe: str, row: int) -> list[score_head.Step]:
            return [step for step in steps if (step.pipe, step.part) == (pipe, str(row))]

        for row in range(score_head.ROWS):
            [copy] = of("MTE2", row)
            assert copy.end <= of("V", row)[0].start
            if row >= 2:  # there are two buffers
                last = [step for step in of("V", row - 2) if step.api == "MulAddDst"][-1]
                assert copy.start >= last.end
        assert of("MTE2", 1)[0].start < of("V", 0)[-1].end  # they overlap

    def test_the_picture_is_of_this_kernel(self, trace):
        drawn = score_head.draw(score_head.schedule(trace))
        assert drawn == (DOCS / "figures/score_head.svg").read_text()


def code() -> Iterator[ast.AST]:
    for file in (ROOT / "pyrerank").rglob("*.py"):
        yield from ast.walk(ast.parse(file.read_text("utf-8")))


def words(node: ast.AST) -> str:
    """A text in the code, with "..." for each value that is put into it."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(words, node.values))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "..."


def pattern(message: str) -> re.Pattern[str]:
    return re.compile(re.escape(message).replace(re.escape("..."), ".{0,120}"), re.DOTALL)


@pytest.fixture(scope="module")
def quoted() -> list[str]:
    """The messages that the page on troubleshooting has, as headings and in tables."""
    page = (DOCS / "troubleshooting.md").read_text("utf-8")
    found = re.findall(r"^(?:### |\| )`(.+?)`(?: \| .*)?$", page, re.M)
    assert len(found) > 80
    return found


def test_troubleshooting_quotes_messages_of_the_code(quoted):
    known = [words(node) for node in code() if isinstance(node, ast.JoinedStr | ast.Constant)]
    known.append((ROOT / "csrc/host/launch.h").read_text("utf-8"))
    for message in quoted:
        if not any(map(pattern(message).search, known)):  # it is put together from several texts
            for text in message.split("..."):
                assert any(text.strip(" :") in each for each in known), message


def test_troubleshooting_has_every_error_of_checkpoints_and_devices(quoted):
    classes = ("CheckpointError", "CheckpointChanged", "DeviceError", "OutOfMemory")
    calls = [node for node in code() if isinstance(node, ast.Call) and node.args]
    errors = [words(c.args[0]) for c in calls if getattr(c.func, "id", None) in classes]
    assert len(errors) > 25
    for error in errors:
        if re.search("[a-z]", error):  # else all of it is in variables
            # the last value of a message may be the rest of it
            assert any(
                pattern(message).search(error) or pattern(error).fullmatch(message)
                for message in quoted
            ), error


def test_the_api_page_has_every_public_name():
    page = (DOCS / "api.md").read_text("utf-8")
    documented = re.findall(r"^\.\. auto\w+:: pyrerank\.(\w+)$", page, re.M)
    assert sorted(documented) == sorted(pyrerank.__all__)
