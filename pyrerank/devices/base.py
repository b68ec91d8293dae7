"""The methods of a device, in plain torch; the file of a device replaces those it does better.

Who adds a chip writes a subclass of `Accelerator`, and lists it in `pyrerank.devices.select`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from pyrerank.devices.attention import BySequence, CausalAttention, Dense, one_by_one

# Says of one attention call how many queries, and how many keys, each sequence has.
Lengths = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Device:
    """A device, and how a model runs on it."""

    torch_device: torch.device  # with its index

    name: ClassVar[str]  # the type of torch_device
    shown_by: ClassVar[str]  # the command that lists devices, and the variable that hides them
    # where the caller does not say: most tokens of a pass, and whether passes are captured
    token_budget: ClassVar[int] = 8192
    graphs_by_default: ClassVar[bool] = False
    maps_weights: ClassVar[bool] = False  # whether weights are used where they lie in their files

    def __str__(self) -> str:
        return str(self.torch_device)

    @classmethod
    def at(cls, index: int) -> Device:
        return cls(torch.device(cls.name, index))

    @classmethod
    def count(cls) -> int:
        """How many devices of this kind the process can use; raises `DeviceError` if their software
        is missing, or does not load."""
        raise NotImplementedError

    @classmethod
    def is_here(cls) -> bool:
        """Whether there is one; where its software does not load, a warning says why."""
        return cls.count() > 0

    @property
    def default_dtype(self) -> torch.dtype:
        """bfloat16 where the device multiplies it natively, else float32."""
        return torch.bfloat16

    @property
    def label(self) -> str:
        """The device for a reader: "cpu", or its type and the name of its product."""
        return self.name

    def prepare(self) -> None:
        """Loads what the device needs besides torch; raises `DeviceError` where that fails."""

    # ---- arithmetic: rows are tokens, [T, ...], and results have the dtype of x ------------------

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x weight^T + bias of x [T, inputs], weight [outputs, inputs] and bias [outputs]."""
        return F.linear(x, weight, bias)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight over the last dimension."""
        return F.rms_norm(x, weight.shape, weight, eps)

    def add_rms_norm(
        self, x: Tensor, y: Tensor | None, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """x + y, or x where y is None, of [T, hidden_size]; and its `rms_norm`."""
        total = x if y is None else x + y
        return total, self.rms_norm(total, weight, eps)

    def residual(self, x: Tensor) -> Tensor:
        """x [T, hidden_size] in the dtype in which the outputs of all layers are summed."""
        return x

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up of gate_up [T, 2 I], whose halves are gate and up."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    def gelu(self, x: Tensor, approximate: str) -> Tensor:
        """GELU of x [T, width], exact ("none") or in its tanh form ("tanh")."""
        return F.gelu(x, approximate=approximate)

    def rotate(
        self, x: Tensor, cos: Tensor, sin: Tensor, weight: Tensor | None = None, eps: float = 0.0
    ) -> Tensor:
        """Rotary position embedding of x [T, heads, head_dim], pairs (i, i + head_dim / 2); with a
        weight [head_dim], of the `rms_norm` of each head.  May overwrite x.  cos and sin
        [T, 1, head_dim] have the dtype of x, or float32, in which it is then done."""
        if weight is not None:
            x = self.rms_norm(x, weight, eps)
        x, dtype = x.to(cos.dtype), x.dtype
        turned = self._rotated(x, cos, sin)
        del x  # before another copy is made
        return turned.to(dtype)

    def _rotated(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return x * cos + torch.cat((-b, a), -1) * sin

    def attention(self, dtype: torch.dtype, *, captured: bool) -> CausalAttention:
        """The decoder's causal attention.  Where it is ``captured``, only tensors and the arguments
        that `Capture.replay` updates may tell where a sequence ends."""
        return Dense() if captured else BySequence()

    def full_attention(self, q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
        """The vision tower's attention, of every token to all of its sequence of ``lengths``; takes
        and returns [T, heads, head_dim], and is never captured."""
        pieces = zip(k.split(lengths), v.split(lengths), strict=True)
        return one_by_one(q, pieces, lengths, causal=False)

    def padded_head_dim(self, head_dim: int) -> int:
        """The head size with which `full_attention` computes in 16 bit."""
        return head_dim

    def upload(self, numbers: Tensor) -> Tensor:
        """A host tensor on the device, without waiting for the copy."""
        return numbers

    def reserve(self, size: int) -> None:
        """Has the allocator take ``size`` bytes in one piece, from which later tensors are cut:
        pieces that are taken one by one fit the sizes of one pass and not those of the next."""

    def empty_cache(self) -> None:
        """Gives back the memory that the allocator holds and no tensor uses."""

    def synchronize(self) -> None:
        """Waits for everything that was issued."""

    def works(self) -> bool:
        """Whether the device still computes after a failure."""
        return True


class Accelerator(Device):
    """A device beside the host's processor, which can fail while the processor goes on."""

    @property
    def runtime(self) -> ModuleType:
        """``torch.npu`` or ``torch.cuda``, with streams, graphs and memory."""
        module: ModuleType = getattr(torch, self.torch_device.type)
        return module

    @property
    def label(self) -> str:
        return f"{self.name}: {self.runtime.get_device_name(self.torch_device)}"

    def upload(self, numbers: Tensor) -> Tensor:
        return numbers.pin_memory().to(self.torch_device, non_blocking=True)

    def reserve(self, size: int) -> None:
        torch.empty(size, dtype=torch.uint8, device=self.torch_device)

    def empty_cache(self) -> None:
        self.runtime.empty_cache()

    def synchronize(self) -> None:
        self.runtime.synchronize(self.torch_device)

    def works(self) -> bool:
        # torch_npu drops work silently once a launch has failed, so a value must come back
        try:
            answer = torch.full((2,), -1.0)
            answer.copy_(torch.arange(2.0).to(self.torch_device) + 41)
            return answer.tolist() == [41.0, 42.0]
        except RuntimeError:
            return False

    def capture(self, calls: int, attention: CausalAttention) -> Capture:
        """An object that captures passes, each of which calls ``attention`` ``calls`` times."""
        return Capture(self)


class Capture:
    """Captures passes as graphs, which share one pool of memory, and replays them; raises
    RuntimeError where the device fails."""

    def __init__(self, device: Accelerator) -> None:
        self._device = device
        with device.runtime.device(device.torch_device):
            self._pool = device.runtime.graph_pool_handle()
            self._stream = device.runtime.Stream()

    def record(self, forward: Callable[[], Tensor]) -> tuple[Any, Tensor]:
        """The graph of ``forward``, and the tensor that each replay fills."""
        graph = self._device.runtime.CUDAGraph()
        return graph, self._record(graph, forward, nullcontext())

    def replay(self, graph: Any, calls: Sequence[Lengths]) -> None:
        """Replays a graph whose attention calls have these lengths now."""
        graph.replay()

    def _record(
        self, graph: Any, forward: Callable[[], Tensor], dispatch: AbstractContextManager[Any]
    ) -> Tensor:
        # not by `torch.npu.graph`, which leaves its stream and its dispatch mode behind when ending
        # a capture fails
        with self._device.runtime.stream(self._stream), dispatch:
            graph.capture_begin(pool=self._pool)
            try:
                return forward()
            finally:
                graph.capture_end()
