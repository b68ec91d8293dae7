"""Shows what `pyrerank.bench.kernels` measured, as tables and as a picture."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from pyrerank.bench import machine

NO_MEASUREMENT = (
    "Counts of the simulation: on one core, then cut for the cores of an Ascend 910B3. The last "
    "four columns, in us and without the launch, are estimated from them and measured nowhere."
)

# There is no background, and colours can be seen on light and on dark.
GREY, OURS, OTHERS = "#808080", "#2f8fd0", "#9a9a9a"
STYLE = {
    "font.size": 9,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY
    ),
}


def markdown(report: dict[str, Any]) -> str:
    """Makes a table of what was measured, and one of what was counted and estimated."""
    where, rows = report["machine"], report["rows"]
    lines = [
        f"{where['device']}; {where['processor']}, {where['threads']} threads; torch "
        f"{where['torch']}; {report['clock']}, median of {report['rounds']} rounds [quartiles]",
        "",
        *_times(rows, ""),
    ]
    if any("kernel_replayed_us" in row for row in rows):
        lines += ["", "Replayed in a graph:", "", *_times(rows, "_replayed")]
    if any("counts" in row for row in rows):
        lines += ["", NO_MEASUREMENT, "", *_counts(rows)]
    if where["simulated"]:
        lines += ["", machine.SIMULATED]
    return "\n".join(lines)


def _times(rows: list[dict[str, Any]], suffix: str) -> list[str]:
    lines = [
        "| kernel | B | H | dtype | kernel, us | eager, us | eager / kernel | GB/s | copy, GB/s | "
        "share of floor | eager operators |",
        "| --- " * 11 + "|",
    ]
    for row in rows:
        lines.append(
            line(
                *_case(row),
                _spread(row[f"kernel{suffix}_us"]),
                _spread(row[f"eager{suffix}_us"]),
                _spread(row[f"eager_over_kernel{suffix}"]),
                number(row[f"gb_per_s{suffix}"]),
                number(row["copy_gb_per_s"]),
                f"{row[f'share_of_floor{suffix}']['median']:.0%}",
                row["eager_operators"],
            )
        )
    return lines


def _counts(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| kernel | B | H | dtype | bytes | of least | repeats | of least | vector instructions | "
        "barriers | cores | bytes of least | memory, est. | copies, est. | vector, est. | "
        "work, est. |",
        "| --- " * 16 + "|",
    ]
    for row in rows:
        counted, chip = row["counts"], row["estimate_910b3"]
        lines.append(
            line(
                *_case(row),
                counted["bytes"],
                f"{counted['bytes'] / row['least_bytes']:.3f}",
                counted["vector_repeats"],
                f"{counted['vector_repeats'] / row['least_repeats']:.3f}"
                if row["least_repeats"]
                else "-",
                counted["vector_instructions"],
                counted["barriers"],
                chip["blocks"],
                f"{chip['bytes'] / chip['least_bytes']:.3f}",
                *(number(chip[f"{name}_us"]) for name in ("memory", "copies", "vector", "work")),
            )
        )
    return lines


def _case(row: dict[str, Any]) -> tuple[str, int, int, str]:
    tokens = f", {row['tokens']} tokens" if row["tokens"] > 1 else ""
    return row["kernel"] + tokens, row["B"], row["H"], row["dtype"]


def line(*cells: object) -> str:
    """Makes a row of a table in Markdown."""
    return f"| {' | '.join(map(str, cells))} |"


def _spread(values: dict[str, float]) -> str:
    median, low, high = (number(values[key]) for key in ("median", "q1", "q3"))
    return f"{median} [{low}, {high}]"


def number(value: float) -> str:
    """Formats a number with three digits, or with all that stand before the point."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def plot(report: dict[str, Any], file: Path) -> None:
    """Draws times over B for the widest rows, with a panel for each kernel."""
    import_module("matplotlib").use("Agg")
    pyplot: Any = import_module("matplotlib.pyplot")

    first, width = report["rows"][0]["dtype"], max(row["H"] for row in report["rows"])
    rows = [row for row in report["rows"] if row["H"] == width and row["dtype"] == first]
    kernels = list(dict.fromkeys(_case(row)[0] for row in rows))
    with pyplot.rc_context(STYLE):
        figure, panels = pyplot.subplots(
            1, len(kernels), figsize=(2.6 * len(kernels), 3.2), sharey=True, squeeze=False
        )
        for kernel, panel in zip(kernels, panels[0], strict=True):
            mine = [row for row in rows if _case(row)[0] == kernel]
            batches = [row["B"] for row in mine]
            for name, colour in (("eager", OTHERS), ("kernel", OURS)):
                spreads = [row[f"{name}_us"] for row in mine]
                panel.plot(batches, [s["median"] for s in spreads], "o-", color=colour, label=name)
                panel.fill_between(
                    batches,
                    [s["q1"] for s in spreads],
                    [s["q3"] for s in spreads],
                    color=colour,
                    alpha=0.3,
                )
            floors = [row["floor_us"] for row in mine]
            panel.plot(batches, floors, ":", color=GREY, label="copy of as many bytes")
            panel.set(xscale="log", yscale="log", xlabel="B", xticks=batches, xticklabels=batches)
            panel.minorticks_off()
            panel.grid(color=GREY, alpha=0.25)
            panel.spines[["top", "right"]].set_visible(False)
            panel.set_title(kernel, loc="left", fontsize=9)
        panels[0, 0].set_ylabel("us a call")
        panels[0, 0].legend(frameon=False)
        figure.suptitle(f"H = {width}, {first}; {report['machine']['device']}", fontsize=9)
        figure.tight_layout()
        figure.savefig(file, transparent=True, dpi=150)
        pyplot.close(figure)
