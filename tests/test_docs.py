"""The pages of docs/: pictures are drawn from data of the engine and the kernels, and messages and
names are those of the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import packing
import pytest
import score_head
from strict_build import load_strict

import pyrerank

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_the_picture_of_packing_is_the_planners(tokenizer):
    assert packing.draw(packing.encode(tokenizer)) == (DOCS / "figures/packing.svg").read_text()


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


def messages() -> Iterator[str]:
    """The texts in the code, with "..." for each value that is put into one."""
    for file in [*(ROOT / "pyrerank").glob("*.py"), ROOT / "setup.py"]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(
                    v.value if isinstance(v, ast.Constant) else "..." for v in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
    for file in (ROOT / "csrc/host").glob("*.h"):
        yield re.sub(r'"\s*"', "", file.read_text("utf-8"))


def test_troubleshooting_quotes_messages_of_the_code():
    page = (DOCS / "troubleshooting.md").read_text("utf-8")
    quoted = re.findall(r"^### `(.*)`$", page, re.M)
    known = list(messages())
    assert len(quoted) > 40
    for heading in quoted:
        words = re.escape(heading).replace(re.escape("..."), ".{0,120}")
        pattern = re.compile(words, re.DOTALL)
        assert any(map(pattern.search, known)), heading


def test_the_api_page_has_every_public_name():
    page = (DOCS / "api.md").read_text("utf-8")
    documented = re.findall(r"^\.\. auto\w+:: pyrerank\.(\w+)$", page, re.M)
    assert sorted(documented) == sorted(pyrerank.__all__)
