"""Counts the lines of each package of pyrerank, and writes them into the table of engine.md.

python docs/count_lines.py
"""

import re
from pathlib import Path

PAGE = Path(__file__).parent / "engine.md"
SOURCE = Path(__file__).parents[1] / "pyrerank"
ENGINE = ("prompts", "media", "weights", "model", "engine", "devices", "kernels")
OTHERS = ("cli", "serve", "demo", "bench")
TABLE = re.compile(r"(?<=^<!-- begin: docs/count_lines.py -->\n).*?(?=^<!-- end -->$)", re.M | re.S)


def written(page: str) -> str:
    """The page with the table as it must be."""
    lines = {package: count(SOURCE / package) for package in (*ENGINE, *OTHERS)}
    rows = [
        "| package | lines |",
        "|---|--:|",
        *(f"| `{package}` | {lines[package]:,} |" for package in ENGINE),
        f"| together | {sum(lines[package] for package in ENGINE):,} |",
        *(f"| `{package}` | {lines[package]:,} |" for package in OTHERS),
        f"| modules outside of packages | {count(SOURCE):,} |",
    ]
    return TABLE.sub("\n".join(["", *rows, "", ""]), page)


def count(folder: Path) -> int:
    """The lines of a folder's modules, empty ones and comments among them."""
    return sum(file.read_text("utf-8").count("\n") for file in folder.glob("*.py"))


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")
