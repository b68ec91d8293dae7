"""Finds which versions of packages and of CANN are installed, without importing any of them."""

from __future__ import annotations

import os
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("pyrerank", "torch", "torch_npu", "numpy", "tokenizers", "safetensors")
# the files that the toolkit's installer leaves, and where each of them says its version
CANN_FILES = {
    "ascend_toolkit_install.info": r"^version=(\S+)",
    "*/ascend_toolkit_install.info": r"^version=(\S+)",  # in aarch64-linux or x86_64-linux
    "version.cfg": r"_version=\[[^]:]*:([^]]+)\]",
    "*/version.info": r"^Version=(\S+)",
}


def installed(package: str) -> str | None:
    """The version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def packages() -> dict[str, str]:
    """The versions of pyrerank and of the packages that its results depend on."""
    return {package: installed(package) or "not installed" for package in PACKAGES}


def cann_home() -> str | None:
    """The folder of the CANN toolkit whose set_env.sh was sourced."""
    return os.environ.get("ASCEND_HOME_PATH") or os.environ.get("ASCEND_TOOLKIT_HOME")


def cann_version() -> str:
    """The version of that toolkit; "?" if none of its files says one."""
    home = cann_home()
    if not home:
        return "none (ASCEND_HOME_PATH is not set)"
    for place, pattern in CANN_FILES.items():
        for file in sorted(Path(home).glob(place)):
            if found := re.search(pattern, file.read_text(errors="replace"), re.M):
                return found.group(1)
    return "?"
