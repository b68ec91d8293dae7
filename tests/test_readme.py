"""The READMEs and documents: equal to each other in what is not prose, and true.

The shell commands of the first screen are run word for word by .ci/run; here they and the others
are run within this process, and so is the Python code. What is shown right after is their output.
Nothing but a block marked `console` is exempt: installations, and what needs an NPU.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import make_checkpoint
import pytest
from serving import Process, running

from pyrerank.cli.main import main

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
ENGLISH = (ROOT / "README.md").read_text("utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text("utf-8")
PAGES = {
    str(file.relative_to(ROOT)): file.read_text("utf-8")
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
EXCERPTS = "docs/search.md"  # of a script, which tests/test_examples.py runs
PROGRAM = "docs/engine.md"  # its Python blocks are one program; elsewhere each stands by itself
SERVER = "http://127.0.0.1:8000"  # the default address; here each server gets a free port
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
            command = f"python examples/make_checkpoint.py {name} {kind}"
            Blocks(patch, ExitStack()).run("sh", command)
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


def commands(code: str) -> Iterator[str]:
    """Lines of a shell's code; one goes on after a backslash, and as long as a quote is open."""
    command = ""
    for line in code.replace("\\\n", " ").splitlines():
        command += line
        if command.count("'") % 2 == 0:
            yield command
            command = ""


class Blocks:
    """Runs blocks one after another; ``servers`` ends those that were started.

    ``program``: the names of a Python block are there in those after it.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, servers: ExitStack, *, program: bool = False
    ) -> None:
        self._monkeypatch = monkeypatch
        self._servers = servers
        self._names: dict[str, object] | None = {} if program else None
        self._server: Process | None = None

    def run(self, language: str, code: str) -> None:
        if self._server is not None:
            code = code.replace(SERVER, self._server.url)
        if language == "python":
            exec(compile(code, "example", "exec"), {} if self._names is None else self._names)
            return
        for line in commands(code):
            self._command(line, *shlex.split(line))

    def _command(self, line: str, program: str, *words: str) -> None:
        if program == "pyrerank" and words[:2] == ("serve", "--model"):
            self._server = self._servers.enter_context(running(*words[2:]))
        elif program == "pyrerank":
            assert main([*words]) == 0
        elif program == "curl" and shutil.which("curl"):
            ran = subprocess.run([program, *words], check=True, capture_output=True, text=True)
            print(ran.stdout)
        elif words[0] == "examples/make_checkpoint.py":
            self._monkeypatch.setattr(sys, "argv", list(words))
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
    with ExitStack() as servers:
        shell = Blocks(monkeypatch, servers, program=page == PROGRAM)
        for language, code, shown in runs(PAGES[page]):
            capsys.readouterr()
            shell.run(language, code)
            if shown is not None:
                compare(shown, capsys.readouterr().out)


def compare(shown: str, out: str) -> None:
    lines = out.splitlines()
    printed = [line for line in lines if "hand-set weights" not in line]  # says make_checkpoint.py
    assert len(printed) == len(shown.splitlines())
    for want, got in zip(shown.splitlines(), printed, strict=True):
        # scores in bfloat16, where the processor has it, may differ, and ties be ordered
        # otherwise: what is not found at all is one tie
        numbers = [[float(n) for n in re.findall(NUMBER, line)] for line in (want, got)]
        assert numbers[1] == pytest.approx(numbers[0], abs=2e-2), want
        if max(numbers[0], default=1) > 0.1:
            assert re.sub(NUMBER, "", want).split() == re.sub(NUMBER, "", got).split()


def test_the_first_python_example(clone, capsys, monkeypatch):
    monkeypatch.chdir(clone)
    Blocks(monkeypatch, ExitStack()).run("python", blocks(ENGLISH, "python")[0])
    scores, hit = capsys.readouterr().out.splitlines()
    beijing, gravity = (float(score) for score in scores.strip("[]").split(","))
    assert 0 <= gravity < beijing <= 1
    assert hit.startswith("0 ") and hit.endswith("Beijing is the capital of China.")
