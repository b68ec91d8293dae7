"""`pyrerank bench kernels` on an NPU, as a process, over the simulated CANN or on NPUs."""

import json
import os
import subprocess
import sys

from platforms import hardware


def test_kernels_are_timed_by_events_and_replayed(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TASK_QUEUE_ENABLE"}
    if not hardware:
        import simulation

        environment |= simulation.environment(simulation.build())
    options = ["--device", "npu", "--json", tmp_path / "out.json"]
    options += ["--batch", "2", "--hidden", "128", "--tokens", "3", "--rounds", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "pyrerank", "bench", "kernels", *options],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["clock"] == "device events" and len(report["rows"]) == 10
    for row in report["rows"]:
        for suffix in ("", "_replayed"):
            assert row[f"kernel{suffix}_us"]["median"] > 0 < row[f"eager{suffix}_us"]["median"]
        assert ("counts" in row) is not hardware
    assert "Replayed in a graph" in done.stdout
    assert ("SIMULATED RUNTIME" in done.stdout) is report["machine"]["simulated"] is not hardware
