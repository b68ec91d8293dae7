"""The scripts for an owner of an NPU, as processes, over the simulated CANN or on NPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from platforms import hardware

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Of the scripts' processes."""
    kept = {k: v for k, v in os.environ.items() if k != "TASK_QUEUE_ENABLE"}
    if hardware:
        return kept
    import simulation

    return kept | simulation.environment(simulation.build())


@pytest.fixture
def script(environment, tmp_path):
    """Runs one; returns its status, what it printed, and its report."""

    def run(name: str, *arguments: object, **variables: str):
        command = [sys.executable, str(ROOT / "bench" / name), *map(str, arguments)]
        done = subprocess.run(
            command, env=environment | variables, cwd=tmp_path, capture_output=True, text=True
        )
        (file,) = tmp_path.glob("*.json")
        return done.returncode, done.stdout, json.loads(file.read_text("utf-8")), done.stderr

    return run


@pytest.fixture
def simulated() -> None:
    if hardware:
        pytest.skip("needs the simulated CANN")


def by_status(report: dict, status: str) -> list[str]:
    return [f"{c['group']}: {c['name']}" for c in report["checks"] if c["status"] == status]


def test_every_check_passes(script, tmp_path):
    status, printed, report, _ = script("check_npu.py", "--quick")
    assert by_status(report, "FAIL") == []
    assert status == 0
    assert len(by_status(report, "PASS")) > 115
    assert report["machine"]["simulated"] is not hardware
    assert ("SIMULATED" in printed) is not hardware
    left_out = [name for name in by_status(report, "SKIP") if "0.6B" not in name]
    assert set(left_out) <= {
        "environment: npu-smi",
        "environment: extension",  # built without CANN, which only a simulation can run
        "environment: runtime",
    }
    text = (tmp_path / "pyrerank-npu-report.txt").read_text("utf-8")
    assert all(line in text for line in printed.splitlines()[:-2])
    assert str(Path.home()) not in text and str(ROOT) not in json.dumps(report)


def test_what_fails_on_the_device_fails_its_checks_alone(script, simulated):
    status, printed, report, _ = script(
        *("check_npu.py", "--quick", "--groups", "kernels", "operators"),
        CANN_SIM_FAULT="score_head_float16,aclnnSwiGlu",
    )
    assert status == 1
    failed = by_status(report, "FAIL")
    assert "kernels: score_head, float16, eager" in failed
    assert "kernels: score_head, float16, replayed" in failed
    swiglu = ["operators: swiglu, bfloat16", "operators: swiglu, float32"]
    assert [name for name in failed if "score_head, float16, " not in name] == swiglu
    assert len(by_status(report, "PASS")) > 60
    (first, *_) = (c for c in report["checks"] if c["status"] == "FAIL")
    assert "score_head_float16" in first["figure"] + first["log"]
    assert f"FAIL  kernels: score_head, float16, eager: {first['figure']}" in printed


def test_a_wrong_step_of_the_tower_fails_what_needs_it(script, simulated):
    status, _, report, _ = script(
        *("check_npu.py", "--quick", "--groups", "vision"), CANN_SIM_FAULT="aclnnGeluV2:0:1000"
    )
    assert status == 1
    failed = by_status(report, "FAIL")
    needing = ("gelu", "tower's pass", "tiny-VL")
    assert len(failed) == 4 + 2 + 4 and all(any(n in name for n in needing) for name in failed)
    passed = by_status(report, "PASS")
    assert "vision: attention of one picture, heads of 72" in passed
    assert "vision: index_copy_ in a graph, bfloat16" in passed


def test_no_device(script, simulated):
    status, printed, _, _ = script("check_npu.py", CANN_SIM_DEVICES="0")
    assert status == 2
    assert "FAIL  environment: device: DeviceError" in printed and "kernels:" not in printed


def test_replay_reports_both_and_says_what_it_ran_on(script, tmp_path):
    options = ["--documents", 1, 2, "--tokens", 20, "--rounds", 2, "--json", "replay.json"]
    status, printed, report, errors = script(
        *("replay.py", "--device", "npu", "--model", "tiny", *options)
    )
    assert status == 0, errors
    assert ("SIMULATED RUNTIME" in printed) is not hardware
    assert report["machine"]["simulated"] is not hardware
    assert report["machine"]["device"].startswith("npu: Ascend")
    for result in report["results"]:
        assert result["replays_per_call"] == 1
        assert result["captures_while_measured"] == 0
        assert result["replay_ms"]["median"] > 0 and result["eager_over_replay"]["median"] > 0
        assert result["largest_logit_difference"] < 8e-2
