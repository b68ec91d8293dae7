"""bench/serve.py and bench/soak.py run, and their checks can fail."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.long]

BENCH = Path(__file__).parents[2] / "bench"
sys.path.append(str(BENCH))

import serve  # noqa: E402
import soak  # noqa: E402


def script(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_serve_measures_call_and_server(tmp_path):
    file = tmp_path / "serve.json"
    few = ["--requests", 6, "--clients", 3, "--documents", 2, "--rounds", 1]
    done = script("serve.py", "--model", "tiny", "--dtype", "float32", *few, "--json", file)
    assert done.returncode == 0, done.stderr
    assert "pairs/s" in done.stdout and "evenly, ideal" in done.stdout
    report = json.loads(file.read_text())
    server = report["servers"]["pyrerank"]
    ratio = server["pairs_per_second"] / report["offline_pairs_per_second"]
    assert server["over_offline"]["median"] == pytest.approx(ratio)
    for how in ("evenly", "at random"):
        assert 0 < server[how]["p50_ms"] <= server[how]["p99_ms"]


def test_the_ideal_server():
    assert serve.ideal(np.arange(5.0), 0.5).tolist() == [0.5] * 5
    # the second and third wait for the first
    assert serve.ideal(np.array([0, 0.5, 0.5, 9]), 1).tolist() == [1, 1.5, 2.5, 1]


def test_arrivals_have_the_rate_asked_for():
    for due in serve.arrivals(4000, 20).values():
        assert (np.diff(due) >= 0).all()
        assert len(due) / due[-1] == pytest.approx(20, rel=0.05)


def test_soak_finds_nothing_wrong():
    done = script("soak.py", "--minutes", 0.02)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing was wrong" in done.stdout and "good  200" in done.stdout


@pytest.mark.parametrize(
    ("status", "answer"),
    [(200, {"data": [{"score": 0.25}]}), (200, {"data": []}), (500, {"error": "no"})],
)
def test_soak_notices_a_wrong_answer(status, answer):
    soaked = soak.Soak(0, [{}], [[0.5]])
    soaked._check("good", 0, 200, {"data": [{"score": 0.5}]})
    assert not soaked.wrong
    soaked._check("good", 0, status, answer)
    assert len(soaked.wrong) == 1


def test_serve_measures_one_document_beside_many(tmp_path):
    file = tmp_path / "beside.json"
    few = ["--requests", 3, "--beside", 30, "--tokens", 5]
    done = script("serve.py", "--model", "tiny", "--dtype", "float32", *few, "--json", file)
    assert done.returncode == 0, done.stderr
    assert "3 requests of one document, beside such requests" in done.stdout
    report = json.loads(file.read_text())
    assert report["alone"]["p50_ms"] > 0 and report["beside_large"]["p99_ms"] > 0
