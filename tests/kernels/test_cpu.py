"""The kernels of csrc/cpu against float64, in the build for this processor and the portable one."""

import re
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from strict_build import load_strict
from torch import Tensor

from pyrerank.devices.select import resolve
from pyrerank.engine.batch import pack
from pyrerank.kernels import cpu, extension

# half a unit in the last place, doubled for what float32 arithmetic moves across the middle
ROUNDING = {torch.bfloat16: 2**-8, torch.float32: 2**-21}
SIZES = st.one_of(st.integers(1, 40), st.sampled_from([127, 128, 1024, 1030]))

CPU = resolve("cpu")

pytestmark = pytest.mark.skipif(extension._C is None, reason="installed without a compiler")


@pytest.fixture(
    params=["this processor", pytest.param("portable", marks=pytest.mark.slow)],
    autouse=True,
    scope="module",
)
def build(request: pytest.FixtureRequest) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "portable":
            patch.setattr(extension, "_C", load_strict())
        yield


@pytest.fixture(params=list(ROUNDING), ids=str, scope="module")
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


def assert_rounded(got: Tensor, want: Tensor, slack: float = 0.0) -> None:
    assert got.shape == want.shape
    error = (got.double() - want).abs()
    bound = want.abs() * ROUNDING[got.dtype] + slack + 1e-30
    assert (error <= bound).all(), (error - bound).max()


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


class TestAddRmsNorm:
    @settings(max_examples=25)
    @given(rows=st.integers(0, 9), width=SIZES, add=st.booleans(), size=st.sampled_from([1e-3, 40]))
    def test_value(self, dtype, rows, width, add, size):
        x, y = (torch.randn(2, rows, width) * size).to(dtype)
        weight = torch.randn(width).to(dtype)
        total, normed = CPU.add_rms_norm(x, y if add else None, weight, 1e-6)
        want = (x.double() + y.double()).to(dtype) if add else x
        assert torch.equal(total, want)
        assert_rounded(normed, norm(want.double(), weight.double(), 1e-6))

    def test_a_nan_stays_in_its_row(self, dtype):
        x = torch.ones(3, 64, dtype=dtype)
        x[1, 7] = torch.nan
        normed = CPU.add_rms_norm(x, None, torch.ones(64, dtype=dtype), 1e-6)[1]
        assert normed.isnan().all(1).tolist() == [False, True, False]


class TestRotate:
    @settings(max_examples=25)
    @given(
        rows=st.integers(1, 9),
        heads=st.integers(1, 5),
        half=st.sampled_from([1, 8, 10, 36, 64, 128]),
        gap=st.sampled_from([0, 3]),
        normed=st.booleans(),
        wide=st.booleans(),
    )
    def test_value(self, dtype, rows, heads, half, gap, normed, wide):
        """Of rows that lie apart, in place; angles in the dtype of x, or in float32."""
        whole = torch.randn(rows, heads + gap, 2 * half).to(dtype)
        before = whole.clone()
        weight = torch.randn(2 * half).to(dtype)
        angle = torch.randn(rows, 1, 2 * half, dtype=torch.float64) * 100
        cos, sin = (
            t.float().to(torch.float32 if wide else dtype) for t in (angle.cos(), angle.sin())
        )
        x = whole[:, :heads]
        call = (weight, 1e-6) if normed else ()
        got = CPU.rotate(x, cos, sin, *call)
        want = before[:, :heads].double()
        if normed:
            want = norm(want, weight.double(), 1e-6)
        a, b = want.chunk(2, -1)
        slack = want.abs().amax(-1, keepdim=True) * 2**-21  # of the two that are added
        want = want * cos.double() + torch.cat((-b, a), -1) * sin.double()
        assert_rounded(got, want, slack)
        assert got.data_ptr() == whole.data_ptr()
        assert torch.equal(whole[:, heads:], before[:, heads:])


class TestSwiGlu:
    @settings(max_examples=25)
    @given(rows=st.integers(0, 9), width=SIZES, size=st.sampled_from([1.0, 30.0]))
    def test_value(self, dtype, rows, width, size):
        x = (torch.randn(rows, 2 * width) * size).to(dtype)
        gate, up = x.double().chunk(2, -1)
        # float32's own exponential of a large argument is this far off
        slack = (F.silu(gate) * up).abs() * 2**-17 if size > 1 else 0.0
        assert_rounded(CPU.swiglu(x), F.silu(gate) * up, slack)

    def test_far_out(self, dtype):
        gate = torch.tensor([-torch.inf, -3e38, -1e4, -126.0, -87.0, -0.0, 100.0, 3e38, torch.inf])
        x = torch.stack((gate, torch.ones(9)), 1).flatten()[None].view(1, 9, 2).transpose(1, 2)
        got = CPU.swiglu(x.reshape(1, 18).to(dtype))[0]
        assert got[1:6].abs().max() < 1e-35
        assert got[6:].tolist() == gate[6:].to(dtype).tolist()
        assert got[0].isnan() or got[0] == 0


@settings(max_examples=25)
@given(rows=st.integers(0, 9), width=SIZES, size=st.sampled_from([1.0, 30.0, 1e9]))
def test_gelu(dtype, rows, width, size):
    x = (torch.randn(rows, width) * size).to(dtype)
    # tanh is 1 in float64 long before a float32 is
    assert_rounded(CPU.gelu(x, "tanh"), F.gelu(x.double(), approximate="tanh"), 1e-6)


@settings(max_examples=25)
@given(rows=st.integers(0, 80), width=SIZES, bias=st.booleans())
def test_a_row_is_multiplied_alone_as_among_others(dtype, rows, width, bias):
    x, weight = torch.randn(200, width).to(dtype), torch.randn(96, width).to(dtype)
    add = torch.randn(96).to(dtype) if bias else None
    whole = CPU.linear(x, weight, add)
    want = x.double() @ weight.double().T + (0 if add is None else add.double())
    assert_rounded(whole, want, slack=2e-5 * width**0.5)
    part = CPU.linear(x[:rows], weight, add)
    if dtype == torch.bfloat16 and torch.cpu.get_capabilities().get("amx_bf16"):
        assert_rounded(part, want[:rows], slack=2e-5 * width**0.5)
    else:
        assert torch.equal(part, whole[:rows])


def reference(
    q: Tensor, k: Tensor, v: Tensor, lengths: list[int], kv_rows: list[Tensor], causal: bool
) -> Tensor:
    out, start = [], 0
    for length, rows in zip(lengths, kv_rows, strict=True):
        group = q.shape[1] // k.shape[1]
        query = q[start : start + length].double().transpose(0, 1)
        keys, values = (x[rows].double().transpose(0, 1) for x in (k, v))
        keys, values = (x.repeat_interleave(group, 0) for x in (keys, values))
        scores = query @ keys.mT / q.shape[2] ** 0.5
        if causal:
            hidden = torch.ones(length, len(rows)).triu(len(rows) - length + 1).bool()
            scores = scores.masked_fill(hidden, -torch.inf)
        out.append((scores.softmax(-1) @ values).transpose(0, 1))
        start += length
    return torch.cat(out)


# beyond the blocks of the kernel: 48 queries, 512 keys, 512 queries of a task
LENGTHS = st.one_of(st.integers(1, 70), st.sampled_from([511, 512, 513, 600]))


class TestAttention:
    @settings(max_examples=30)
    @given(
        lengths=st.lists(LENGTHS, min_size=1, max_size=4),
        shared=st.sampled_from([0, 1, 63, 500, 513]),
        heads=st.sampled_from([(1, 1), (4, 2), (6, 1)]),
        head_dim=st.sampled_from([2, 16, 20, 64, 72, 128, 256]),
        causal=st.booleans(),
    )
    def test_value(self, dtype, lengths, shared, heads, head_dim, causal):
        """Of rows that lie apart; every sequence goes on from the same keys, in mixed order."""
        query_heads, kv_heads = heads
        tokens = sum(lengths)
        q = torch.randn(tokens, query_heads + 1, head_dim).to(dtype)[:, :query_heads]
        k, v = torch.randn(2, shared + tokens, kv_heads + 2, head_dim).to(dtype)[:, :, :kv_heads]
        place = torch.randperm(shared + tokens)
        own = place[shared:].split(lengths)
        paths = [torch.cat((place[:shared], rows)) for rows in own]
        kv_lengths = [len(path) for path in paths]
        run = (lengths, kv_lengths, torch.cat(paths).int())
        got = cpu.attention(q, k, v, *run, causal=causal)
        want = reference(q, k, v, lengths, paths, causal)
        # shares are rounded to the dtype of v before they mix it
        error = (got.double() - want).abs().max()
        assert error <= {torch.float32: 4e-6, torch.bfloat16: 2.5e-2}[dtype]
        # and no one error: rounding of single shares averages out
        assert (got.double() - want).mean().abs() <= {torch.float32: 1e-7, torch.bfloat16: 1e-3}[
            dtype
        ]

    @settings(max_examples=20)
    @given(length=LENGTHS, data=st.data())
    def test_a_query_has_the_same_bits_alone(self, dtype, length, data):
        q, k, v = torch.randn(3, length, 2, 32).to(dtype)
        whole = cpu.attention(q, k, v, [length], [length], None, causal=True)
        count = data.draw(st.integers(1, length))
        part = cpu.attention(q[-count:], k, v, [count], [length], None, causal=True)
        assert torch.equal(part, whole[-count:])
        end = data.draw(st.integers(1, length))
        start = cpu.attention(q[:end], k, v, [end], [end], None, causal=True)
        assert torch.equal(start, whole[:end])

    def test_large_scores(self, dtype):
        """The running maximum is that of a later block."""
        q = torch.full((1, 1, 16), 30.0, dtype=dtype)
        k = torch.full((1500, 1, 16), -30.0, dtype=dtype)
        k[700], k[1400] = 30.0, 30.0
        v = torch.arange(1500.0).to(dtype)[:, None, None].expand(-1, 1, 16).contiguous()
        got = cpu.attention(q, k, v, [1], [1500], None, causal=False)
        want = (v[700].double() + v[1400].double()) / 2
        assert_rounded(got[0], want)

    def test_a_head_dim_that_is_too_large(self, dtype):
        x = torch.zeros(1, 1, 258, dtype=dtype)
        with pytest.raises(ValueError, match="head_dim must be even and at most 256, got 258"):
            cpu.attention(x, x, x, [1], [1], None, causal=True)
        with pytest.raises(ValueError, match="head_dim must be even and at most 256, got 258"):
            cpu.norm_rotate_(x, None, 0.0, x, x)

    @pytest.mark.parametrize("head_dim", [7, 258])
    def test_torch_takes_a_head_dim_that_the_kernel_does_not(self, dtype, head_dim):
        q, (k, v) = torch.randn(9, 4, head_dim).to(dtype), torch.randn(2, 9, 2, head_dim).to(dtype)
        lengths = [4, 5]
        rows = list(torch.arange(9).split(lengths))
        batch = pack([[0] * length for length in lengths], [()] * 2, [0, 0])
        for got, causal in (
            (CPU.full_attention(q, k, v, lengths), False),
            (CPU.attention(dtype, captured=False)(q, k, v, batch), True),
        ):
            want = reference(q, k, v, lengths, rows, causal)
            error = (got.double() - want).abs().max()
            assert error <= {torch.float32: 4e-6, torch.bfloat16: 2.5e-2}[dtype]
        if head_dim % 2 == 0:
            cos, sin = torch.randn(2, 9, 1, head_dim).to(dtype)
            weight = torch.randn(head_dim).to(dtype)
            want = CPU.rms_norm(q, weight, 1e-6)
            a, b = want.chunk(2, -1)
            want = want * cos + torch.cat((-b, a), -1) * sin
            assert torch.equal(CPU.rotate(q.clone(), cos, sin, weight, 1e-6), want)


def test_the_number_of_threads_changes_no_bit(dtype):
    x = torch.randn(300, 512).to(dtype)
    weight = torch.randn(512).to(dtype)
    q = torch.randn(300, 4, 32).to(dtype)

    def run() -> list[Tensor]:
        return [
            CPU.add_rms_norm(x, x, weight, 1e-6)[1],
            CPU.swiglu(x),
            cpu.attention(q, q, q, [100, 200], [100, 200], None, causal=True),
        ]

    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(run())
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_plain_torch_stands_in(dtype, monkeypatch):
    """Without the extension the same steps are done one by one, and round in between."""
    x = torch.randn(20, 6, 32).to(dtype)
    weight = torch.randn(32).to(dtype)
    cos, sin = torch.randn(2, 20, 1, 32).to(dtype)
    flat, wide = x.flatten(1), torch.randn(192).to(dtype)

    def run() -> list[Tensor]:
        return [
            CPU.rotate(x.clone(), cos, sin, weight, 1e-6),
            CPU.rotate(x.clone(), cos, sin),
            *CPU.add_rms_norm(flat, flat, wide, 1e-6),
            CPU.add_rms_norm(flat, None, wide, 1e-6)[1],
            CPU.swiglu(flat),
            CPU.gelu(flat, "tanh"),
        ]

    fused = run()
    monkeypatch.setattr(extension, "_C", None)
    assert not cpu.takes(x)
    for got, want in zip(fused, run(), strict=True):
        scale = want.abs().max().item()
        torch.testing.assert_close(got, want, rtol=0, atol=3 * ROUNDING[dtype] * scale)


ROWS, GAIN = torch.ones(4, 64), torch.ones(64)
HEADS, ANGLES = torch.ones(4, 2, 32), torch.ones(4, 1, 32)


def attend(q=HEADS, k=HEADS, v=HEADS, lengths=(4,), kv_lengths=(4,), rows=None, causal=True):
    return cpu.attention(q, k, v, [*lengths], [*kv_lengths], rows, causal=causal)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: CPU.add_rms_norm(ROWS.bfloat16(), None, GAIN, 1e-6),
            TypeError,
            "x: got torch.bfloat16 on cpu, wanted torch.float32 on the CPU",
        ),
        (lambda: CPU.add_rms_norm(ROWS, ROWS.bfloat16(), GAIN, 1e-6), TypeError, "y: got"),
        (lambda: CPU.add_rms_norm(ROWS, ROWS[:3], GAIN, 1e-6), ValueError, "y: got shape"),
        (lambda: CPU.add_rms_norm(ROWS, None, GAIN[1:], 1e-6), ValueError, "weight: got shape"),
        (lambda: CPU.add_rms_norm(ROWS, None, GAIN.half(), 1e-6), TypeError, "weight: got"),
        (lambda: CPU.add_rms_norm(ROWS, None, GAIN.to("meta"), 1e-6), TypeError, "on meta"),
        (lambda: CPU.add_rms_norm(ROWS[None], None, GAIN, 1e-6), ValueError, "2 dimensions"),
        (
            lambda: CPU.add_rms_norm(torch.ones(64, 4).T, None, GAIN, 1e-6),
            ValueError,
            "x: got strides (1, 4), wanted it contiguous; pass a contiguous copy",
        ),
        (lambda: CPU.swiglu(torch.ones(64, 4).T), ValueError, "gate_up: got strides"),
        (lambda: CPU.swiglu(torch.ones(4, 63)), ValueError, "wanted (4, 62)"),
        (lambda: CPU.gelu(ROWS[:, ::2], "tanh"), ValueError, "x: got strides (64, 2)"),
        (
            lambda: CPU.rotate(HEADS.transpose(0, 1), ANGLES[:2], ANGLES[:2]),
            ValueError,
            "wanted rows that are contiguous",
        ),
        (lambda: CPU.rotate(HEADS, ANGLES, ANGLES[:3]), ValueError, "sin: got shape"),
        (lambda: CPU.rotate(HEADS, ANGLES.double(), ANGLES), TypeError, "cos: got"),
        (lambda: CPU.rotate(HEADS, ANGLES, ANGLES.bfloat16()), TypeError, "sin: got"),
        (
            lambda: CPU.rotate(HEADS, ANGLES, ANGLES, GAIN, 1e-6),
            ValueError,
            "weight: got shape (64,), wanted (32,)",
        ),
        (lambda: attend(k=HEADS.bfloat16()), TypeError, "key: got torch.bfloat16"),
        (lambda: attend(v=HEADS[:3]), ValueError, "value: got shape"),
        (lambda: attend(q=torch.ones(4, 3, 32)), ValueError, "query: got shape"),
        (lambda: attend(q=torch.ones(4, 32, 2).mT), ValueError, "query: got strides"),
        (lambda: attend(lengths=[3]), ValueError, "got sums of 3 and 4, wanted 4 and at most 4"),
        (lambda: attend(kv_lengths=[5]), ValueError, "got sums of 4 and 5"),
        (lambda: attend(kv_lengths=[3]), ValueError, "got [3] for lengths [4], wanted a key a"),
        (lambda: attend(rows=torch.arange(4)), TypeError, "kv_rows: got torch.int64"),
        (lambda: attend(rows=torch.arange(3).int()), ValueError, "kv_rows: got shape (3,)"),
    ],
)
def test_no_kernel_gets_an_address_of_something_else(call, error, message):
    with pytest.raises(error, match=re.escape(message)):
        call()
