"""The tests of the simulated CANN share this: references, a capture, and a small decoder."""

import functools
from collections.abc import Callable
from itertools import pairwise

import torch
import torch_npu

# the reference runs in float64; the operators round inputs to their dtype and the result once
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
TRIANGLE = torch.triu(torch.ones(2048, 2048, dtype=torch.bool), 1)


@functools.cache
def triangle() -> torch.Tensor:
    return TRIANGLE.npu()


HEADS, KV_HEADS, WIDTH = 4, 2, 128


def reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(result, log-sum-exp); q is [heads, queries, width], causal at the bottom right."""
    q, k, v = q.double(), k.double(), v.double()
    k, v = (t.repeat_interleave(q.shape[0] // t.shape[0], 0) for t in (k, v))
    scores = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
    if causal:
        hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1 + k.shape[1] - q.shape[1])
        scores = scores.masked_fill(hidden, float("-inf"))
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def packed(
    qkv: tuple[torch.Tensor, ...], ends: list[int], key_ends: list[int], causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference over sequences that lie end to end, (tokens, heads, width)."""
    parts = []
    for (a, b), (c, d) in zip(pairwise([0, *ends]), pairwise([0, *key_ends]), strict=True):
        q, k, v = qkv[0][a:b], qkv[1][c:d], qkv[2][c:d]
        parts.append(reference(*(t.transpose(0, 1) for t in (q, k, v)), causal))
    out, lse = zip(*parts, strict=True)
    return torch.cat(out, 1).transpose(0, 1), torch.cat(lse, 1).transpose(0, 1)


def inputs(
    dtype: torch.dtype, queries: int, keys: int, width: int = WIDTH, kv_heads: int = KV_HEADS
) -> tuple[torch.Tensor, ...]:
    shapes = (queries, HEADS, width), (keys, kv_heads, width), (keys, kv_heads, width)
    return tuple(torch.randn(s).to(dtype) for s in shapes)


def infer(qkv: tuple[torch.Tensor, ...], **options: object) -> tuple[torch.Tensor, torch.Tensor]:
    q, k, v = (t.npu() for t in qkv)
    options = (
        {"input_layout": "TND", "num_query_heads": HEADS, "num_key_value_heads": k.shape[1]}
        | {"softmax_scale": q.shape[-1] ** -0.5}
        | options
    )
    return torch_npu.npu_fused_infer_attention_score_v2(q, k, v, **options)


def close(got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype) -> None:
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(got.cpu().double(), want, rtol=tolerance, atol=tolerance)


def capture(body: Callable[[], object]) -> tuple[torch.npu.NPUGraph, object]:
    """Ends the capture whatever happens, and raises the first error."""
    graph, results = torch.npu.NPUGraph(), []
    errors: list[Exception] = []
    torch.npu.synchronize()
    with torch.npu.stream(torch.npu.Stream()):
        graph.capture_begin()
        for step in (body, graph.capture_end):
            try:
                results.append(step())
            except Exception as error:
                errors.append(error)
    if errors:
        raise errors[0]
    return graph, results[0]


class Decoder:
    """One layer whose lengths are arguments of the host, captured once."""

    def __init__(self, ends: list[int]) -> None:
        self.host = inputs(torch.bfloat16, ends[-1], ends[-1])
        self.device = tuple(t.npu() for t in self.host)
        self.mask = triangle()
        self.layers = 2
        self.graph = torch.npu.NPUGraph()
        with torch.npu.graph(self.graph, auto_dispatch_capture=True):
            self.out = self.forward(ends)

    def forward(self, ends: list[int]) -> torch.Tensor:
        q, k, v = self.device
        for _ in range(self.layers):
            q = torch_npu.npu_fused_infer_attention_score_v2(
                q,
                k,
                v,
                input_layout="TND",
                num_query_heads=HEADS,
                num_key_value_heads=KV_HEADS,
                softmax_scale=WIDTH**-0.5,
                sparse_mode=3,
                atten_mask=self.mask,
                actual_seq_qlen=ends,
                actual_seq_kvlen=ends,
            )[0]
        return q

    def want(self, ends: list[int]) -> torch.Tensor:
        q, k, v = self.host
        for _ in range(self.layers):
            q = packed((q, k, v), ends, ends, True)[0].to(torch.bfloat16)
        return q.double()

    def update(self, ends: list[int]) -> None:
        self.graph.update(cpu_update_input=[{"actual_seq_qlen": ends, "actual_seq_kvlen": ends}])
