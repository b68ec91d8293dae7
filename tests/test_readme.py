"""The READMEs: equal to each other in what is not prose, and true.

The shell commands of the first screen are run word for word by .ci/run; here their ranking is
compared with what the README shows, and the Python example is run.
"""

import re
import shutil
from pathlib import Path

import make_checkpoint
import pytest

from pyrerank.cli import main

ROOT = Path(__file__).parents[1]
ENGLISH = (ROOT / "README.md").read_text("utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text("utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    """A folder where `demo-model` is, as after the README's first command."""
    folder = tmp_path_factory.mktemp("readme")
    make_checkpoint.write_checkpoint(folder / "demo-model", "bfloat16")
    shutil.copytree(ROOT / "examples", folder / "examples")
    return folder


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


def test_the_ranking_shown_is_the_ranking_printed(demo, capsys, monkeypatch):
    monkeypatch.chdir(demo)
    monkeypatch.setenv("COLUMNS", "100")
    command = blocks(ENGLISH, "sh")[0].replace("\\\n", " ").splitlines()[-1]
    words = re.findall(r'"[^"]*"|\S+', command)
    assert main([word.strip('"') for word in words[1:]]) == 0
    shown, printed = (
        [line.split(maxsplit=2) for line in text.splitlines()]
        for text in (blocks(ENGLISH, "text")[0], capsys.readouterr().out)
    )
    assert len(shown) == len(printed) == 8
    # the first two are on the subject; further down bfloat16 and float32 may order ties otherwise
    for want, got in zip(shown[:2], printed[:2], strict=True):
        assert want[1:] == got[1:]
        assert float(want[0]) == pytest.approx(float(got[0]), abs=2e-2)
    assert max(float(line[0]) for line in printed[2:]) < 0.2


def test_the_python_example_runs(demo, capsys, monkeypatch):
    monkeypatch.chdir(demo)
    [code] = blocks(ENGLISH, "python")
    exec(compile(code, "README.md", "exec"), {})
    scores, hit = capsys.readouterr().out.splitlines()
    beijing, gravity = (float(score) for score in scores.strip("[]").split(","))
    assert 0 <= gravity < beijing <= 1
    assert hit.startswith("0 ") and hit.endswith("Beijing is the capital of China.")
