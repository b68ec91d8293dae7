"""The tree of pyrerank: which module may import which, how long files are, and where tests lie.

docs/engine.md has the table of floors and the table of lines.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import count_lines
import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "pyrerank"
PAGE = (ROOT / "docs/engine.md").read_text("utf-8")
FILES = {
    ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted(SOURCE.rglob("*.py"))
}
TOP = {module.partition(".")[0] for module in FILES}
NO_PACKAGE = {"npu", "sim"}  # their tests are of more than one package


@cache
def floors() -> dict[str, set[str]]:
    """The packages and modules of the table, from low to high, and what each may import."""
    found: dict[str, set[str]] = {}
    for names, imports in re.findall(r"^\| \d+ \| (`.*?) \| (.*?) \|$", PAGE, re.M):
        below = set(found)
        listed = below if imports == "all" else set(re.findall(r"`(.*?)`", imports))
        assert listed <= below, f"{names}: {listed - below} is not below"
        for name in re.findall(r"`(.*?)`", names):
            found[name] = {name, "errors", "checks"} | listed
    return found


def entry(module: str) -> str:
    """What the table has of a module: of all that its name begins with, the longest."""
    fitting = [name for name in floors() if f"{module}.".startswith(f"{name}.")]
    assert fitting, f"the table of floors in docs/engine.md has no place for pyrerank.{module}"
    return max(fitting, key=len)


def imports(file: Path) -> Iterator[str]:
    """What a file imports of pyrerank anywhere: in functions, and for types alone, too."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, module = name.partition(".")
            if package == "pyrerank":
                yield module if module.partition(".")[0] in TOP else "__init__"


@pytest.mark.parametrize("module", FILES)
def test_nothing_imports_from_a_higher_floor(module):
    allowed = floors()[entry(module)]
    wrong = [name for name in imports(FILES[module]) if entry(name) not in allowed]
    assert not wrong, f"pyrerank.{module} may import {sorted(allowed)}, and imports {wrong}"


def test_every_entry_of_the_table_is_there():
    assert set(floors()) == set(map(entry, FILES))


@pytest.mark.parametrize(
    "importing, unwanted",
    [
        ("devices", {"tokenizers", "pyrerank.prompts", "pyrerank.weights"}),
        ("prompts", {"torch", "pyrerank.devices"}),
        ("media", {"torch", "pyrerank.devices"}),
        ("engine.planner", {"torch", "pyrerank.devices"}),
        ("engine.batch", {"tokenizers", "pyrerank.prompts", "pyrerank.devices"}),
    ],
)
def test_importing_a_package_does_not_import(importing, unwanted):
    modules = [m for m in FILES if f"{m}.".startswith(f"{importing}.")]
    code = "".join(f"import pyrerank.{module}\n" for module in modules)
    command = [sys.executable, "-c", f"{code}import sys; print(*sys.modules)"]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    assert not unwanted & set(ran.stdout.split())


def test_only_devices_ask_for_the_type_of_a_device():
    asking = [m for m, file in FILES.items() if "device.type" in file.read_text("utf-8")]
    assert {entry(module) for module in asking} <= {"devices"}, asking


@pytest.mark.parametrize("module", FILES)
def test_a_file_is_read_in_one_sitting(module):
    assert FILES[module].read_text("utf-8").count("\n") <= 400


def test_the_init_of_a_package_holds_its_docstring_alone():
    for file in SOURCE.glob("*/__init__.py"):
        [only] = ast.parse(file.read_text("utf-8")).body
        assert isinstance(only, ast.Expr) and isinstance(only.value, ast.Constant), file
        assert 3 <= only.value.value.count("\n") <= 6, file


def test_tests_lie_as_the_packages_do():
    packages = {file.parent.name for file in SOURCE.glob("*/__init__.py")}
    tested = {file.parent.name for file in (ROOT / "tests").glob("*/test_*.py")}
    assert tested - NO_PACKAGE == packages


def test_the_table_of_lines_is_that_of_the_tree():
    assert count_lines.written(PAGE) == PAGE, "run docs/count_lines.py"
