"""The metrics of a server, for Prometheus.  They know jobs and the engine, and nothing of HTTP."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from pyrerank.engine.core import Core
from pyrerank.serve.schedule import Job, Scheduler

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
POWERS = tuple(2.0**n for n in range(15))


class Metrics:
    """Counts what one server does.

    Attributes:
        registry: has all collectors.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        seconds = partial(Histogram, buckets=SECONDS, registry=registry)
        powers = partial(Histogram, buckets=POWERS, registry=registry)
        counter = partial(Counter, registry=registry)
        self.requests = counter("pyrerank_requests", "By path and status.", ["path", "status"])
        self.seconds = seconds("pyrerank_request_seconds", "From headers to answer.", ["path"])
        self.queue = seconds("pyrerank_queue_seconds", "From headers to the first pass.")
        self.here = Gauge("pyrerank_requests_here", "Answered or waiting.", registry=registry)
        self.billed = counter("pyrerank_billed_tokens", "Tokens of prompts that were answered.")
        self.truncated = counter("pyrerank_truncated_tokens", "Tokens that were cut from texts.")
        self._pass_seconds = seconds("pyrerank_pass_seconds", "Of forward passes.")
        self._pass_prompts = powers("pyrerank_pass_prompts", "Prompts of a pass.")
        self._pass_tokens = powers("pyrerank_pass_tokens", "Computed tokens of a pass.")

    def passed(self, prompts: int, tokens: int, seconds: float) -> None:
        """Counts a pass of the engine."""
        self._pass_prompts.observe(prompts)
        self._pass_tokens.observe(tokens)
        self._pass_seconds.observe(seconds)

    def answered(self, job: Job) -> None:
        """Counts the tokens of a job that is done, and the time that it waited."""
        self.billed.inc(sum(len(prompt.ids) for prompt in job.prompts))
        self.truncated.inc(sum(prompt.truncated for prompt in job.prompts))
        self.queue.observe(job.times["started"] - job.arrived)

    def watch(self, scheduler: Scheduler) -> None:
        """Adds the numbers that the queue and the engine count themselves."""
        waiting = Gauge("pyrerank_queue_tokens", "Tokens that wait.", registry=self.registry)
        waiting.set_function(lambda: scheduler.waiting)
        self.registry.register(_EngineCounts(scheduler.engine.core))


class _EngineCounts(Collector):
    """Reads the counters of the engine."""

    def __init__(self, core: Core[Any, Any]) -> None:
        self._core = core

    def collect(self) -> Iterable[Metric]:
        core = self._core
        counts = {"pyrerank_computed_tokens": ("Tokens that were computed.", core.computed)}
        # Each is read once, because the engine's thread may set it to None.
        if (graphs := core.graphs) is not None:
            counts["pyrerank_graph_replays"] = ("Passes from a graph.", graphs.replays)
        if (features := core.features) is not None:
            counts["pyrerank_pictures"] = ("Pictures encoded.", features.encoded)
        for name, (what, count) in counts.items():
            yield CounterMetricFamily(name, what, value=count)
