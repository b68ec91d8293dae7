"""The simulated operators against the CPU's: every family, in several layouts and dtypes."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

torch_npu = pytest.importorskip("torch_npu")
pytestmark = pytest.mark.usefixtures("sim")

Place = Callable[[torch.Tensor], torch.Tensor]

# elementwise operators run the CPU's kernels: only products and sums of 16-bit operands differ,
# which the device takes in float
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
FLOATS = list(TOLERANCE)
DTYPES = [*FLOATS, torch.int32, torch.int64, torch.int16, torch.int8, torch.uint8, torch.bool]


def plain(t: torch.Tensor) -> torch.Tensor:
    return t.npu()


def sliced(t: torch.Tensor) -> torch.Tensor:
    """Every second element of a larger tensor."""
    if t.dim() == 0:
        return t.npu()
    return torch.stack([t, t], -1).flatten(-2).npu()[..., ::2]


def transposed(t: torch.Tensor) -> torch.Tensor:
    if t.dim() < 2:
        return t.npu()
    return t.transpose(0, -1).contiguous().npu().transpose(0, -1)


def offset(t: torch.Tensor) -> torch.Tensor:
    """Behind something else in one allocation."""
    if t.dim() == 0:
        return t.npu()
    return torch.cat([t[:1], t]).npu()[1:]


LAYOUTS = {f.__name__: f for f in (plain, sliced, transposed, offset)}

A, B = torch.randn(6, 8), torch.randn(6, 8)
M = torch.randn(4, 6, 8)
H = torch.randn(2, 3, 6, 8)
V = torch.randn(3, 8)
I = torch.tensor([4, 0, 2])  # noqa: E741
L = torch.randint(0, 8, (6, 8))
P = A.abs() + 0.5


def changed(t: torch.Tensor, change: Callable[[torch.Tensor], object]) -> torch.Tensor:
    """What an operation in place made of a copy."""
    t = t.clone()
    change(t)
    return t


# d places a tensor on the device under test, x is A in the dtype under test
CASES: dict[str, Callable[[Place, torch.Tensor], torch.Tensor]] = {
    "add": lambda d, x: d(x) + d(x),
    "add broadcast": lambda d, x: d(x) + d(x[0]),
    "add alpha": lambda d, x: torch.add(d(x), d(x), alpha=2),
    "add scalar": lambda d, x: d(x) + 1.5,
    "add in place": lambda d, x: changed(d(x), lambda t: t.add_(d(x)).add_(2)),
    "sub": lambda d, x: d(x) - d(x.flip(0)),
    "sub scalar": lambda d, x: d(x) - 3,
    "scalar sub": lambda d, x: 1 - d(x),
    "sub in place": lambda d, x: changed(d(x), lambda t: t.sub_(d(x.flip(0))).sub_(1)),
    "mul": lambda d, x: d(x) * d(x),
    "mul scalar": lambda d, x: d(x) * 0.25,
    "mul column": lambda d, x: d(x) * d(x)[:, :1],
    "mul in place": lambda d, x: changed(d(x), lambda t: t.mul_(d(x)).mul_(2)),
    "div": lambda d, x: d(x) / d(x.abs() + 1),
    "div scalar": lambda d, x: d(x) / 3,
    "scalar div": lambda d, x: 1 / d(x.abs() + 1),
    "div in place": lambda d, x: changed(d(x), lambda t: t.div_(d(x.abs() + 1)).div_(2)),
    "neg": lambda d, x: -d(x),
    "abs": lambda d, x: d(x).abs(),
    "exp": lambda d, x: d(x).exp(),
    "log": lambda d, x: d(x.abs() + 1).log(),
    "sqrt": lambda d, x: d(x.abs()).sqrt(),
    "rsqrt": lambda d, x: torch.rsqrt(d(x.abs() + 1)),
    "square": lambda d, x: d(x).square(),
    "pow": lambda d, x: d(x).pow(3),
    "scalar pow": lambda d, x: 10.0 ** d(x),
    "tensor pow": lambda d, x: d(x.abs() + 1) ** d(x),
    "sin": lambda d, x: d(x).sin(),
    "cos": lambda d, x: d(x).cos(),
    "sigmoid": lambda d, x: torch.sigmoid(d(x)),
    "tanh": lambda d, x: torch.tanh(d(x)),
    "silu": lambda d, x: F.silu(d(x)),
    "gelu tanh": lambda d, x: F.gelu(d(x), approximate="tanh"),
    "clamp": lambda d, x: d(x).clamp(-0.5, 0.5),
    "clamp_min": lambda d, x: d(x).clamp_min(0.0),
    "clamp_max": lambda d, x: d(x).clamp_max(0.0),
    "maximum": lambda d, x: torch.maximum(d(x), d(x.flip(0))),
    "minimum": lambda d, x: torch.minimum(d(x), d(x.flip(0))),
    "eq": lambda d, x: d(x) == d(x),
    "ne scalar": lambda d, x: d(x) != 0,
    "gt": lambda d, x: d(x) > d(x.flip(0)),
    "ge scalar": lambda d, x: d(x) >= 0,
    "lt": lambda d, x: d(x) < d(x.flip(0)),
    "le scalar": lambda d, x: d(x) <= 0,
    "and": lambda d, x: (d(x) > 0) & (d(x) < 1),
    "or": lambda d, x: (d(x) > 1) | (d(x) < 0),
    "not": lambda d, x: ~(d(x) > 0),
    "logical": lambda d, x: torch.logical_and(torch.logical_or(d(x), d(x)), ~(d(x) > 0)),
    "bitwise": lambda d, x: (d(L) & 3) | 4,
    "isnan": lambda d, x: torch.isnan(d(x)),
    "isfinite": lambda d, x: torch.isfinite(d(x / 0)),
    "where": lambda d, x: torch.where(d(x) > 0, d(x), d(x.flip(0))),
    "where scalar": lambda d, x: torch.where(d(x) > 0, d(x), 0.0),
    "masked_fill": lambda d, x: d(x).masked_fill(d(x) > 0, -100.0),
    "fill": lambda d, x: changed(d(x), lambda t: t[1:3].fill_(7)),
    "zero": lambda d, x: changed(d(x), lambda t: t[:, 2:5].zero_()),
    "copy": lambda d, x: changed(d(x), lambda t: t[1:4].copy_(d(V))),
    "tril": lambda d, x: torch.tril(d(x)),
    "triu": lambda d, x: torch.triu(d(x), 1),
    "sum": lambda d, x: d(x).sum(-1),
    "sum all": lambda d, x: d(x).sum(),
    "sum of bool": lambda d, x: (d(x) > 0).sum(0),
    "mean": lambda d, x: d(x).mean(-1, keepdim=True),
    "mean all": lambda d, x: d(x).mean(),
    "cumsum": lambda d, x: d(L).cumsum(0),
    "cumsum of bool": lambda d, x: (d(x) > 0).cumsum(-1),
    "amax": lambda d, x: d(x).amax((0, 1)),
    "amin": lambda d, x: d(x).amin(-1),
    "max": lambda d, x: d(x).max(),
    "min": lambda d, x: d(x).min(),
    "max values": lambda d, x: d(x).max(-1)[0],
    "max indices": lambda d, x: d(A).max(-1)[1],
    "min values": lambda d, x: d(x).min(0)[0],
    "all": lambda d, x: (d(x) > -9).all(),
    "all rows": lambda d, x: (d(x) > -1).all(-1),
    "any": lambda d, x: (d(x) > 2).any(),
    "any columns": lambda d, x: (d(x) > 1).any(0),
    "norm": lambda d, x: d(x).norm(dim=-1),
    "vector_norm": lambda d, x: torch.linalg.vector_norm(d(x), dim=-1, keepdim=True),
    "normalize": lambda d, x: F.normalize(d(x), dim=-1),
    "softmax": lambda d, x: torch.softmax(d(x), -1),
    "layer_norm": lambda d, x: F.layer_norm(d(x), (8,), d(x[0]), d(x[1])),
    "layer_norm over two dimensions": lambda d, x: F.layer_norm(
        d(M.to(x.dtype)), (6, 8), d(x), d(x.flip(0))
    ),
    "layer_norm bare": lambda d, x: F.layer_norm(d(x), (8,)),
    "rms_norm": lambda d, x: F.rms_norm(d(x), (8,), d(x[0])),
    "mm": lambda d, x: torch.mm(d(x), d(x).t()),
    "matmul 3d": lambda d, x: d(M.to(x.dtype)) @ d(x).t(),
    "matmul 4d": lambda d, x: d(H.to(x.dtype)) @ d(H.to(x.dtype)).transpose(-1, -2),
    "mv": lambda d, x: d(x) @ d(x[0]),
    "dot": lambda d, x: d(x)[0] @ d(x)[1],
    "linear": lambda d, x: F.linear(d(x), d(x)),
    "linear bias": lambda d, x: F.linear(d(x), d(x), d(x)[:, 0]),
    "linear 3d bias": lambda d, x: F.linear(d(M.to(x.dtype)), d(x), d(x)[:, 0]),
    "addmm": lambda d, x: torch.addmm(d(x)[:, :6], d(x), d(x).t()),
    "bmm": lambda d, x: torch.bmm(d(M.to(x.dtype)), d(M.to(x.dtype)).transpose(1, 2)),
    "baddbmm": lambda d, x: torch.baddbmm(
        d(M.to(x.dtype))[:, :, :6], d(M.to(x.dtype)), d(M.to(x.dtype)).transpose(1, 2)
    ),
    "einsum": lambda d, x: torch.einsum("bij,kj->bik", d(M.to(x.dtype)), d(x)),
    "cat": lambda d, x: torch.cat([d(x), d(x)[:2]]),
    "cat last": lambda d, x: torch.cat([d(x), -d(x)], -1),
    "stack": lambda d, x: torch.stack([d(x), d(x)], 1),
    "chunk": lambda d, x: d(x).chunk(2, -1)[1].contiguous(),
    "split": lambda d, x: torch.cat(d(x).split([2, 6], -1)[::-1], -1),
    "unbind": lambda d, x: d(M).unbind(1)[2] + 0,
    "permute": lambda d, x: d(M).permute(2, 0, 1).contiguous(),
    "expand": lambda d, x: d(x)[:, None].expand(6, 3, 8).reshape(18, 8),
    "repeat": lambda d, x: d(x).repeat(2, 3),
    "repeat_interleave": lambda d, x: d(x).repeat_interleave(2, 0),
    "repeat_interleave tensor": lambda d, x: d(x).repeat_interleave(
        d(torch.tensor([1, 2, 0, 1, 1, 3])), 0
    ),
    "repeat_interleave flat": lambda d, x: d(x).repeat_interleave(3),
    "embedding": lambda d, x: F.embedding(d(I), d(x)),
    "embedding int32": lambda d, x: F.embedding(d(I.int()), d(x)),
    "index_select": lambda d, x: d(x).index_select(0, d(I)),
    "index_select int32": lambda d, x: d(x).index_select(1, d(I.int())),
    "gather": lambda d, x: d(x).gather(1, d(L)),
    "index": lambda d, x: d(x)[d(I)],
    "index two": lambda d, x: d(x)[d(I), d(I)],
    "index last": lambda d, x: d(x)[:, d(I)],
    "index_put": lambda d, x: changed(d(x), lambda t: t.__setitem__(d(I), d(V.to(x.dtype)))),
    "index_put add": lambda d, x: changed(
        d(x), lambda t: t.index_put_((d(torch.tensor([1, 1])),), d(x[:2]), accumulate=True)
    ),
    "index_add": lambda d, x: changed(d(x), lambda t: t.index_add_(0, d(I), d(V.to(x.dtype)))),
    "index_copy": lambda d, x: changed(d(x), lambda t: t.index_copy_(0, d(I), d(V.to(x.dtype)))),
    "index_copy of rows that come twice": lambda d, x: changed(
        d(x), lambda t: t.index_copy_(0, d(I[[0, 1, 0, 2, 0]]), d(V.to(x.dtype)[[0, 1, 0, 2, 0]]))
    ),
    "scatter": lambda d, x: changed(d(x), lambda t: t.scatter_(1, d(I)[None], d(x)[:1, :3])),
    "scatter value": lambda d, x: changed(d(x), lambda t: t.scatter_(1, d(I)[None], 1.0)),
    "searchsorted": lambda d, x: torch.searchsorted(d(torch.arange(10)), d(L)),
    "searchsorted right": lambda d, x: torch.searchsorted(d(torch.arange(10)), d(L), right=True),
}


def check(got: torch.Tensor, want: torch.Tensor) -> None:
    assert got.device.type == "npu"
    tolerance = TOLERANCE.get(want.dtype, 0)
    torch.testing.assert_close(
        got.cpu(), want, rtol=tolerance, atol=tolerance, equal_nan=True, check_stride=False
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_against_the_cpu(name: str, layout: str) -> None:
    case = CASES[name]
    for dtype in FLOATS:
        x = A.to(dtype)
        check(case(LAYOUTS[layout], x), case(lambda t: t, x))


@pytest.mark.parametrize("source", DTYPES, ids=str)
def test_casts(source: torch.dtype) -> None:
    values = (torch.arange(24).view(4, 6) % 5).to(source)
    for layout in LAYOUTS.values():
        for target in DTYPES:
            placed = layout(values)
            check(placed.to(target), values.to(target))
            check(torch.empty(4, 6, dtype=target, device="npu").copy_(placed), values.to(target))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_constants(dtype: torch.dtype) -> None:
    for make in (
        lambda **o: torch.zeros(3, 4, **o),
        lambda **o: torch.ones(3, 4, **o),
        lambda **o: torch.full((5,), 1, **o),
        lambda **o: torch.tensor([1, 0, 1], **o),
    ):
        check(make(dtype=dtype, device="npu"), make(dtype=dtype))
    if dtype != torch.bool:
        check(torch.arange(1, 9, 3, dtype=dtype, device="npu"), torch.arange(1, 9, 3, dtype=dtype))
    like = torch.ones(2, 3, dtype=dtype).npu()
    check(torch.zeros_like(like), torch.zeros(2, 3, dtype=dtype))
    check(like.new_full((2,), 1), torch.ones(2, dtype=dtype))


@given(
    rows=st.integers(0, 9),
    width=st.integers(1, 9),
    inner=st.integers(1, 20),
    dtype=st.sampled_from(FLOATS),
    transpose=st.booleans(),
)
def test_products_of_any_shape(
    rows: int, width: int, inner: int, dtype: torch.dtype, transpose: bool
) -> None:
    a, b = torch.randn(rows, inner).to(dtype), torch.randn(width, inner).to(dtype)
    d = transposed if transpose else plain
    # 16-bit sums are taken in float and rounded once, exactly
    want = (a.double() @ b.double().t()).to(dtype)
    torch.testing.assert_close(F.linear(d(a), d(b)).cpu(), want, rtol=1e-2, atol=1e-3)
    assert F.linear(d(a), d(b), d(b)[:, 0].contiguous()).shape == (rows, width)


@given(
    left=st.sampled_from([(1,), (6, 1), (4, 1, 8), (1, 6, 8), (4, 6, 8)]),
    right=st.sampled_from([(8,), (6, 8), (1, 1), (4, 1, 1)]),
    types=st.tuples(st.sampled_from(DTYPES[:5]), st.sampled_from(DTYPES[:5])),
)
def test_broadcasting_and_promotion(
    left: tuple[int, ...], right: tuple[int, ...], types: tuple[torch.dtype, torch.dtype]
) -> None:
    a, b = (torch.randint(-9, 9, s).to(t) for s, t in zip((left, right), types, strict=True))
    for operation in (torch.add, torch.sub, torch.mul, torch.gt):
        check(operation(a.npu(), b.npu()), operation(a, b))


def test_fused_operators_of_a_decoder() -> None:
    x, y, g = torch.randn(5, 96), torch.randn(5, 96), torch.rand(96)
    for dtype in FLOATS:
        a, b, w = x.to(dtype), y.to(dtype), g.to(dtype)

        def norm(t: torch.Tensor, w: torch.Tensor = w) -> torch.Tensor:
            return F.rms_norm(t.float(), (96,), w.float(), 1e-6)

        def near(got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype = dtype) -> None:
            assert got.dtype == dtype
            tolerance = TOLERANCE[dtype]
            torch.testing.assert_close(got.cpu().float(), want, rtol=tolerance, atol=tolerance)

        near(torch_npu.npu_rms_norm(a.npu(), w.npu(), 1e-6)[0], norm(a))
        normed, _, total = torch_npu.npu_add_rms_norm(a.npu(), b.npu(), w.npu(), 1e-6)
        near(total, (a + b).float())
        near(normed, norm(a + b))
        half = a.float().chunk(2, -1)
        near(torch_npu.npu_swiglu(a.npu(), -1), F.silu(half[0]) * half[1])


@pytest.mark.parametrize("mode", ["half", "interleave"])
def test_rotary_positions(mode: str) -> None:
    q = torch.randn(1, 7, 3, 16)
    cos, sin = torch.rand(1, 7, 1, 16), torch.rand(1, 7, 1, 16)
    if mode == "half":
        turned = torch.cat([-q[..., 8:], q[..., :8]], -1)
    else:
        turned = torch.stack([-q[..., 1::2], q[..., ::2]], -1).flatten(-2)
    got = torch_npu.npu_rotary_mul(q.npu(), cos.npu(), sin.npu(), mode)
    check(got, q * cos + turned * sin)


def test_gelu_is_the_tanh_formula_unless_npu_gelu_is_called() -> None:
    check(F.gelu(A.npu()), F.gelu(A, approximate="tanh"))
    for approximate in ("none", "tanh"):
        got = torch_npu.npu_gelu(A.npu(), approximate=approximate)
        check(got, F.gelu(A, approximate=approximate))


def test_data_dependent_shapes_outside_a_capture() -> None:
    mask = A > 0
    check(torch.nonzero(mask.npu()), torch.nonzero(mask))
    check(A.npu()[mask.npu()], A[mask])
    check(A.npu().masked_select(mask.npu()), A[mask])
    # for the reports of pytest
    assert repr(torch.ones(2).npu()) == "tensor([1., 1.], device='npu:0')"


def test_index_copy_refuses_what_the_device_refuses() -> None:
    index, rows = I.npu(), V.npu()
    with pytest.raises(RuntimeError, match="self is Float, source is BFloat16"):
        A.npu().index_copy_(0, index, rows.bfloat16())
    with pytest.raises(RuntimeError, match="index dtype Short"):
        A.npu().index_copy_(0, index.short(), rows)


@pytest.mark.parametrize("times", [1, 2])
def test_a_missing_operator_is_named(times: int) -> None:
    for _ in range(times):  # torch_npu looks its symbol up only once
        with pytest.raises(RuntimeError, match="looked for aclnnAtan"):
            torch.atan(A.npu())
