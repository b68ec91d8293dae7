"""Builds for the tests, with CMake and Ninja."""

import fcntl
import subprocess
from pathlib import Path


def build(source: Path, folder: Path, *options: str) -> Path:
    """Builds what changed of ``source`` in ``folder``; processes that want the same wait."""
    folder.mkdir(parents=True, exist_ok=True)
    configure = ["cmake", "-G", "Ninja", "-S", str(source), "-B", str(folder), *options]
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed
        for command in (configure, ["cmake", "--build", str(folder), "-j", "2"]):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                raise RuntimeError(f"{' '.join(command)}:\n{done.stdout[-6000:]}{done.stderr}")
    return folder
