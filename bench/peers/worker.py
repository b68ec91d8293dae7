"""Uses one engine in a process of its own: takes jobs on stdin and answers them on stdout.

    python bench/peers/worker.py transformers_reference --model FOLDER

An engine is a module of this folder with a class `Engine`:

    Engine(model, device, dtype, task, **options)   task: "score" or "embed"
    score(query, documents) -> floats               one query, or as many as there are documents
    embed(inputs) -> vectors of length 1
    computed                                        tokens so far; None: it does not count them

Jobs and answers are JSON lines.  A content is a text, or `{"image": path}`.  A job is `{"query",
"documents"}`, or `{"inputs"}`, which is answered with the inner products of the first vector with
all.  The job's `"settings"` are attributes of the engine that are set before.
"""

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def processes() -> list[Path]:
    """This process and those that it has started."""
    found = [Path("/proc/self")]
    for process in found:
        for thread in process.glob("task/*/children"):
            found += [Path("/proc", child) for child in thread.read_text().split()]
    return found


def reset_peak() -> None:
    """Makes the kernel forget how much was resident at the most."""
    for process in processes():
        (process / "clear_refs").write_text("5")


def memory() -> dict[str, int]:
    """How many bytes were resident at the most since `reset_peak`, and how many of those that are
    now belong to no file."""
    total = {"VmHWM": 0, "RssAnon": 0}
    for process in processes():
        for line in (process / "status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in total:
                total[name] += 1024 * int(value.split()[0])
    return {"peak_bytes": total["VmHWM"], "anonymous_bytes": total["RssAnon"]}


def device_memory(device: str) -> Any:
    """torch.cuda or torch.npu, which count their own memory; None for the CPU."""
    import torch

    kind = device.partition(":")[0]
    return None if kind == "cpu" else getattr(torch, kind)


def answer(engine: Any, job: dict[str, Any], device: str) -> dict[str, Any]:
    for name, value in job.get("settings", {}).items():
        setattr(engine, name, value)
    accelerator = device_memory(device)
    if accelerator is not None:
        accelerator.reset_peak_memory_stats()
    computed = engine.computed
    start = time.perf_counter()
    if "inputs" in job:
        vectors = engine.embed(job["inputs"])
        seconds = time.perf_counter() - start
        scores = [sum(map(float.__mul__, vectors[0], vector)) for vector in vectors]
    else:
        scores = engine.score(job["query"], job["documents"])
        seconds = time.perf_counter() - start
    result = {"scores": scores, "seconds": seconds, **memory()}
    if computed is not None:
        result["computed"] = engine.computed - computed
    if accelerator is not None:
        result["device_bytes"] = accelerator.max_memory_reserved()
    reset_peak()  # now, so that the peak of the first job includes loading
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("engine")
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--task", default="score")
    parser.add_argument("--options", type=json.loads, default={})
    arguments = parser.parse_args()
    # Libraries print to stdout, which is for answers alone.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module = importlib.import_module(arguments.engine)
    place = (arguments.device, arguments.dtype, arguments.task)
    engine = module.Engine(arguments.model, *place, **arguments.options)
    for line in sys.stdin:
        print(json.dumps(answer(engine, json.loads(line), arguments.device)), file=out, flush=True)


if __name__ == "__main__":
    main()
