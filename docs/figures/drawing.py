"""SVG as text, the same bytes for the same data: no background, and colours that do on light and
dark."""

from collections.abc import Sequence
from html import escape

from pyrerank.bench.report import GREY, OURS

OTHER = "#d08a2f"
LIGHT, DARK = "0.45", "0.9"  # opacities


def rect(x: float, y: float, width: float, height: float, colour: str, opacity: str = DARK) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'fill="{colour}" fill-opacity="{opacity}"/>'
    )


def frame(x: float, y: float, width: float, height: float) -> str:
    """An empty box."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" '
        f'fill="none" stroke="{GREY}" stroke-width="0.8"/>'
    )


def line(x1: float, y1: float, x2: float, y2: float) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="{GREY}" stroke-width="0.8"/>'
    )


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    """A level or upright line with a head at its end."""
    right, down = (x2 > x1) - (x2 < x1), (y2 > y1) - (y2 < y1)
    back_x, back_y = x2 - 8 * right, y2 - 8 * down
    corners = (
        (x2, y2),
        (back_x - 4 * down, back_y + 4 * right),
        (back_x + 4 * down, back_y - 4 * right),
    )
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    return line(x1, y1, back_x, back_y) + f'<polygon points="{points}" fill="{GREY}"/>'


def text(x: float, y: float, words: object, anchor: str = "start", style: str = "") -> str:
    """``style``: further attributes, such as font-weight."""
    style = f" {style}" if style else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(str(words))}</text>'
    )


def picture(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """A whole file; ``title`` is what a screen reader says."""
    lines = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" font-family="sans-serif" font-size="13" '
        f'fill="{GREY}">',
        f"<title>{escape(title)}</title>",
        *parts,
        "</svg>",
    )
    return "\n".join(lines) + "\n"


__all__ = [
    "DARK",
    "GREY",
    "LIGHT",
    "OTHER",
    "OURS",
    "arrow",
    "frame",
    "line",
    "picture",
    "rect",
    "text",
]
