"""torch.ops.pyrerank on an NPU, with the extension of this environment: eagerly and replayed."""

import pytest
import torch

from pyrerank.kernels import ops
from pyrerank.kernels.calls import POOL_MODES

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
LENGTHS = [3, 1, 40, 7]


def inputs(dtype: torch.dtype, width: int) -> tuple[torch.Tensor, ...]:
    """hidden, cu_seqlens, index, norm_weight, w; on the CPU."""
    hidden = torch.randn(sum(LENGTHS), width).to(dtype)
    cu_seqlens = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    index = torch.tensor([0, 50, 17], dtype=torch.int32)
    norm_weight, w = 1 + 0.1 * torch.randn(width), torch.randn(width)
    return hidden, cu_seqlens, index, norm_weight.to(dtype), w / w.norm()


def calls(hidden, cu_seqlens, index, norm_weight, w) -> dict[str, object]:
    """Every operator in every mode, by name, still to be called."""
    score = (hidden, index, norm_weight, 1e-6, w, 0.5)
    pool = (hidden, cu_seqlens, norm_weight, 1e-6)
    modes = {f"pool {mode}": (*pool, mode) for mode in POOL_MODES}
    return {
        "gather spans": lambda m: m("last_token_gather")(hidden, cu_seqlens),
        "gather index": lambda m: m("last_token_gather")(hidden, index=index),
        "score": lambda m: torch.stack(m("score_head")(*score)),
        "pool part": lambda m: m("fused_pool")(*pool, "last", hidden.shape[1] // 2),
        "pool raw": lambda m: m("fused_pool")(hidden, cu_seqlens, None, normalize=False),
    } | {name: lambda m, a=arguments: m("fused_pool")(*a) for name, arguments in modes.items()}


def kernel(name: str):
    return getattr(ops, name)


def twin(name: str):
    return getattr(ops, f"{name}_reference")


@pytest.mark.parametrize("width", [64, 1008, 4096])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_eager_and_replayed_as_the_twin_on_the_cpu(dtype, width):
    host = inputs(dtype, width)
    want = {name: call(twin) for name, call in calls(*host).items()}
    device = [tensor.npu() for tensor in host]
    todo = calls(*device)
    for name, call in todo.items():
        got = call(kernel).cpu()
        torch.testing.assert_close(got, want[name], atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])

    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        results = {name: call(kernel) for name, call in todo.items()}
    other = inputs(dtype, width)
    for old, new in zip(device, other, strict=True):
        old.copy_(new)
    graph.replay()
    for name, call in calls(*other).items():
        again = call(twin)
        torch.testing.assert_close(
            results[name].cpu(), again, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
        )


def test_rows_that_are_not_there_become_nan():
    hidden, _, _, norm_weight, w = (tensor.npu() for tensor in inputs(torch.bfloat16, 128))
    index = torch.tensor([5, -1, 51, 0], dtype=torch.int32, device="npu")
    score, logit = ops.score_head(hidden, index, norm_weight, 1e-6, w)
    assert score.isnan().tolist() == logit.isnan().tolist() == [False, True, True, False]
    rows = ops.last_token_gather(hidden, index=index)
    assert rows.isnan().any(1).tolist() == [False, True, True, False]
    empty = torch.tensor([0, 2, 2, 9], dtype=torch.int32, device="npu")
    assert ops.fused_pool(hidden, empty).isnan().any(1).tolist() == [False, True, False]


def test_nothing_asked_nothing_launched(sim):
    hidden, _, _, norm_weight, w = (tensor.npu() for tensor in inputs(torch.float32, 64))
    none = torch.zeros(0, dtype=torch.int32, device="npu")
    launches = sim.count("score_head_float32")
    score, logit = ops.score_head(hidden, none, norm_weight, 1e-6, w)
    assert score.shape == logit.shape == (0,) and sim.count("score_head_float32") == launches


def test_tensors_of_two_places_are_refused():
    hidden, _, index, norm_weight, w = (tensor.npu() for tensor in inputs(torch.float32, 64))
    with pytest.raises(ValueError, match="w: got device cpu, wanted hidden's, npu:0"):
        ops.score_head(hidden, index, norm_weight, 1e-6, w.cpu())
