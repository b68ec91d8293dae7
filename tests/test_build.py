"""Building and packaging: targets, rebuilds, the sdist."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pybind11
import pytest

ROOT = Path(__file__).parents[1]


def build_ext(source: Path, out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", out],
        cwd=source,
        env={k: v for k, v in os.environ.items() if not k.startswith("ASCEND")} | environment,
        capture_output=True,
        text=True,
    )


def test_npu_without_cann_says_what_is_missing(tmp_path: Path) -> None:
    done = build_ext(ROOT, tmp_path, PYRERANK_TARGET="npu")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "PYRERANK_TARGET=npu needs the CANN toolkit" in done.stderr
    assert "set_env.sh" in done.stderr


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    """A folder that passes for a CANN toolkit, as far as finding it goes."""
    header = tmp_path / "cann" / "include" / "acl" / "acl.h"
    header.parent.mkdir(parents=True)
    header.touch()
    return tmp_path / "cann"


def test_npu_without_a_chip_asks_for_one(tmp_path: Path, toolkit: Path) -> None:
    done = build_ext(ROOT, tmp_path, PYRERANK_TARGET="npu", ASCEND_HOME_PATH=str(toolkit))
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "PYRERANK_SOC=Ascend910B3" in done.stderr


def test_a_toolkit_without_its_compiler_is_refused(tmp_path: Path, toolkit: Path) -> None:
    done = subprocess.run(
        [
            *["cmake", "-S", ROOT, "-B", tmp_path / "build", "-DPYRERANK_TARGET=npu"],
            *[f"-DPYRERANK_CANN={toolkit}", "-DPYRERANK_SOC=Ascend910B3"],
            f"-DPYRERANK_PYBIND11={pybind11.get_include()}",
            f"-DPython_EXECUTABLE={sys.executable}",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "no ascendc.cmake and no CMake package ASC" in done.stderr


def test_an_unknown_target_is_refused(tmp_path: Path) -> None:
    done = build_ext(ROOT, tmp_path, PYRERANK_TARGET="gpu")
    assert done.returncode != 0 and "PYRERANK_TARGET: got 'gpu'" in done.stderr


def test_a_second_build_compiles_nothing(tmp_path: Path) -> None:
    first = build_ext(ROOT, tmp_path / "first", PYRERANK_TARGET="cpu")
    assert first.returncode == 0, first.stdout + first.stderr
    second = build_ext(ROOT, tmp_path / "second", PYRERANK_TARGET="cpu")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "no work to do" in second.stdout and "Building CXX" not in second.stdout
    (module,) = (tmp_path / "second" / "pyrerank").glob("_C.*")
    assert module.stat().st_size > 0


def test_no_compiler_means_no_extension_and_one_line(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("cmake", "ninja"):
        (tools / tool).symlink_to(shutil.which(tool))
    done = build_ext(ROOT, tmp_path / "out", PATH=str(tools), CXX="")
    assert done.returncode == 0, done.stderr
    assert "no C++ compiler: installing without kernels" in done.stdout
    forced = build_ext(ROOT, tmp_path / "out", PATH=str(tools), CXX="", PYRERANK_TARGET="cpu")
    assert forced.returncode != 0 and "needs a C++17 compiler" in forced.stderr


def test_the_sdist_can_be_built_and_tested(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *[sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path],
            *["sdist", "--dist-dir", tmp_path],
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    wanted = {"CMakeLists.txt", "cmake/npu.cmake", "setup.py", "pyproject.toml", "LICENSE"}
    for folder, suffixes in (("csrc", {".h", ".cpp"}), ("tests", {".py", ".cpp", ".h"})):
        files = (ROOT / folder).rglob("*")
        wanted |= {str(f.relative_to(ROOT)) for f in files if f.suffix in suffixes}
    assert wanted <= names, sorted(wanted - names)
    assert not [name for name in names if name.endswith(".so") or name.startswith("build/")]
