"""Makes lines of JSON, and the pictures that they name."""

import json
from pathlib import Path

PICTURES = Path(__file__).parents[1] / "data/pictures"
CAT, COFFEE, STARS = PICTURES / "cat.jpg", PICTURES / "coffee.jpg", PICTURES / "stars.mp4"


def jsonl(*items: object) -> bytes:
    return b"".join(json.dumps(item).encode() + b"\n" for item in items)
