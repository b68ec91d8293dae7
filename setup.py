"""Builds pyrerank's two extensions with CMake. No torch, no network.

  pyrerank._C      kernels for the host's processor: always the same build, with or without CANN.
  pyrerank._C_npu  kernels compiled by CANN: for the npu target alone, and loaded where an NPU is
                   used, because it needs CANN's libraries.

Environment:
  PYRERANK_TARGET    cpu or npu. Default: npu where a CANN toolkit is found, else cpu.
  PYRERANK_SOC       chip for the npu target, such as Ascend910B3. Default: SOC_VERSION, else what
                     CANN's runtime or npu-smi says of the first NPU.
  PYRERANK_PORTABLE  1: code for any processor of this kind instead of this machine's.
The npu target also reads ASCEND_HOME_PATH, which the toolkit's set_env.sh sets.
"""

import functools
import os
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from typing import NoReturn

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent

INSTALL_CANN = (
    "Install Ascend-cann-toolkit (8.3.RC1 or newer), then run\n"
    "    source /usr/local/Ascend/cann/set_env.sh    "
    "# before 8.5: /usr/local/Ascend/ascend-toolkit/set_env.sh"
)
WITHOUT_CANN = "PYRERANK_TARGET=cpu installs without kernels for the NPU."
# the oldest whose torch_npu comes for torch 2.7, which pyrerank needs
OLDEST_CANN = (8, 3)

# Atlas A2 and A3: what CANN's ascendc.cmake builds as c220, CMake's language ASC as dav-2201.
SOCS = [f"Ascend910B{n}" for n in ("1", "2", "2C", "3", "4", "4-1")]
SOCS += [f"Ascend910_{n}" for n in ("9362", "9372", "9381", "9382", "9391", "9392")]
OTHER_SOCS = {  # by the start of their names
    "ascend310p": "it has no bfloat16 and another vector unit (CANN's m200, dav-2002)",
    "ascend310b": "it has another vector unit (CANN's m300)",
    "ascend950": "it has another vector unit (dav-3510), for which the kernels are not checked",
    "ascend350": "it has another vector unit (dav-3510), for which the kernels are not checked",
    "ascend910": "it is no chip of Atlas A2 or A3, and the first 910 has no bfloat16 (CANN's c100)",
}

ASK_RUNTIME = """
import ctypes, sys
acl = ctypes.CDLL(sys.argv[1])
acl.aclInit(None)
acl.aclrtGetSocName.restype = ctypes.c_char_p
print((acl.aclrtGetSocName() or b"").decode())
"""


def fail(message: str) -> NoReturn:
    sys.exit(f"pyrerank: {message}")


# ---- CANN ---------------------------------------------------------------------------------------


def compiles_kernels(home: Path) -> bool:
    places = ("compiler/tikcpp/ascendc_kernel_cmake", "tools/tikcpp/ascendc_kernel_cmake")
    places += ("ascendc_devkit/tikcpp/samples/cmake",)
    cmake = [home / place / "ascendc.cmake" for place in places]
    cmake += [home / "lib64/cmake/asc-config.cmake"]
    return (home / "include/acl/acl.h").is_file() and any(f.is_file() for f in cmake)


def find_cann() -> tuple[Path | None, str]:
    """The CANN toolkit of this shell, or why there is none."""
    for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"):
        if not (value := os.environ.get(name)):
            continue
        home = Path(value)
        if compiles_kernels(home):
            return home, ""
        if not home.is_dir():
            return None, f"{name}={home}: there is no such folder.\n{INSTALL_CANN}"
        return None, (
            f"{name}={home}: this is no CANN toolkit: it lacks Ascend C's ascendc.cmake or "
            f"include/acl/acl.h.\nThe nnrt and nnae packages run kernels but compile none.\n"
            f"{INSTALL_CANN}"
        )
    for root in (Path("/usr/local/Ascend"), Path.home() / "Ascend"):
        for home in (root / "cann", root / "ascend-toolkit/latest", root / "latest"):
            if compiles_kernels(home):
                script = next(
                    (p for p in (home, home.parent) if (p / "set_env.sh").is_file()), home
                )
                return None, (
                    f"the CANN toolkit in {home} is not set up in this shell. Run\n"
                    f"    source {script}/set_env.sh"
                )
    return None, f"no CANN toolkit was found.\n{INSTALL_CANN}"


def find_version(home: Path) -> str:
    """The toolkit's version, such as 8.3.RC1 or 9.0.0."""
    infos = [
        *home.glob("*-linux/ascend_toolkit_install.info"),
        home / "ascend_toolkit_install.info",
    ]
    for info in filter(Path.is_file, infos):
        if found := re.search(r"^version=(\d+\.\d\S*)", info.read_text(errors="replace"), re.M):
            return found[1]
    cfg = home / "version.cfg"
    text = cfg.read_text(errors="replace") if cfg.is_file() else ""
    if found := re.search(r"_version=\[[^]:]*:(\d+\.[^]]+)\]", text):
        return found[1]
    fail(
        f"the CANN toolkit in {home} does not say its version (looked into "
        f"*-linux/ascend_toolkit_install.info and version.cfg): reinstall the toolkit."
    )


def check_version(home: Path, version: str) -> None:
    major, minor = re.findall(r"\d+", version)[:2]
    if (int(major), int(minor)) < OLDEST_CANN:
        fail(
            f"CANN {version} in {home} is too old: torch_npu for torch 2.7, which pyrerank needs, "
            f"wants 8.3.RC1 or newer.\n{INSTALL_CANN}\n{WITHOUT_CANN}"
        )


# ---- the chip -----------------------------------------------------------------------------------


def ask_runtime(home: Path) -> str:
    """What CANN's runtime calls the NPU; empty where there is none."""
    driver = Path("/usr/local/Ascend/driver/lib64")
    places = [home / "lib64", driver, driver / "common", driver / "driver"]
    paths = [str(place) for place in places] + [os.environ.get("LD_LIBRARY_PATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", ASK_RUNTIME, home / "lib64/libascendcl.so"],
        env=os.environ | {"LD_LIBRARY_PATH": ":".join(filter(None, paths))},
        capture_output=True,
        text=True,
    )
    lines = done.stdout.split()
    return lines[-1] if done.returncode == 0 and lines else ""


def ask_npu_smi() -> str:
    """What npu-smi calls the first NPU; empty where there is none."""
    if not shutil.which("npu-smi"):
        return ""

    def say(*arguments: str) -> str:
        return subprocess.run(
            ["npu-smi", "info", *arguments], capture_output=True, text=True
        ).stdout

    listed = re.search(r"^\|\s*(\d+)\s+(\w[\w-]*)\s*\|", say(), re.M)  # | 0     910B3   | OK ...
    if not listed:
        return ""
    npu, name = listed.groups()
    if name.lower() in ("ascend910", "910"):  # A3 tells its chips apart here only
        board = dict(
            re.findall(r"^\s*([\w ]+?)\s*:\s*(\S+)", say("-t", "board", "-i", npu, "-c", "0"), re.M)
        )
        name = f"{board.get('Chip Name', name)}_{board.get('NPU Name', '')}"
    return name if name.startswith("Ascend") else f"Ascend{name}"


def find_soc(home: Path) -> str:
    """The chip's name as CANN's build wants it."""
    named = os.environ.get("PYRERANK_SOC") or os.environ.get("SOC_VERSION")
    named = named or ask_runtime(home) or ask_npu_smi()
    if not named:
        fail(
            "for which chip? Neither CANN's runtime nor npu-smi sees an NPU. Set PYRERANK_SOC, "
            "e.g. PYRERANK_SOC=Ascend910B3 (npu-smi info says it on the machine with the NPU)."
        )
    known = {soc.lower(): soc for soc in SOCS}
    if soc := known.get(named.lower()):
        return soc
    reasons = (why for start, why in OTHER_SOCS.items() if named.lower().startswith(start))
    fail(
        f"no kernels for {named}: {next(reasons, 'no such chip is known')}.\n"
        f"They are written for Atlas A2 and A3; PYRERANK_SOC names the chip to compile for: "
        f"{', '.join(SOCS)}.\n{WITHOUT_CANN}"
    )


# ---- the build ----------------------------------------------------------------------------------


@functools.cache
def choose_target() -> tuple[str, Path | None]:
    """cpu, or npu and its toolkit."""
    target = os.environ.get("PYRERANK_TARGET", "")
    if target not in ("", "cpu", "npu"):
        fail(f"PYRERANK_TARGET: got {target!r}, wanted cpu or npu.")
    if target == "cpu":
        return target, None
    home, missing = find_cann()
    if home:
        return "npu", home
    if target == "npu":
        fail(f"PYRERANK_TARGET=npu: {missing}")
    if "no CANN toolkit was found" not in missing:
        print(f"pyrerank: building for the CPU: {missing}")
    return "cpu", None


def find_compiler() -> str | None:
    names = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    return next((path for name in names if name and (path := shutil.which(name))), None)


def find_tool(name: str, remedy: str) -> str:
    return shutil.which(name) or fail(f"the build needs {name}: {remedy}")


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        target, home = choose_target()
        destination = Path(self.get_ext_fullpath(ext.name))
        destination.unlink(missing_ok=True)  # an earlier build's
        if not find_compiler():
            if home or os.environ.get("PYRERANK_TARGET"):
                fail(f"target {target}: needs a C++17 compiler (g++ 12 or newer): none was found.")
            if ext.name == "pyrerank._C":
                print("pyrerank: no C++ compiler: installing without kernels, torch runs instead.")
            return
        cmake = find_tool("cmake", "pip install cmake")
        if ext.name == "pyrerank._C":
            self.build(destination, "cpu", cmake, "Ninja", find_tool("ninja", "pip install ninja"))
        elif home:
            version = find_version(home)
            check_version(home, version)
            soc = find_soc(home)
            remedy = "apt install make, or your system's way (CANN's build uses it)"
            self.build(
                destination,
                "npu",
                cmake,
                "Unix Makefiles",
                find_tool("make", remedy),
                PYRERANK_SOC=soc,
                PYRERANK_CANN=home,
                PYRERANK_CANN_VERSION=version,
            )

    def build(
        self,
        destination: Path,
        target: str,
        cmake: str,
        generator: str,
        make: str,
        **options: object,
    ) -> None:
        """Builds the module of a target and puts it at ``destination``."""
        tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
        environment = dict(os.environ)
        if home := options.get("PYRERANK_CANN"):
            environment["ASCEND_HOME_PATH"] = str(home)
            # a folder for each toolkit
            tag = f"{options['PYRERANK_CANN_VERSION']}-{zlib.crc32(bytes(home)):08x}-{tag}"
        # The build folder outlives pip's throw-away environment, so no object may depend on a path
        # of that: each new path to pybind11 would recompile everything.
        build = ROOT / "build" / f"{target}-{tag}"
        headers = ROOT / "build" / f"pybind11-{pybind11.__version__}"
        if not headers.exists():
            shutil.copytree(pybind11.get_include(), headers)
        options |= {
            "CMAKE_MAKE_PROGRAM": make,
            "Python_EXECUTABLE": sys.executable,
            "PYRERANK_PYBIND11": headers,
            "PYRERANK_TARGET": target,
            "PYRERANK_PORTABLE": "ON" if os.environ.get("PYRERANK_PORTABLE") == "1" else "OFF",
        }
        defines = [f"-D{name}={value}" for name, value in options.items()]
        module = destination.name.partition(".")[0]
        for command in (
            [cmake, "-G", generator, "-S", ROOT, "-B", build, *defines],
            [cmake, "--build", build, "--target", module],
        ):
            if subprocess.run(command, env=environment).returncode != 0:
                fail(f"target {target}: the build in {build} failed; CMake's output says why.")
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(build / destination.name, destination)


# optional: where build_extension leaves no module, setuptools does not miss it.
# The one for the NPU comes first: what it lacks is said before anything was compiled.
setup(
    ext_modules=[
        Extension(f"pyrerank.{name}", sources=[], optional=True) for name in ("_C_npu", "_C")
    ],
    cmdclass={"build_ext": CMakeBuild},
)
