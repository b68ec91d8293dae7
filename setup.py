"""Builds one extension, pyrerank._C, with CMake and ninja. No torch, no network.

Environment:
  PYRERANK_TARGET    cpu or npu. Default: npu where a CANN toolkit is found, else cpu.
  PYRERANK_SOC       chip for the npu target, such as Ascend910B3. Default: SOC_VERSION, else what
                     npu-smi says.
  PYRERANK_PORTABLE  1: code for any processor of this kind instead of this machine's.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def find_cann() -> Path | None:
    """The CANN toolkit: where its set_env.sh says, else where it is usually installed."""
    named = [os.environ.get(name) for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")]
    usual = ["/usr/local/Ascend/ascend-toolkit/latest", "/usr/local/Ascend/latest"]
    for place in filter(None, [*named, *usual]):
        if (Path(place) / "include" / "acl" / "acl.h").is_file():
            return Path(place)
    return None


def find_soc() -> str:
    """The chip's name as CANN's build wants it."""
    for name in ("PYRERANK_SOC", "SOC_VERSION"):
        if os.environ.get(name):
            return os.environ[name]
    if shutil.which("npu-smi"):
        listing = subprocess.run(["npu-smi", "info"], capture_output=True, text=True).stdout
        if chip := re.search(r"\b(910B\d(?:-\d|C)?|910_\d{4})\b", listing):
            return "Ascend" + chip.group(1)
    sys.exit("pyrerank: npu target: which chip? Set PYRERANK_SOC, e.g. PYRERANK_SOC=Ascend910B3.")


def choose_target() -> str:
    target = os.environ.get("PYRERANK_TARGET") or ("npu" if find_cann() else "cpu")
    if target not in ("cpu", "npu"):
        sys.exit(f"pyrerank: PYRERANK_TARGET: got {target!r}, wanted cpu or npu.")
    if target == "npu" and not find_cann():
        sys.exit(
            "pyrerank: PYRERANK_TARGET=npu needs the CANN toolkit, and none was found.\n"
            "Install Ascend-cann-toolkit (8.1 or newer), then run\n"
            "    source /usr/local/Ascend/ascend-toolkit/set_env.sh"
        )
    return target


def find_compiler() -> str | None:
    names = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    return next((path for name in names if name and (path := shutil.which(name))), None)


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        target = choose_target()
        if not find_compiler():
            if os.environ.get("PYRERANK_TARGET"):
                sys.exit(
                    f"pyrerank: PYRERANK_TARGET={target} needs a C++17 compiler (g++ 12 or newer)."
                )
            print("pyrerank: no C++ compiler: installing without kernels, PyTorch runs instead.")
            return
        # The build folder outlives pip's throw-away environment, so no object may depend on a path
        # of that: each new path to pybind11 would recompile everything.
        tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
        build = ROOT / "build" / f"{target}-{tag}"
        headers = ROOT / "build" / f"pybind11-{pybind11.__version__}"
        if not headers.exists():
            shutil.copytree(pybind11.get_include(), headers)
        cmake, ninja = shutil.which("cmake"), shutil.which("ninja")
        if not (cmake and ninja):
            sys.exit("pyrerank: the build needs cmake and ninja: pip install cmake ninja")
        options = {
            "CMAKE_MAKE_PROGRAM": ninja,
            "Python_EXECUTABLE": sys.executable,
            "PYRERANK_PYBIND11": headers,
            "PYRERANK_TARGET": target,
            "PYRERANK_PORTABLE": "ON" if os.environ.get("PYRERANK_PORTABLE") == "1" else "OFF",
        }
        if target == "npu":
            options |= {"PYRERANK_CANN": find_cann(), "PYRERANK_SOC": find_soc()}
        defines = [f"-D{name}={value}" for name, value in options.items()]
        subprocess.run([cmake, "-G", "Ninja", "-S", ROOT, "-B", build, *defines], check=True)
        subprocess.run([cmake, "--build", build, "--target", "_C"], check=True)
        destination = Path(self.get_ext_fullpath(ext.name))
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}", destination)


# optional: where build_extension leaves no module, setuptools does not miss it
setup(
    ext_modules=[Extension("pyrerank._C", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
