"""Shows what `engine.py` measured, as tables and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workloads import WORKLOADS

from pyrerank.bench import machine
from pyrerank.bench.report import GREY, OTHERS, OURS, STYLE, line, number

MIB = 1 << 20


def markdown(report: dict[str, Any]) -> str:
    """Makes a table of the engines' starts, and one of each workload."""
    where, peak, weights = report["machine"], report["peak_flops_per_second"], report["weights"]
    size = f"{weights['bytes'] / MIB:.0f} MiB"
    lines = [
        f"{report['model']}{' (random weights)' * report['random_weights']}, {report['dtype']}, "
        f"median of {report['rounds']} rounds (smallest to largest), scale {report['scale']:g}",
        "",
        f"{where['device']}; {where['processor']}, {where['threads']} threads; torch "
        f"{where['torch']}",
        "",
        f"Matrix product: {_spread(peak, 1e-12)} TFLOP/s. Weights: {size}, "
        f"read in {weights['read_seconds']:.2f} s.",
        "",
        "| engine | version | start to first score, s | starts | peak memory, MiB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for engine in report["engines"]:
        name = engine["engine"] + ", embedding" * (engine["task"] == "embed")
        first = _spread(engine["start_to_first_score_seconds"])
        memory = f"{engine['peak_bytes'] / MIB:.0f}"
        lines.append(line(name, engine["version"], first, engine["starts"], memory))
    for workload in dict.fromkeys(row["workload"] for row in report["rows"]):
        lines += ["", *_table([row for row in report["rows"] if row["workload"] == workload])]
    limit = report["difference_limit"]
    for workload, engine in report["too_different"]:
        lines += ["", f"FAIL: {workload}: scores of {engine} differ by more than {limit}"]
    if where["simulated"]:
        lines += ["", machine.SIMULATED]
    return "\n".join(lines)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    most = max(row["documents"] for row in rows)
    lines = [
        f"**{WORKLOADS[rows[0]['workload']].title.format(most)}**",
        "",
        "| engine | documents | pairs/s | pyrerank is faster | billed tokens | computed tokens | "
        "billed tokens/s | computed tokens/s | share of peak | peak memory, MiB | difference |",
        "| --- " * 11 + "|",
    ]
    for row in rows:
        computed, rate = "-", "-"
        if "computed_tokens" in row:
            computed = f"{row['computed_tokens']:.0f}"
            if not row["computed_is_least"]:
                computed += f" (least {row['least_tokens']:.0f})"
            rate = f"{row['computed_tokens_per_second']['median']:.0f}"
        memory = f"{row['peak_bytes'] / MIB:.0f}"
        if "device_bytes" in row:
            memory += f", device {row['device_bytes'] / MIB:.0f}"
        lines.append(
            line(
                row["engine"],
                row["documents"],
                _spread(row["pairs_per_second"]),
                f"{row['times']['median']:.2f} x",
                f"{row['billed_tokens']:.0f}",
                computed,
                f"{row['billed_tokens_per_second']['median']:.0f}",
                rate,
                f"{row['share_of_peak']['median']:.0%}",
                memory,
                f"{row['difference']:.4f}",
            )
        )
    return lines


def _spread(values: dict[str, float], unit: float = 1.0) -> str:
    median, low, high = (values[key] * unit for key in ("median", "min", "max"))
    return f"{number(median)} ({number(low)} to {number(high)})"


def plot(report: dict[str, Any], file: Path) -> None:
    """Draws pairs a second, with a panel for each workload."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["workload"] for row in report["rows"]))
    counts = [sum(row["workload"] == name for row in report["rows"]) for name in names]
    with pyplot.rc_context(STYLE):
        figure, panels = pyplot.subplots(
            len(names),
            figsize=(7, 0.7 * len(names) + 0.3 * sum(counts)),
            squeeze=False,
            height_ratios=counts,
        )
        for name, panel in zip(names, panels[:, 0], strict=True):
            rows = [row for row in report["rows"] if row["workload"] == name]
            speeds = [row["pairs_per_second"] for row in rows]
            middles = [speed["median"] for speed in speeds]
            below = [speed["median"] - speed["min"] for speed in speeds]
            above = [speed["max"] - speed["median"] for speed in speeds]
            ours = [row["engine"].startswith("pyrerank") for row in rows]
            bars = panel.barh(
                [row["engine"] for row in rows],
                middles,
                xerr=[below, above],
                color=[OURS if mine else OTHERS for mine in ours],
                ecolor=GREY,
            )
            panel.bar_label(bars, [number(middle) for middle in middles], padding=4)
            panel.margins(x=0.12)
            panel.invert_yaxis()
            panel.spines[["top", "right"]].set_visible(False)
            most = max(row["documents"] for row in rows)
            panel.set_title(WORKLOADS[name].title.format(most), loc="left", fontsize=10)
        panel.set_xlabel("pairs/s (inputs/s of embeddings)")
        figure.tight_layout()
        figure.savefig(file, transparent=True, dpi=150)
        pyplot.close(figure)
