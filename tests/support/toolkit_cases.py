"""Cases that test_toolkit.py executes in processes of their own: python toolkit_cases.py CASE

torch_npu and the extensions come from the environment.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch

from pyrerank import _C, Reranker
from pyrerank.kernels import extension, ops

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# of the stored result: one rounding, and sums in another order
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 2e-5}
WIDTH = 96


class Batch:
    """45 sequences (more than the device has cores) of 1 to 5 tokens, here and on a device."""

    def __init__(self, dtype: torch.dtype, device: str = "npu:0") -> None:
        torch.manual_seed(0)
        lengths = [1 + i % 5 for i in range(45)]
        cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
        self.hidden = torch.randn(sum(lengths), WIDTH).to(dtype)
        self.others = [
            cu_seqlens,
            cu_seqlens[1:] - 1,
            torch.randn(WIDTH).to(dtype),
            torch.randn(WIDTH),
        ]
        # a view of wider rows
        self.device_hidden = torch.empty(sum(lengths), WIDTH + 16, dtype=dtype, device=device)
        self.device_hidden = self.device_hidden[:, 16:]
        self.device_hidden.copy_(self.hidden)
        self.device_others = [tensor.to(device) for tensor in self.others]

    def run(self) -> list[torch.Tensor]:
        return run(self.device_hidden, *self.device_others)

    def compare(self, got: list[torch.Tensor]) -> None:
        for result, twin in zip(got, run(self.hidden, *self.others, "_reference"), strict=True):
            tolerance = TOLERANCE[twin.dtype]
            torch.testing.assert_close(result.cpu(), twin, rtol=tolerance, atol=tolerance)


def run(
    hidden: torch.Tensor,
    cu_seqlens: torch.Tensor,
    index: torch.Tensor,
    norm_weight: torch.Tensor,
    w: torch.Tensor,
    suffix: str = "",
) -> list[torch.Tensor]:
    """Every kernel of this dtype, fused_pool in every mode."""
    gather = getattr(ops, "last_token_gather" + suffix)
    pool = getattr(ops, "fused_pool" + suffix)
    return [
        gather(hidden, cu_seqlens),
        gather(hidden, index=index),
        *getattr(ops, "score_head" + suffix)(hidden, index, norm_weight, 1e-6, w, 0.5),
        pool(hidden, cu_seqlens, norm_weight, 1e-6, "last", 40),
        pool(hidden, cu_seqlens, norm_weight.float(), 1e-6, "mean", None, False),
        pool(hidden, cu_seqlens, None, 1e-6, "cls", 7),
    ]


def refused(call: Callable[[], object], *parts: str) -> None:
    try:
        call()
    except RuntimeError as error:
        assert all(part in str(error) for part in parts), error
    else:
        sys.exit(f"passed unnoticed; wanted an error that says {parts}")


def values() -> None:
    """Eagerly on both devices, then captured and replayed with other contents."""
    from pyrerank import _C_npu

    print(_C_npu.build_info())
    assert extension.npu_kernels() is _C_npu
    for device in ("npu:1", "npu:0"):
        for dtype in DTYPES:
            batch = Batch(dtype, device)
            results = batch.run()
            assert {str(result.device) for result in results} == {device}
            batch.compare(results)
    assert torch.npu.current_device() == 0
    for dtype in DTYPES:
        batch = Batch(dtype)
        captured = torch.npu.NPUGraph()
        with torch.npu.graph(captured):
            results = batch.run()
        for _ in range(2):
            batch.hidden.normal_()
            batch.device_hidden.copy_(batch.hidden)
            captured.replay()
            torch.npu.synchronize()
            batch.compare(results)
    assert _C_npu.counters() == {}  # the device's are not the simulator's
    _C_npu.reset_counters()
    assert _C.counters()["launches"] == 0, "a tensor on an NPU went to the host's kernels"


def refused_launch() -> None:
    batch = Batch(torch.bfloat16)
    refused(batch.run, "score_head_bfloat16: launch failed with 107003")
    batch.compare(batch.run())  # the one fault is over


QUERY, DOCUMENTS = "moon", ["the moon", "a cat", "the night and its moon " * 40, "x"]


def scores(device: str) -> list[float]:
    """Printed bit by bit."""
    found = Reranker("demo", device=device).score(QUERY, DOCUMENTS)
    print(device, *(score.hex() for score in found))
    return found


def host() -> None:
    """The host's scores, where nothing of CANN needs to load."""
    scores("cpu")
    assert "pyrerank._C_npu" not in sys.modules
    try:
        extension.npu_kernels()
        print("the kernels for the NPU load")
    except RuntimeError as error:
        print(type(error).__name__, error)


def both() -> None:
    """An engine on the CPU after one on an NPU, and the operators there, in one process."""
    on_npu = scores("npu")
    before = _C.counters()["launches"]
    on_cpu = scores("cpu")
    assert _C.counters()["launches"] > before, "a tensor of the host was not the host's kernels'"
    assert max(abs(a - b) for a, b in zip(on_npu, on_cpu, strict=True)) < 2e-2
    batch = Batch(torch.bfloat16)
    for ours, there in zip(run(batch.hidden, *batch.others), batch.run(), strict=True):
        torch.testing.assert_close(ours, there.cpu(), rtol=2e-2, atol=2e-2)


def convert() -> None:
    from pyrerank import convert

    print(convert(sys.argv[2], Path(sys.argv[3])))


def npu_engine() -> None:
    scores("npu")


def address_of_the_host() -> None:
    from pyrerank import _C_npu

    batch = Batch(torch.float32)
    hidden, index = batch.device_hidden, batch.device_others[1]
    stream = torch.npu.current_stream().npu_stream
    here = torch.empty(len(index), WIDTH)

    def gather() -> None:
        _C_npu.last_token_gather(
            hidden.data_ptr(),
            index.data_ptr(),
            here.data_ptr(),
            T=len(hidden),
            H=WIDTH,
            row_stride=hidden.stride(0),
            B=len(index),
            dtype="float32",
            ids_are_cu_seqlens=False,
            threads=1,
            stream=stream,
        )

    refused(gather, "last_token_gather_32bit: launch failed with 507035")


if __name__ == "__main__":
    if sys.argv[1] not in ("host", "convert"):
        import torch_npu  # noqa: F401  registers torch.npu
    globals()[sys.argv[1]]()
