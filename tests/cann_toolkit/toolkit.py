"""Lays the simulated toolkit over a home of the simulated CANN. See README.md."""

import platform
import shutil
import subprocess
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
ROOT = SOURCES.parents[1]
BUILD = ROOT / "build"


def lay(home: Path, version: str) -> Path:
    """A home that passes for the toolkit of this version of CANN; nothing changes the given one."""
    libraries = BUILD / "cann-toolkit"
    configure = ["cmake", "-G", "Ninja", "-S", SOURCES, "-B", libraries, f"-DCANN_HOME={home}"]
    for command in (configure, ["cmake", "--build", libraries, "-j", "2"]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(
                f"building the simulated toolkit failed:\n{done.stdout[-6000:]}{done.stderr}"
            )
    toolkit = BUILD / f"cann-toolkit-{version}"
    shutil.rmtree(toolkit, ignore_errors=True)
    machine = toolkit / f"{platform.machine()}-linux"
    machine.mkdir(parents=True)
    (machine / "ascend_toolkit_install.info").write_text(
        f"package_name=Ascend-cann-toolkit\nversion={version}\n"
    )
    for name in ("include", "opp", "runtime"):
        (toolkit / name).symlink_to(home / name)
    (machine / "include").symlink_to(home / "include")
    (toolkit / "lib64").mkdir()
    for library in (*(home / "lib64").iterdir(), *(libraries / "lib64").iterdir()):
        (toolkit / "lib64" / library.name).symlink_to(library)

    tikcpp = toolkit / "compiler/tikcpp"
    tikcpp.mkdir(parents=True)
    (tikcpp / "tikcfw").symlink_to(ROOT / "csrc/sim")
    (tikcpp / "runtime").symlink_to(SOURCES / "runtime")
    if version.startswith("8."):
        (tikcpp / "ascendc_kernel_cmake").symlink_to(SOURCES / "8")
    else:
        (tikcpp / "ascendc_kernel_cmake").symlink_to(SOURCES / "9")
        (toolkit / "lib64/cmake").mkdir()
        (toolkit / "lib64/cmake/asc-config.cmake").symlink_to(SOURCES / "9/asc-config.cmake")
        (machine / "ccec_compiler/bin").mkdir(parents=True)
        (machine / "ccec_compiler/bin/bisheng").symlink_to(SOURCES / "9/bisheng")
    return toolkit
