"""Building and packaging: targets, rebuilds, the sdist."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pybind11
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def build_ext(source: Path, out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    mine = ("ASCEND", "PYRERANK", "SOC_VERSION")
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", out],
        cwd=source,
        env={k: v for k, v in os.environ.items() if not k.startswith(mine)} | environment,
        capture_output=True,
        text=True,
    )


def refusal(tmp_path: Path, **environment: str) -> str:
    """What setup.py says to the npu target; one message, no traceback."""
    done = build_ext(ROOT, tmp_path / "out", PYRERANK_TARGET="npu", **environment)
    assert done.returncode != 0 and "Traceback" not in done.stderr, done.stdout
    return done.stderr


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    """A folder that passes for a CANN toolkit, as far as setup.py looks into it."""
    home = tmp_path / "Ascend/cann"
    header = home / "include/acl/acl.h"
    script = home / "compiler/tikcpp/ascendc_kernel_cmake/ascendc.cmake"
    for file in (header, script, home / "set_env.sh"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    set_version(home, "8.5.0")
    return home


def set_version(home: Path, version: str) -> None:
    info = home / "aarch64-linux/ascend_toolkit_install.info"
    info.parent.mkdir(exist_ok=True)
    info.write_text(f"package_name=Ascend-cann-toolkit\nversion={version}\ninnerversion=V100R001\n")


def test_npu_without_cann_says_what_to_install(tmp_path: Path) -> None:
    said = refusal(tmp_path, HOME=str(tmp_path))
    assert "pyrerank: PYRERANK_TARGET=npu: " in said and "set_env.sh" in said


def test_a_home_that_does_not_exist_is_named(tmp_path: Path) -> None:
    said = refusal(tmp_path, ASCEND_HOME_PATH="/nowhere/cann")
    assert "ASCEND_HOME_PATH=/nowhere/cann: there is no such folder" in said
    assert "Install Ascend-cann-toolkit (8.3.RC1 or newer)" in said


@pytest.mark.parametrize("missing", ["include/acl/acl.h", "compiler"])
def test_a_package_that_compiles_nothing_is_no_toolkit(
    tmp_path: Path, toolkit: Path, missing: str
) -> None:
    (toolkit / missing).rename(tmp_path / "missing")
    said = refusal(tmp_path, ASCEND_TOOLKIT_HOME=str(toolkit))
    assert f"ASCEND_TOOLKIT_HOME={toolkit}: this is no CANN toolkit" in said
    assert "nnrt and nnae" in said and "Install Ascend-cann-toolkit" in said


def test_a_toolkit_whose_environment_is_not_set_is_found(tmp_path: Path, toolkit: Path) -> None:
    said = refusal(tmp_path, HOME=str(tmp_path))
    assert f"source {toolkit}/set_env.sh" in said or "/usr/local/Ascend" in said


@pytest.mark.parametrize("version", ["8.0.0", "8.2.RC1", "7.0.1"])
def test_an_old_toolkit_is_refused(tmp_path: Path, toolkit: Path, version: str) -> None:
    set_version(toolkit, version)
    said = refusal(tmp_path, ASCEND_HOME_PATH=str(toolkit), PYRERANK_SOC="Ascend910B3")
    assert f"CANN {version} in {toolkit} is too old" in said and "8.3.RC1 or newer" in said


def test_a_toolkit_of_unknown_version_is_refused(tmp_path: Path, toolkit: Path) -> None:
    shutil.rmtree(toolkit / "aarch64-linux")
    said = refusal(tmp_path, ASCEND_HOME_PATH=str(toolkit))
    assert f"{toolkit} does not say its version" in said
    cfg = toolkit / "version.cfg"  # another place of it
    cfg.write_text("# version: 1.0\ncompiler_running_version=[7.7.0.1.238:8.2.RC1]\n")
    assert "CANN 8.2.RC1 in" in refusal(tmp_path, ASCEND_HOME_PATH=str(toolkit))


def test_without_a_chip_setup_asks_for_one(tmp_path: Path, toolkit: Path) -> None:
    said = refusal(tmp_path, ASCEND_HOME_PATH=str(toolkit), PATH=tools(tmp_path, "cmake", "c++"))
    assert "for which chip?" in said and "PYRERANK_SOC=Ascend910B3" in said


@pytest.mark.parametrize(
    "soc, why",
    [
        ("Ascend310P3", "no bfloat16"),
        ("Ascend310B1", "m300"),
        ("Ascend950PR_9599", "dav-3510"),
        ("ascend910b", "the first 910 has no bfloat16"),
        ("Ascend910_9999", "no chip of Atlas A2 or A3"),
        ("910B3", "no such chip is known"),
    ],
)
def test_a_chip_without_kernels_is_refused(
    tmp_path: Path, toolkit: Path, soc: str, why: str
) -> None:
    for name in ("PYRERANK_SOC", "SOC_VERSION"):
        said = refusal(tmp_path, ASCEND_HOME_PATH=str(toolkit), **{name: soc})
        assert f"no kernels for {soc}: " in said and why in said
        assert "Atlas A2 and A3" in said and "Ascend910B4-1" in said
        assert "PYRERANK_TARGET=cpu installs without" in said


NPU_SMI = """#!/bin/sh
case "$*" in
info) echo "| NPU   Name                | Health        |"
      echo "| 4     {name}              | OK            | 94.3"
      echo "| 0                         | 0000:C1:00.0  | 0   " ;;
"info -t board -i 4 -c 0") echo "        Chip Name                      : Ascend910"
                           echo "        NPU Name                       : 9399" ;;
esac
"""


@pytest.mark.parametrize(
    "name, soc", [("310P3", "Ascend310P3"), ("Ascend910", "Ascend910_9399"), ("910A", "Ascend910A")]
)
def test_npu_smi_names_the_chip(tmp_path: Path, toolkit: Path, name: str, soc: str) -> None:
    path = tools(tmp_path, "cmake", "c++", "sh")
    smi = Path(path) / "npu-smi"
    smi.write_text(NPU_SMI.format(name=name))
    smi.chmod(0o755)
    said = refusal(tmp_path, ASCEND_HOME_PATH=str(toolkit), PATH=path)
    assert f"no kernels for {soc}: " in said


def tools(tmp_path: Path, *names: str) -> str:
    """A PATH with these programs only."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in names:
        found = shutil.which(name)
        assert found, name
        (folder / name).symlink_to(found)
    return str(folder)


def test_npu_needs_a_compiler_and_make(tmp_path: Path, toolkit: Path) -> None:
    environment = {"ASCEND_HOME_PATH": str(toolkit), "PYRERANK_SOC": "Ascend910B3", "CXX": ""}
    path = tools(tmp_path, "cmake", "ninja")
    said = refusal(tmp_path, PATH=path, **environment)
    assert "target npu: needs a C++17 compiler" in said
    (Path(path) / "c++").symlink_to(str(shutil.which("c++")))
    assert "the build needs make" in refusal(tmp_path, PATH=path, **environment)
    (Path(path) / "cmake").unlink()
    assert "the build needs cmake: pip install" in refusal(tmp_path, PATH=path, **environment)


def configure(tmp_path: Path, *options: str) -> str:
    """What CMake says to an npu target it refuses."""
    done = subprocess.run(
        [
            *["cmake", "-G", "Ninja", "-S", ROOT, "-B", tmp_path / "build", *options],
            *["-DPYRERANK_TARGET=npu", f"-DPYRERANK_PYBIND11={pybind11.get_include()}"],
            f"-DPython_EXECUTABLE={sys.executable}",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    return " ".join(done.stderr.split())


def test_cmake_refuses_what_setup_would_not_ask(tmp_path: Path, toolkit: Path) -> None:
    assert "needs PYRERANK_CANN, PYRERANK_CANN_VERSION and PYRERANK_SOC" in configure(tmp_path)
    options = [f"-DPYRERANK_CANN={toolkit}", "-DPYRERANK_SOC=Ascend910B3"]
    options += ["-DPYRERANK_CANN_VERSION=8.5.0"]
    assert "with make only: cmake -G 'Unix Makefiles'" in configure(tmp_path, *options)


def test_a_home_that_is_none_leaves_the_cpu(tmp_path: Path) -> None:
    done = build_ext(ROOT, tmp_path, ASCEND_HOME_PATH=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"building for the CPU: ASCEND_HOME_PATH={tmp_path}: this is no CANN" in done.stdout


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
    path = tools(tmp_path, "cmake", "ninja")
    done = build_ext(ROOT, tmp_path / "out", PATH=path, CXX="")
    assert done.returncode == 0, done.stderr
    assert "no C++ compiler: installing without kernels" in done.stdout
    forced = build_ext(ROOT, tmp_path / "out", PATH=path, CXX="", PYRERANK_TARGET="cpu")
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
    for folder, suffixes in (
        ("csrc", {".h", ".cpp", ".asc"}),
        ("tests", {".py", ".cpp", ".h", ".cmake", ".in", ".txt"}),
    ):
        files = (ROOT / folder).rglob("*")
        wanted |= {str(f.relative_to(ROOT)) for f in files if f.suffix in suffixes}
    assert wanted <= names, sorted(wanted - names)
    assert not [name for name in names if name.endswith(".so") or name.startswith("build/")]
