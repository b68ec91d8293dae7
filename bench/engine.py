"""Throughput of pyrerank beside other engines.

    python bench/engine.py VL-0.6B --peers transformers sentence-transformers=PYTHON vllm=PYTHON

Every engine has a process of its own, with the Python that it is installed in (see `peers`). They
take turns: a round gives every engine the same new texts, one engine computes at a time, and ratios
compare engines within a round. The exit status is 1 if scores of two engines differ by more than
their arithmetic explains.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import random_checkpoint
import torch
from engines import GRAPHS, OURS, PEERS, SWITCHES, Engine, interpreters, ours, package_version
from report import markdown, plot
from work import Peak, Work, encode, work
from workloads import WORKLOADS, Job, Source, first

from pyrerank.bench import machine
from pyrerank.devices.select import resolve
from pyrerank.weights.checkpoint import Checkpoint, open_checkpoint

LIMITS = {"bfloat16": 0.03, "float32": 1e-4}  # of the difference between two engines' scores
PEAK_SECONDS = 3.0
QUICK_START = 30.0  # seconds; a start that takes less is measured in every round
READ = 16 << 20  # bytes at a time
WARM_UP = 8  # a part of the documents that this divides them by is scored before the first round


class Bench:
    """Measures all workloads: starts engines, gives them turns, and collects their answers."""

    def __init__(self, arguments: argparse.Namespace, checkpoint: Checkpoint) -> None:
        self._arguments = arguments
        self._checkpoint = checkpoint
        self._tokenizer = checkpoint.tokenizer()
        device = resolve(arguments.device)
        self._on_cpu = device.name == "cpu"
        self._pythons = interpreters(arguments.peers)
        self._kinds = {OURS: ours()} | {name: PEERS[name] for name in self._pythons}
        if arguments.switches:
            self._kinds |= SWITCHES | GRAPHS.get(device.name, {})
        self._engines: dict[tuple[str, str], Engine] = {}
        self._samples: dict[tuple[str, str], list[dict[str, Any]]] = {}
        dtype = getattr(torch, arguments.dtype)
        seconds = min(1.0, arguments.scale) * PEAK_SECONDS
        self._peak = Peak(checkpoint.config, device, dtype, seconds)
        self.peaks: list[float] = []
        self.engines: list[dict[str, Any]] = []

    def measure(self) -> None:
        """Goes through all rounds; afterwards `rows` has the results."""
        try:
            for number in range(-1, self._arguments.rounds):  # the first is not counted
                for name in self._arguments.workloads:
                    self._round(name, number)
        finally:
            for engine in self._engines.values():
                engine.close()

    def _round(self, workload: str, number: int) -> None:
        kinds = WORKLOADS[workload]
        count = kinds.on_cpu if self._on_cpu and kinds.on_cpu is not None else kinds.documents
        count = max(1, round(count * self._arguments.scale))
        if number < 0:
            count = max(1, count // WARM_UP)
        task = "embed" if kinds.embed else "score"
        names = [name for name, kind in self._kinds.items() if task in kind.tasks]
        if not kinds.peers:
            names = [name for name in names if name not in self._pythons]
        seed = random.Random(f"{workload} {number}")
        job = kinds.job(Source(self._tokenizer, self._arguments.temporary, seed), count)
        engines = [self._engine(name, task, job) for name in names]
        if number < 0:
            for name, engine in zip(names, engines, strict=True):
                engine.ask(self._job(name, job))
            return
        self.peaks.append(self._peak.measure())
        answers: dict[str, dict[str, Any]] = {}
        for turn in range(len(names)):  # in each round, another engine is the first
            at = (number + turn) % len(names)
            answers[names[at]] = engines[at].ask(self._job(names[at], job))
        least: dict[int, Work] = {}
        for name in names:
            scores = answers[name].pop("scores")
            if name == OURS:
                reference = scores
            if len(scores) not in least:
                prompts = encode(self._checkpoint, first(job, len(scores)))
                least[len(scores)] = work(self._checkpoint, prompts)
            pairs = zip(scores, reference, strict=False)
            sample = answers[name] | {
                "documents": len(scores),
                "work": least[len(scores)],
                "peak": self.peaks[-1],
                # torch's max, because Python's would pass over a NaN
                "difference": float(torch.tensor([abs(a - b) for a, b in pairs]).max()),
            }
            self._samples.setdefault((workload, name), []).append(sample)

    def _job(self, name: str, job: Job) -> Job:
        """The part of a job that the engine is given."""
        kind = self._kinds[name]
        few = self._on_cpu and kind.on_cpu is not None
        part = first(job, kind.on_cpu) if few else job
        return part | {"settings": kind.settings}

    def _engine(self, name: str, task: str, job: Job) -> Engine:
        """The process of an engine; starts are measured with a job of one document."""
        kind = self._kinds[name]
        key = ("switched" if kind.settings else name, task)
        if key in self._engines:
            return self._engines[key]
        python = self._pythons.get(name, sys.executable)
        seconds: list[float] = []
        while True:
            self._engines[key] = engine = Engine(kind, python, task, self._arguments)
            answer = engine.ask(first(job, 1))
            seconds.append(answer["since_start"])
            if len(seconds) == self._arguments.rounds or seconds[0] > QUICK_START or kind.settings:
                break
            engine.close()
        if kind.settings:
            return engine
        self.engines.append(
            {
                "engine": name,
                "task": task,
                "version": package_version(python, kind.package),
                "start_to_first_score_seconds": spread(seconds),
                "starts": len(seconds),
                "peak_bytes": answer["peak_bytes"],  # those of loading are included
            }
        )
        return engine

    def rows(self) -> list[dict[str, Any]]:
        """Makes a row for each workload and engine."""
        out = []
        for (workload, name), samples in self._samples.items():
            reference = self._samples[workload, OURS]
            times = [_speed(a) / _speed(b) for a, b in zip(reference, samples, strict=True)]
            out.append(
                {"workload": workload, "engine": name, **_row(samples), "times": spread(times)}
            )
        return out


def _speed(sample: dict[str, Any]) -> float:
    return float(sample["documents"] / sample["seconds"])


def _row(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one engine on one workload; they are medians where rounds differ."""
    least = [sample["work"] for sample in samples]

    def rate(numbers: Sequence[float]) -> dict[str, float]:
        return spread([n / sample["seconds"] for n, sample in zip(numbers, samples, strict=True)])

    row = {
        "documents": samples[0]["documents"],
        "billed_tokens": statistics.median(each.billed for each in least),
        "least_tokens": statistics.median(each.least for each in least),
        "least_flops": statistics.median(each.flops for each in least),
        "seconds": spread([sample["seconds"] for sample in samples]),
        "pairs_per_second": spread([_speed(sample) for sample in samples]),
        "billed_tokens_per_second": rate([each.billed for each in least]),
        "share_of_peak": rate(
            [each.flops / sample["peak"] for each, sample in zip(least, samples, strict=True)]
        ),
        "difference": max(sample["difference"] for sample in samples),
    }
    if "computed" in samples[0]:
        computed = [sample["computed"] for sample in samples]
        row["computed_tokens"] = statistics.median(computed)
        row["computed_tokens_per_second"] = rate(computed)
        row["computed_is_least"] = computed == [each.least for each in least]
    for name in ("peak_bytes", "anonymous_bytes", "device_bytes"):
        if name in samples[0]:
            row[name] = max(sample[name] for sample in samples)
    return row


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def read_weights(checkpoint: Checkpoint) -> dict[str, float]:
    """The bytes of the files, and the seconds it takes to read them from the system's memory."""
    files = sorted({file.path for file in checkpoint.tensors.values()})
    for _ in range(2):  # the first time, they come from the disk
        start = time.perf_counter()
        for file in files:
            with open(file, "rb", buffering=0) as handle:
                while handle.read(READ):
                    pass
        seconds = time.perf_counter() - start
    return {"bytes": sum(file.stat().st_size for file in files), "read_seconds": seconds}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures, and makes the report."""
    checkpoint = open_checkpoint(arguments.folder)
    vision = checkpoint.family == "qwen3-vl"
    if arguments.workloads is None:
        usual = CPU_WORKLOADS if arguments.device == "cpu" else WORKLOADS
        names = [name for name in usual if WORKLOADS[name].peers]
        arguments.workloads = [name for name in names if vision or not WORKLOADS[name].vision]
    if not vision and (wrong := [n for n in arguments.workloads if WORKLOADS[n].vision]):
        raise SystemExit(f"{arguments.model} reads text only: leave out {', '.join(wrong)}")
    weights = read_weights(checkpoint)
    bench = Bench(arguments, checkpoint)
    bench.measure()
    rows = bench.rows()
    limit = LIMITS[arguments.dtype]
    return {
        "command": "bench/engine.py",
        "model": arguments.model,
        "random_weights": arguments.model in random_checkpoint.SHAPES,
        "dtype": arguments.dtype,
        "rounds": arguments.rounds,
        "scale": arguments.scale,
        "machine": machine.describe(torch.device(arguments.device)),
        "weights": weights,
        "peak_flops_per_second": spread(bench.peaks),
        "engines": bench.engines,
        "rows": rows,
        "difference_limit": limit,
        # written so that a NaN is too different
        "too_different": [
            [row["workload"], row["engine"]] for row in rows if not row["difference"] <= limit
        ],
    }


CPU_WORKLOADS = ("1x32", "1x100", "pairs", "images")


def parser() -> argparse.ArgumentParser:
    shapes = ", ".join(random_checkpoint.SHAPES)
    here = ["transformers"] if find_spec("transformers") else []
    result = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    result.add_argument(
        "model", help=f"a checkpoint's folder, or {shapes}: random weights of that shape"
    )
    result.add_argument("--device", help="cpu, cuda, npu; default: what is there")
    result.add_argument("--dtype", choices=list(LIMITS), help="default: the engine's own")
    result.add_argument("--rounds", type=int, default=3)
    result.add_argument(
        "--workloads",
        nargs="+",
        choices=list(WORKLOADS),
        help=f"default: on a CPU {', '.join(CPU_WORKLOADS)}; elsewhere all but short-*",
    )
    result.add_argument(
        "--peers",
        nargs="*",
        default=here,
        metavar="NAME[=PYTHON]",
        help=f"of {', '.join(PEERS)}; default: transformers, if it is in this environment",
    )
    result.add_argument(
        "--switches", action="store_true", help="also pyrerank without each of its optimisations"
    )
    result.add_argument("--scale", type=float, default=1.0, help="a part of the documents")
    result.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of each")
    result.add_argument("--json", type=Path, help="write the figures there")
    result.add_argument("--plot", type=Path, help="draw pairs a second there; needs matplotlib")
    return result


def main() -> int:
    arguments = parser().parse_args()
    device = resolve(arguments.device)
    arguments.device = str(device.torch_device)
    if arguments.dtype is None:
        arguments.dtype = str(device.default_dtype).removeprefix("torch.")
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        arguments.temporary = Path(temporary)
        arguments.folder = arguments.model
        if arguments.model in random_checkpoint.SHAPES:
            arguments.folder = Path(temporary, "model")
            random_checkpoint.write(arguments.folder, arguments.model)
        report = measure(arguments)
    print(markdown(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    if arguments.plot:
        plot(report, arguments.plot)
    return 1 if report["too_different"] else 0


if __name__ == "__main__":
    sys.exit(main())
