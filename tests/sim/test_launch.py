"""Launches: threads, order of blocks, counters."""

import subprocess
import sys
import threading

import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROWS, WIDTH = 37, 515


@pytest.fixture
def rows():
    return np.random.default_rng(3).standard_normal((ROWS, WIDTH)).astype(np.float16)


def run(simulator, rows, **launch):
    return simulator.run("rows", rows, np.zeros(ROWS, np.float32), [ROWS, WIDTH], **launch)


def test_threads_and_blocks_change_no_bit(fast, strict, rows):
    wanted = run(strict, rows)
    np.testing.assert_allclose(wanted, (rows.astype(np.float64) ** 2).sum(1), rtol=1e-6)
    for blocks in (1, 2, 3, 37, 40, 48):
        for threads in (1, 2, 7):
            assert run(fast, rows, blocks=blocks, threads=threads).tobytes() == wanted.tobytes()
        for order in range(3):
            assert run(strict, rows, blocks=blocks, order=order).tobytes() == wanted.tobytes()


def test_launches_from_several_threads(fast, rows):
    wanted = run(fast, rows).tobytes()
    wrong = []

    def work():
        for _ in range(50):
            if run(fast, rows, blocks=8, threads=3).tobytes() != wanted:
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_one_thread_starts_no_thread():
    """In a fresh process, where nothing has filled OpenMP's pool."""
    code = """
import os, torch
from pyrerank.kernels import ops
def threads(count, rows):
    torch.set_num_threads(count)
    ops.score_head(hidden[:rows], torch.arange(rows, dtype=torch.int32), weight, 1e-6, weight)
    return len(os.listdir("/proc/self/task"))
torch.set_num_threads(1)
hidden, weight = torch.ones(64, 4096), torch.ones(4096)
before = len(os.listdir("/proc/self/task"))
print(threads(1, 64) - before, threads(3, 1) - before, threads(3, 64) - before)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["0", "0", "2"]


def test_an_exception_on_a_helper_reaches_the_caller(fast, broken_rule):
    x = np.zeros(8 * 40, np.float32)
    with pytest.raises(broken_rule, match="no free buffer"):
        fast.run("no_free_buffer_wrong", x, x.copy(), [40], blocks=8, threads=3)


def test_counters_are_exact(libraries, rows):
    """For each row: a copy in and one out, Cast, Mul and ReduceSum of 515 floats, their flags."""
    repeats = -(-WIDTH // 64)
    for name, simulator in libraries.items():
        simulator.counters()
        run(simulator, rows, blocks=5, threads=2)
        run(simulator, rows, blocks=5, threads=2)
        assert simulator.counters() == {
            "launches": 2,
            "blocks": 10,
            "gm_read_bytes": 2 * ROWS * WIDTH * 2,
            "gm_write_bytes": 2 * ROWS * 4,
            "copies": 2 * ROWS * 2,
            "vector_instructions": 2 * ROWS * 3,
            "vector_repeats": 2 * ROWS * 3 * repeats,
            "barriers": 2 * ROWS * 3,
            "flags": 2
            * ROWS
            * (4 + 3),  # two queues, each EnQue and FreeTensor; ReduceSum's V_S, S_V and S_MTE3
            "ub_peak_bytes": 2 * 1056 + 32 + 2080 + 64,
        }, name
        assert simulator.counters()["launches"] == 0
