"""Linear layers, whose weights have a scheme; and loading of modules that contain them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pyrerank.devices.base import Device

ALL = slice(None)
Shapes = dict[str, torch.Size]


class Float:
    """The scheme of weights that are stored and multiplied in the model's own dtype.

    A scheme is chosen when weights are loaded, and knows all that depends on how they are stored.
    """

    def tensors(self, inputs: int, outputs: int, *, bias: bool) -> Shapes:
        """The names and shapes of a layer's tensors in a checkpoint."""
        shapes = {"weight": torch.Size((outputs, inputs))}
        return shapes | {"bias": torch.Size((outputs,))} if bias else shapes

    def pack(self, device: Device, name: str, tensor: Tensor) -> Tensor:
        """The tensor ``name`` as the device keeps it; those of several layers come joined."""
        return tensor.to(device.torch_device)

    def product(self, device: Device, layer: Linear, x: Tensor, rows: slice) -> Tensor:
        """x [T, inputs] times the layer's weight; ``rows`` says which of its outputs are wanted."""
        bias = None if layer.bias is None else layer.bias[rows]
        return device.linear(x, layer.weight[rows], bias)


class Linear(nn.Module):
    """A published linear layer; or several that read the same input, computed as one: then
    ``outputs`` has their names, which lie beside this module, with the outputs of each."""

    weight: Tensor
    bias: Tensor | None
    __call__: Callable[..., Tensor]

    def __init__(
        self,
        device: Device,
        scheme: Float,
        inputs: int,
        outputs: int | Mapping[str, int],
        *,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.device, self.scheme = device, scheme
        self.parts = {} if isinstance(outputs, int) else dict(outputs)
        total = outputs if isinstance(outputs, int) else sum(self.parts.values())
        self.register_parameter("bias", None)
        for name, shape in scheme.tensors(inputs, total, bias=bias).items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))

    def sources(self, module: str, name: str) -> Shapes:
        """The published names and shapes of the tensors that ``name`` of this ``module`` joins."""
        shape = self.get_parameter(name).shape
        if not self.parts:
            return {f"{module}.{name}": shape}
        beside = module.rpartition(".")[0]
        return {
            f"{beside}.{part}.{name}": torch.Size((rows, *shape[1:]))
            for part, rows in self.parts.items()
        }

    def forward(self, x: Tensor, rows: slice = ALL) -> Tensor:
        """[T, outputs] of x [T, inputs], or the outputs that ``rows`` names."""
        return self.scheme.product(self.device, self, x, rows)


def load(
    module: nn.Module, weights: Callable[[Shapes], Callable[..., Tensor]], device: Device
) -> None:
    """Fills a module that was made without memory, each tensor brought to ``device`` as it is read
    by ``weights``, which is `Checkpoint.weights`."""
    wanted: Shapes = {}
    plans: dict[str, tuple[Float, str, Shapes]] = {}
    for full_name, parameter in module.named_parameters():
        owner, _, name = full_name.rpartition(".")
        layer = module.get_submodule(owner)
        scheme, sources = Float(), {full_name: parameter.shape}
        if isinstance(layer, Linear):
            scheme, sources = layer.scheme, layer.sources(owner, name)
        plans[full_name] = scheme, name, sources
        wanted |= sources
    read = weights(wanted)
    loaded = {
        full_name: scheme.pack(device, name, read(*sources))
        for full_name, (scheme, name, sources) in plans.items()
    }
    module.load_state_dict(loaded, assign=True)
    module.requires_grad_(False)
