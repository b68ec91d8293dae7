"""`pyrerank bench kernels` counts right, its report is sane, and kernels move no byte too many."""

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native import DTYPES, gather, pool, random_rows, random_weights, score

from pyrerank import _C
from pyrerank.bench import kernels as bench_kernels
from pyrerank.bench import report as bench_report
from pyrerank.bench.kernels import Case
from pyrerank.devices.select import resolve
from pyrerank.kernels import extension
from pyrerank.kernels.calls import DTYPES as NAMES
from pyrerank.kernels.calls import ELEMENTS_PER_THREAD, POOL_MODES

pytestmark = pytest.mark.slow


# ---- bytes --------------------------------------------------------------------------------------


def moved(call) -> int:
    _C.reset_counters()
    call()
    counters = _C.counters()
    assert counters["launches"] == 1
    return counters["gm_read_bytes"] + counters["gm_write_bytes"]


@given(data=st.data())
@settings(max_examples=150)
def test_no_kernel_moves_more_than_it_must(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    width = 16 * data.draw(st.integers(1, 512))
    count, cores = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 48))
    length = data.draw(st.integers(1, 12))
    hidden = random_rows(count * length, width, dtype)
    weight_dtype = data.draw(st.sampled_from([dtype, torch.float32]))
    gain, w = random_weights(width, weight_dtype)
    cu = torch.arange(0, count * length + 1, length, dtype=torch.int32)
    row, blocks = width * dtype.itemsize, min(count, cores)
    # ids, results and rows once; weights once a block, as blocks share nothing
    least = 4 * count + 2 * count * row
    assert moved(lambda: gather(_C, hidden, cu[1:] - 1, False, cores)) <= 1.05 * least
    assert moved(lambda: gather(_C, hidden, cu, True, cores)) <= 1.05 * (least + 4 * blocks)
    weights = width * (weight_dtype.itemsize + 4)
    least = count * (row + 4 + 4 + 4) + blocks * weights
    assert moved(lambda: score(_C, hidden, cu[1:] - 1, gain, w, 0.0, cores)) <= 1.05 * least

    mode = data.draw(st.sampled_from(POOL_MODES))
    dim = data.draw(st.integers(1, width))
    tokens = length if mode == "mean" else 1
    least = count * (tokens * row + dim * dtype.itemsize + 4) + blocks * (
        dim * weight_dtype.itemsize + 4
    )
    assert moved(lambda: pool(_C, hidden, cu, gain, mode, dim, True, cores)) <= 1.05 * least
    # without a norm no more of a row is needed than its result has, in blocks of 32 bytes
    part = -(-dim * dtype.itemsize // 32) * 32
    least = count * (tokens * part + dim * dtype.itemsize + 4) + 4 * blocks
    assert moved(lambda: pool(_C, hidden, cu, None, mode, dim, True, cores)) <= 1.05 * least


@given(
    kernel=st.sampled_from(bench_kernels.KERNELS),
    batch=st.integers(1, 130),
    width=st.sampled_from([64, 528]),
    dtype=st.sampled_from(list(NAMES.values())),
    tokens=st.integers(1, 11),
)
@settings(max_examples=40)
def test_the_estimate_counts_what_a_launch_on_all_cores_does(kernel, batch, width, dtype, tokens):
    case = Case(kernel, batch, width, dtype, tokens)
    name, _, mode = kernel.partition(" ")
    run, _ = case.calls(torch.device("cpu"))
    hidden = run.args[0]
    threads = bench_kernels.CORES
    if name == "last_token_gather":
        bytes_of = moved(lambda: gather(_C, hidden, run.keywords["index"], False, threads))
    elif name == "score_head":
        _, index, gain, _, w = run.args
        bytes_of = moved(lambda: score(_C, hidden, index, gain, w, 0.0, threads))
    else:
        _, cu, gain, *_ = run.args
        bytes_of = moved(lambda: pool(_C, hidden, cu, gain, mode, threads=threads))
    whole = _C.counters()
    chip = bench_kernels.estimate(case)
    assert chip["bytes"] == bytes_of <= 1.05 * chip["least_bytes"]
    assert chip["blocks"] == whole["blocks"] == min(batch, threads)
    assert chip["work_us"] == max(chip[f"{name}_us"] for name in ("memory", "copies", "vector"))


def test_counting_leaves_the_threads_alone_and_uses_one() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        case = Case("fused_pool mean", 64, 4096, "bfloat16", 16)
        assert case.batch * case.tokens * case.width > 3 * ELEMENTS_PER_THREAD
        counted = bench_kernels.counts(case)
        assert counted["blocks"] == 1 and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert counted["bytes"] == case.least_bytes()


# ---- what is measured ---------------------------------------------------------------------------


def test_operators_that_compute_are_counted() -> None:
    x = torch.ones(4, 4)
    assert bench_kernels.operators(lambda: x.view(16)[2:].unsqueeze(0)) == 0
    assert bench_kernels.operators(lambda: torch.empty(3)) == 0
    assert bench_kernels.operators(lambda: (x.T + 1).mul_(2).to(torch.bfloat16)) == 3
    for kernel in bench_kernels.KERNELS:
        ours, eager = Case(kernel, 2, 64, "bfloat16", 3).calls(torch.device("cpu"))
        assert bench_kernels.operators(ours) == 1 < bench_kernels.operators(eager)


@pytest.mark.parametrize("kernel", bench_kernels.KERNELS)
def test_kernel_and_twin_compute_the_same(kernel: str) -> None:
    ours, eager = Case(kernel, 5, 528, "float32", 3).calls(torch.device("cpu"))
    torch.testing.assert_close(ours(), eager(), rtol=1e-5, atol=1e-5)


def test_runs_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(run, calls, place):
        seen.append(run)
        return 1.0 + len(seen)

    monkeypatch.setattr(bench_kernels, "_microseconds", spy)
    monkeypatch.setattr(bench_kernels, "_calls", lambda run, place: 1)
    row = bench_kernels.measure(Case("score_head", 2, 64, "float32", 1), resolve("cpu"), 4)
    rounds = [seen[i : i + 3] for i in range(0, len(seen), 3)]
    assert len(rounds) == 4 + bench_kernels.WARM_UP
    assert all(a == b[::-1] for a, b in pairwise(rounds))
    # copies of LEAST_COPY bytes, the kernel's share of them in proportion
    copy_us = [2 + i for i, run in enumerate(seen) if run is rounds[0][0]][bench_kernels.WARM_UP :]
    share = row["least_bytes"] / bench_kernels.LEAST_COPY
    want = bench_kernels.quartiles([share * us for us in copy_us])["median"]
    assert row["floor_us"] == pytest.approx(want)


def test_one_thread_is_timed_by_its_own_clock() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert bench_kernels.clock() == "process_time"
        torch.set_num_threads(2)
        assert bench_kernels.clock() == "perf_counter"
    finally:
        torch.set_num_threads(before)


def test_nothing_to_measure(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(extension, "_C", None)
    from pyrerank.cli.main import main

    assert main(["bench", "kernels", "--device", "cpu"]) == 2
    assert "device cpu: the extension was not built" in capsys.readouterr().err


# ---- the report ---------------------------------------------------------------------------------


def test_the_command_prints_tables_and_writes_json(tmp_path: Path) -> None:
    options = ["--device", "cpu", "--dtype", "float32", "--json", tmp_path / "out.json"]
    options += ["--batch", "1", "3", "--hidden", "64", "--tokens", "2", "--rounds", "3"]
    command = [sys.executable, "-m", "pyrerank", "bench", "kernels", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert len(report["rows"]) == 2 * len(bench_kernels.KERNELS)
    for row in report["rows"]:
        for name in ("kernel_us", "eager_us", "eager_over_kernel", "share_of_floor"):
            assert 0 < row[name]["q1"] <= row[name]["median"] <= row[name]["q3"]
        assert row["counts"]["bytes"] == row["least_bytes"]
        assert row["counts"]["launches"] == 1
        name, tokens = row["kernel"], row["tokens"]
        assert tokens == (2 if name == "fused_pool mean" else 1)
        label = f"| {name}{', 2 tokens' * (tokens == 2)} | {row['B']} | 64 | float32 |"
        assert done.stdout.count(label) == 2
    assert bench_report.NO_MEASUREMENT in done.stdout
    assert report["machine"]["torch"] == torch.__version__


def test_the_plot_has_no_background(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    arguments = ["--device", "cpu", "--batch", "1", "2", "--hidden", "64", "--rounds", "2"]
    bench_kernels.main([*arguments, "--plot", str(tmp_path / "out.svg")])
    text = (tmp_path / "out.svg").read_text()
    assert "fill: #ffffff" not in text and "fill: #000000" not in text
    assert text.count("<!-- last_token_gather -->") == 1


def test_least_bytes_by_hand() -> None:
    case = Case("score_head", 3, 64, "bfloat16", 1)
    assert case.least_bytes() == 3 * (128 + 12) + 128 + 256
    assert case.least_bytes(2) == 3 * (128 + 12) + 2 * (128 + 256)
    assert case.least_bytes(40) == 3 * (128 + 12) + 3 * (128 + 256)
    case = replace(case, kernel="last_token_gather")
    assert case.least_bytes(40) == 3 * (2 * 128 + 4)
    case = Case("fused_pool mean", 3, 64, "float32", 5)
    assert case.least_bytes() == 3 * 5 * 256 + 3 * 256 + 256 + 4 * 4
    assert case.least_repeats() == 3 * (5 * 3 - 1 + 3)


@pytest.mark.parametrize("kernel", bench_kernels.KERNELS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_little_vector_work_comes_on_top_of_the_least(kernel: str, dtype: str) -> None:
    case = Case(kernel, 32, 4096, dtype, 4)
    work = bench_kernels.counts(case)["vector_repeats"]
    # folding sums, short arithmetic; a row of NaN that last_token_gather holds ready
    assert case.least_repeats() < work < 1.3 * case.least_repeats() + 65
