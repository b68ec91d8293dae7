"""Checks pyrerank on an Ascend NPU and writes a report to send back.

    python bench/check_npu.py           takes half an hour at most, or some minutes with --quick

It checks the environment, the build, kernels, operators, the engine, memory and speed, and prints a
line for each check: PASS, FAIL or SKIP. Each group of checks has a process of its own, and after a
failure the next check gets a new one, so that a device which one check leaves broken does not fail
the others. The exit status is 0 if nothing failed, 1 if something did, and 2 if something is
missing without which no check can run.

The report holds versions, figures and error messages. It holds no host name, user name or path, and
no text that is not of this repository.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

GROUPS = ("environment", "kernels", "operators", "engine", "vision", "memory", "speed")
LIMIT = 900.0  # seconds for one check, because a device may let a process wait for ever
START = 120.0  # seconds to import torch and torch_npu, if that is more
TAIL = 3000  # characters of a process's own output that a failure carries

Outcome = dict[str, Any]


# ---- in the process that checks -----------------------------------------------------------------


def work(arguments: argparse.Namespace) -> None:
    """Executes the checks of a group from number ``start`` on, and writes a JSON line for each."""
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"  # a check reports it better
    out = os.fdopen(arguments.pipe, "w")

    def tell(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    import checks

    from pyrerank.bench import machine
    from pyrerank.devices.base import Accelerator
    from pyrerank.devices.select import resolve

    ready = arguments.worker != "environment"  # the checks of that group find out
    place = str(resolve(arguments.device).torch_device) if ready else arguments.device
    bench = checks.Bench(place, arguments.quick, arguments.work)
    if ready and isinstance(bench.on, Accelerator):
        bench.on.runtime.set_device(bench.device)  # streams and graphs are the current one's
    todo = checks.checks(arguments.worker)
    tell({"plan": list(todo)} | ({"machine": machine.describe(bench.device)} if ready else {}))
    for name, check in list(todo.items())[arguments.start :]:
        started = time.monotonic()
        data = None
        try:
            figure = check(bench)
            if ready:
                bench.synchronize()
            status = "PASS"
            if not isinstance(figure, str):
                figure, data = figure
        except checks.Skip as reason:
            status, figure = "SKIP", str(reason)
        except checks.Wrong as reason:
            status, figure = "FAIL", str(reason)
        except Exception as error:
            status = "FAIL"
            figure = f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]
            traceback.print_exc()
        seconds = round(time.monotonic() - started, 2)
        tell({"name": name, "status": status, "figure": figure, "data": data, "seconds": seconds})
        if status == "FAIL":
            break
    sys.stderr.flush()
    os._exit(0)  # a broken device can hold up an orderly end for ever


# ---- in the process that reports ----------------------------------------------------------------


def clean(text: str) -> str:
    """Removes what tells whose machine this is: folders of paths, host names and user names."""
    text = re.sub(r"(?:/[\w.+@~-]+)+/([\w.+@~-]*)", r"…/\1", text)
    names = [socket.gethostname()]
    with suppress(KeyError, OSError):  # the user of a container may have no name
        names.append(getpass.getuser())
    for name in names:
        if len(name) > 3:  # a shorter one could be a part of anything
            text = re.sub(rf"\b{re.escape(name)}\b", "…", text)
    return text


def lines(pipe: int, limit: float) -> Iterator[dict[str, Any] | None]:
    """Yields JSON lines until the other end closes; None if one takes longer than ``limit``."""
    rest = b""
    patience = max(limit, START)
    while True:
        if not select.select([pipe], [], [], patience)[0]:
            yield None
            return
        patience = limit
        chunk = os.read(pipe, 1 << 16)
        if not chunk:
            return
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield json.loads(line)


def run_process(
    group: str, start: int, arguments: argparse.Namespace, folder: Path
) -> Iterator[dict[str, Any]]:
    """Yields the messages of one process, and at the end a message of how it ended."""
    log = folder / "log"
    read, write = os.pipe()
    command = [sys.executable, __file__, "--worker", group, "--start", str(start)]
    command += ["--pipe", str(write), "--work", str(folder), "--device", arguments.device]
    command += ["--quick"] * arguments.quick
    with open(log, "w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, pass_fds=(write,))
    os.close(write)
    how = ""
    try:
        for message in lines(read, arguments.limit):
            if message is None:
                how = f"no answer within {arguments.limit:.0f} s; the process was ended"
                break
            yield message
    finally:
        os.close(read)
        if how:
            process.kill()
        status = None
        with suppress(subprocess.TimeoutExpired):  # a driver can hold even a killed process
            status = process.wait(60)
    tail = log.read_text(errors="replace")[-TAIL:]
    last = tail.strip().rpartition("\n")[2]
    yield {"ended": how or f"the process ended with status {status}: {last}", "log": tail}


def run_group(group: str, arguments: argparse.Namespace, folder: Path,
              report: dict[str, Any]) -> Iterator[Outcome]:  # fmt: skip
    """Yields the outcomes of a group's checks; starts processes until no check is left."""
    plan: list[str] | None = None
    done = 0
    while plan is None or done < len(plan):
        before, last = done, None
        for message in run_process(group, done, arguments, folder):
            if "plan" in message:
                plan = message["plan"]
                if "machine" in message:
                    report["machine"] = message["machine"]
            elif "ended" not in message:
                done += 1
                if last is not None:
                    yield last
                last = {"group": group, **message}
            elif last is not None and last["status"] == "FAIL":
                last["log"] = message["log"]
            elif plan is None or done < len(plan):  # the process died
                if last is not None:
                    yield last
                name = plan[done] if plan is not None else "start"
                last = {"group": group, "name": name, "status": "FAIL"}
                last |= {"figure": message["ended"], "log": message["log"]}
                done += 1
        assert last is not None and done > before
        yield last
        if plan is None:
            return


def show(outcome: Outcome) -> str:
    return f"{outcome['status']}  {outcome['group']}: {outcome['name']}: {outcome['figure']}"


def commit() -> str:
    """The commit of the clone that this file is in."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(git, capture_output=True, text=True).stdout.strip() or "?"
    except FileNotFoundError:
        return "?"


def write_report(report: dict[str, Any], file: Path) -> None:
    text = json.dumps(report, indent=1, ensure_ascii=False)
    file.write_text(text + "\n", "utf-8")
    machine = report["machine"] or {}
    head = [f"{name}: {value}" for name, value in machine.items()]
    head += [f"commit: {report['commit']}", f"quick: {report['quick']}", ""]
    body = []
    for outcome in report["checks"]:
        body.append(show(outcome))
        if "log" in outcome:
            body += ["    | " + line for line in outcome["log"].splitlines()]
    summary = ["", json.dumps(report["summary"])]
    file.with_suffix(".txt").write_text("\n".join(head + body + summary) + "\n", "utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer sizes, no large model")
    parser.add_argument("--device", default="npu", help="npu, npu:1, ...; cpu: what runs there")
    parser.add_argument("--groups", nargs="+", choices=GROUPS[1:], default=GROUPS[1:])
    parser.add_argument("--report", type=Path, default=Path("pyrerank-npu-report.json"))
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for one check")
    for name, kind in (("worker", str), ("start", int), ("pipe", int), ("work", Path)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    if arguments.worker:
        work(arguments)
    report: dict[str, Any] = {"quick": arguments.quick, "commit": commit(), "machine": None}
    report["checks"] = outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        for group in ("environment", *(g for g in GROUPS[1:] if g in arguments.groups)):
            for outcome in run_group(group, arguments, Path(folder), report):
                outcome["figure"] = clean(outcome["figure"])
                if "log" in outcome:
                    outcome["log"] = clean(outcome["log"])
                print(show(outcome), flush=True)
                outcomes.append(outcome)
            missing = group == "environment" and any(o["status"] == "FAIL" for o in outcomes)
            if missing:
                break
    report["summary"] = counts = Counter(outcome["status"] for outcome in outcomes)
    write_report(report, arguments.report)
    print(
        f"\n{counts['PASS']} passed, {counts['FAIL']} failed, {counts['SKIP']} skipped; "
        f"{arguments.report} and .txt have all of it, to read and to send"
    )
    if missing:
        print("Nothing else was checked: what failed above is missing.")
        return 2
    return 1 if counts["FAIL"] else 0


if __name__ == "__main__":
    sys.exit(main())
