"""The READMEs and documents: equal to each other in what is not prose, and true.

The shell commands of the first screen are run word for word by .ci/run; here they and the others
are run within this process, and so is the Python code. What is shown right after is their output.
Nothing but a block marked `console` is exempt: installations, and what needs an NPU.
"""

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import make_checkpoint
import pytest

from pyrerank.cli import main

ROOT = Path(__file__).parents[1]
ENGLISH = (ROOT / "README.md").read_text("utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text("utf-8")
PAGES = {
    str(file.relative_to(ROOT)): file.read_text("utf-8")
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
EXCERPTS = "docs/search.md"  # of a script, which tests/test_examples.py runs
CHECKPOINTS = {"demo-model": "", "demo-vl": "--vision", "demo-embedder": "--embedding"}
NUMBER = r"-?\d*\.\d+"


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def runs(text: str) -> Iterator[tuple[str, str, str | None]]:
    """Language and code of each block that can run, and the output that is shown after it."""
    for match in re.finditer(
        r"^```(sh|python)\n(.*?)^```(?:\n\n```text\n(.*?)^```)?", text, re.DOTALL | re.MULTILINE
    ):
        if "pytest" not in match[2]:
            yield match[1], match[2], match[3]


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A folder with what the commands read, and the checkpoints that the README's commands make."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "examples", folder / "examples")
    shutil.copytree(ROOT / "tests/data/pictures", folder / "tests/data/pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, kind in CHECKPOINTS.items():
            execute("sh", f"python examples/make_checkpoint.py {name} {kind}", patch)
    return folder


def test_no_block_has_a_mark_that_nothing_runs():
    marks = {mark for text in PAGES.values() for mark in re.findall(r"^ *```(.+)$", text, re.M)}
    assert marks <= {"sh", "python", "text", "console", "{eval-rst}", "{toctree}"}


@pytest.mark.parametrize("language", ["sh", "python", "text"])
def test_both_languages_have_the_same_code(language):
    assert blocks(ENGLISH, language) == blocks(CHINESE, language) != []


def test_both_languages_have_the_same_shape():
    def shape(text: str) -> list[str]:
        return re.findall(r"^(?:#+ |\| |- \*\*)", text, re.MULTILINE)

    assert shape(ENGLISH) == shape(CHINESE)
    assert set(re.findall(r"`[A-Za-z_.\-]+`", ENGLISH)) == set(
        re.findall(r"`[A-Za-z_.\-]+`", CHINESE)
    )


def execute(language: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if language == "python":
        exec(compile(code, "example", "exec"), {})
        return
    for line in code.replace("\\\n", " ").splitlines():
        program, *words = shlex.split(line)
        if program == "pyrerank":
            assert main(words) == 0
        elif words[0] == "examples/make_checkpoint.py":
            monkeypatch.setattr(sys, "argv", words)
            make_checkpoint.main()
        elif words[0].startswith("docs/figures/"):
            assert (ROOT / words[0]).is_file()  # tests/test_docs.py runs them
        elif program != "pip":
            assert line in (ROOT / ".ci/run").read_text() or words[0] == "-m", line


@pytest.mark.parametrize(
    "page", [page for page, text in PAGES.items() if page != EXCERPTS and any(runs(text))]
)
def test_what_is_shown_is_what_is_printed(page, clone, capsys, monkeypatch):
    monkeypatch.chdir(clone)
    monkeypatch.setenv("COLUMNS", "100")
    for language, code, shown in runs(PAGES[page]):
        capsys.readouterr()
        execute(language, code, monkeypatch)
        if shown is None:
            continue
        printed = [
            line
            for line in capsys.readouterr().out.splitlines()
            if "hand-set weights" not in line  # says make_checkpoint.py
        ]
        assert len(printed) == len(shown.splitlines())
        for want, got in zip(shown.splitlines(), printed, strict=True):
            # scores in bfloat16, where the processor has it, may differ, and ties be ordered
            # otherwise: what is not found at all is one tie
            numbers = [[float(n) for n in re.findall(NUMBER, line)] for line in (want, got)]
            assert numbers[1] == pytest.approx(numbers[0], abs=2e-2), (page, code)
            if max(numbers[0], default=1) > 0.1:
                assert re.sub(NUMBER, "", want).split() == re.sub(NUMBER, "", got).split()


def test_the_first_python_example(clone, capsys, monkeypatch):
    monkeypatch.chdir(clone)
    execute("python", blocks(ENGLISH, "python")[0], monkeypatch)
    scores, hit = capsys.readouterr().out.splitlines()
    beijing, gravity = (float(score) for score in scores.strip("[]").split(","))
    assert 0 <= gravity < beijing <= 1
    assert hit.startswith("0 ") and hit.endswith("Beijing is the capital of China.")
