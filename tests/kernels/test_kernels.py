"""The kernels through `_C`: values, bits, bytes and buffers, in the fast and the checked build.

Results are compared with float64. What may differ:
- float32 arithmetic: sums of n terms in a fixed order, 2e-6 of the sum of magnitudes;
- the result's own rounding: half a unit in the last place of its dtype, doubled for the cases
  where the float32 error moves a value across the middle between two of them.
"""

import math
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native import DTYPES, EPS, gather, pool, random_rows, random_weights, score, sizes
from strict_build import load_strict
from torch import Tensor

from pyrerank import _C

ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-10, torch.float32: 2**-23}
ARITHMETIC = 2e-6
UB_BUDGET = 184 * 1024 - 256

ORDINARY = [64, 128, 512, 768]
EDGE = [16, 48, 80, 496, 528, 1040, 2064]
MODELS = [1024, 2560, 4096, 5120]


@pytest.fixture(params=["fast", pytest.param("strict", marks=pytest.mark.slow)])
def kernels(request: pytest.FixtureRequest) -> ModuleType:
    return _C if request.param == "fast" else load_strict()


# ---- float64 ------------------------------------------------------------------------------------


def check_score(got: tuple[Tensor, Tensor], hidden: Tensor, index: Tensor, *rest: object) -> None:
    gain, w, bias = rest
    x, g = hidden[index.long()].double(), gain.double() * w.double()
    rms = (x.square().mean(1) + EPS).sqrt()
    logit = x @ g / rms + bias
    tolerance = ARITHMETIC * (x.abs() @ g.abs() / rms + abs(bias)) + 1e-7
    assert_close(got[1], logit, tolerance)
    assert_close(got[0], torch.sigmoid(logit), tolerance / 4 + 2e-7)


def pool_float64(
    hidden: Tensor, cu: Tensor, gain: Tensor | None, mode: str, dim: int | None, normalize: bool
) -> Tensor:
    rows = []
    for begin, end in zip(cu.tolist(), cu.tolist()[1:], strict=False):
        x = hidden[begin:end].double()
        if gain is not None:
            x = x / (x.square().mean(1, keepdim=True) + EPS).sqrt() * gain.double()
        row = (x.mean(0) if mode == "mean" else x[-1 if mode == "last" else 0])[:dim]
        rows.append(row / max(row.norm().item(), 1e-12) if normalize else row)
    return torch.stack(rows)


def check_pool(got: Tensor, hidden: Tensor, *args: object) -> None:
    want = pool_float64(hidden, *args)
    largest = want.abs().amax(1, keepdim=True)
    tolerance = ROUNDING[hidden.dtype] * want.abs() + 4 * ARITHMETIC * largest + 1e-7
    assert_close(got, want, tolerance)


def assert_close(got: Tensor, want: Tensor, tolerance: Tensor) -> None:
    wrong = ~((got.double() - want).abs() <= tolerance)
    if wrong.any():
        at = tuple(wrong.nonzero()[0].tolist())
        pytest.fail(f"at {at}: got {got[at].item()}, wanted {want[at].item()}")


def same_bits(a: Tensor, b: Tensor) -> bool:
    integer = torch.int32 if a.dtype == torch.float32 else torch.int16
    return torch.equal(a.view(integer), b.view(integer))


INDEX = torch.tensor([0, 8, 8, 3, 5, 1, 8], dtype=torch.int32)
SPANS = torch.tensor([0, 1, 3, 4, 9], dtype=torch.int32)


# ---- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", ORDINARY + EDGE + MODELS + [8192])
def test_last_token_gather(kernels: ModuleType, width: int, dtype: torch.dtype) -> None:
    hidden = random_rows(9, width, dtype)
    assert same_bits(gather(kernels, hidden, INDEX, False, 3), hidden[INDEX.long()])
    assert same_bits(gather(kernels, hidden, SPANS, True, 3), hidden[SPANS[1:].long() - 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", ORDINARY + EDGE + MODELS + [8192])
def test_score_head(kernels: ModuleType, width: int, dtype: torch.dtype) -> None:
    hidden = random_rows(9, width, dtype)
    for norm_dtype, bias in ((dtype, 0.0), (torch.float32, -1.5)):
        gain, w = random_weights(width, norm_dtype)
        got = score(kernels, hidden, INDEX, gain, w, bias, threads=2)
        check_score(got, hidden, INDEX, gain, w, bias)


@pytest.mark.parametrize("mode", ["last", "mean", "cls"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [16, 80, 528, 1024, 4096, 8192])
def test_fused_pool(kernels: ModuleType, width: int, dtype: torch.dtype, mode: str) -> None:
    hidden = random_rows(9, width, dtype)
    gain, _ = random_weights(width, dtype)
    for norm, dim, normalize in (
        (gain, None, True),
        (gain, width // 2 + 3, False),
        (gain.float(), 1, True),
        (None, width // 4 + 1, True),
        (None, None, False),
    ):
        got = pool(kernels, hidden, SPANS, norm, mode, dim, normalize, threads=2)
        check_pool(got, hidden, SPANS, norm, mode, dim, normalize)


@pytest.mark.slow
@given(data=st.data())
@settings(max_examples=60)
def test_any_case_is_right_and_the_same_in_both_builds(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(DTYPES))
    width = 16 * data.draw(st.integers(1, 80))
    tokens = data.draw(st.integers(1, 40))
    threads = data.draw(st.integers(1, 9))
    hidden = random_rows(tokens, width, dtype, seed=data.draw(st.integers(0, 99)))
    gain, w = random_weights(width, data.draw(st.sampled_from([dtype, torch.float32])))
    index = data.draw(st.lists(st.integers(0, tokens - 1), min_size=1, max_size=20))
    index = torch.tensor(index, dtype=torch.int32)
    cuts = data.draw(st.sets(st.integers(0, tokens), min_size=2)) if tokens > 1 else {0, 1}
    cu = torch.tensor(sorted(cuts), dtype=torch.int32)
    mode = data.draw(st.sampled_from(["last", "mean", "cls"]))
    dim = data.draw(st.integers(1, width))
    norm = data.draw(st.sampled_from([None, gain]))
    normalize = data.draw(st.booleans())

    results = []
    for c in (_C, load_strict()):
        scored = score(c, hidden, index, gain, w, 0.25, threads)
        pooled = pool(c, hidden, cu, norm, mode, dim, normalize, threads)
        check_score(scored, hidden, index, gain, w, 0.25)
        check_pool(pooled, hidden, cu, norm, mode, dim, normalize)
        rows = gather(c, hidden, cu, True, threads)
        assert same_bits(rows, hidden[cu[1:].long() - 1])
        results.append((*scored, pooled))
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_zero_infinity_and_nan(kernels: ModuleType, dtype: torch.dtype) -> None:
    width = 528
    hidden = torch.randn(5, width).to(dtype)
    hidden[1], hidden[2], hidden[3, 77], hidden[4, 5] = 0, math.inf, math.nan, -math.inf
    gain, w = random_weights(width, dtype)
    result, logit = score(kernels, hidden, torch.arange(5, dtype=torch.int32), gain, w, 0.5)
    assert logit[1] == 0.5 and result[1] == torch.sigmoid(torch.tensor(0.5))
    for values in (result, logit):
        assert values.isnan().tolist() == [False, False, True, True, True]
    cu = torch.arange(6, dtype=torch.int32)
    for mode in ("last", "mean", "cls"):
        pooled = pool(kernels, hidden, cu, gain, mode)
        assert pooled[0].isfinite().all() and not pooled[1].any()
        assert pooled[2:].isnan().all()
        bare = pool(kernels, hidden, cu, None, mode)
        assert not bare[1].any() and bare[2].isnan().all() and bare[3].isnan().all()
        assert bare[4].isnan().nonzero().tolist() == [[5]]  # -inf / inf; the others are x / inf


def test_scores_at_the_ends(kernels: ModuleType) -> None:
    hidden = torch.ones(3, 16)
    hidden[1] = -1
    for size, ends in ((1000.0, [1.0, 0.0]), (10.0, [1 / (1 + math.exp(-10)), None])):
        w = torch.full((16,), size / 16)
        result, _ = score(kernels, hidden, torch.tensor([0, 1], dtype=torch.int32), w * 0 + 1, w)
        want = [ends[0], 1 / (1 + math.exp(10)) if ends[1] is None else ends[1]]
        assert result.tolist() == pytest.approx(want, abs=1e-6)


# ---- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_ids_out_of_range_give_nan_and_touch_nothing(
    kernels: ModuleType, dtype: torch.dtype
) -> None:
    hidden = random_rows(6, 48, dtype)
    gain, w = random_weights(48, dtype)
    limit = 2**31 - 1
    index = torch.tensor([0, -1, 5, 6, limit, -limit - 1, 2], dtype=torch.int32)
    good = torch.tensor([True, False, True, False, False, False, True])
    rows = gather(kernels, hidden, index, False, 2)
    assert rows[~good].isnan().all() and same_bits(rows[good], hidden[index[good].long()])
    for values in score(kernels, hidden, index, gain, w, threads=2):
        assert values.isnan().tolist() == (~good).tolist()

    cu = torch.tensor([-1, 2, 2, 4, 3, 6, 7, limit], dtype=torch.int32)
    good = torch.tensor([False, False, True, False, True, False, False])
    rows = gather(kernels, hidden, cu, True, 2)
    assert rows[~good].isnan().all() and same_bits(rows[good], hidden[[3, 5]])
    for mode in ("last", "mean", "cls"):
        pooled = pool(kernels, hidden, cu, gain, mode, threads=2)
        assert pooled.isnan().all(1).tolist() == (~good).tolist()
        assert pooled[good].isfinite().all()


def test_no_tokens_at_all(kernels: ModuleType) -> None:
    hidden, gain = torch.empty(0, 16), torch.ones(16)
    ids = torch.tensor([0, 1], dtype=torch.int32)
    assert gather(kernels, hidden, ids, False).isnan().all()
    assert score(kernels, hidden, ids, gain, gain)[1].isnan().all()
    assert pool(kernels, hidden, ids, gain, "mean").isnan().all()


def test_an_empty_batch_is_never_launched(kernels: ModuleType) -> None:
    before = kernels.counters()["launches"]
    none = torch.empty(0, dtype=torch.int32)
    hidden, gain = torch.ones(2, 16), torch.ones(16)
    assert gather(kernels, hidden, none, False).shape == (0, 16)
    assert score(kernels, hidden, none, gain, gain)[0].shape == (0,)
    assert kernels.counters()["launches"] == before


@pytest.mark.parametrize(
    "change, message",
    [
        ({"H": 24}, "H .*got 24, wanted a multiple of 16"),
        ({"H": 0}, "H .*got 0, wanted 16 to 8192"),
        ({"H": 8208}, "H .*got 8208, wanted 16 to 8192"),
        ({"T": -1}, "T .*got -1"),
        ({"B": -1}, "B .*got -1"),
        ({"row_stride": 8}, "row_stride .*got 8, wanted 16"),
        ({"row_stride": 2**32}, "row_stride"),
        ({"dtype": "int8"}, "dtype: got int8, wanted bfloat16"),
        ({"threads": 0}, "cores: got 0"),
        ({"D": 17}, "dim: got 17, wanted 1 to 16"),
        ({"D": 0}, "dim: got 0"),
        ({"eps": 0.0}, "eps: got 0.0"),
        ({"eps": math.nan}, "eps: got nan"),
        ({"mode": "max"}, "mode: got max, wanted last, mean or cls"),
    ],
)
def test_sizes_the_kernels_cannot_hold(change: dict[str, object], message: str) -> None:
    hidden, out, cu = torch.ones(2, 16), torch.ones(1, 16), torch.tensor([0, 2], dtype=torch.int32)
    arguments = sizes(hidden, 1, 1) | {
        "D": 16,
        "norm_dtype": "float32",
        "eps": EPS,
        "mode": "last",
        "normalize": True,
    }
    addresses = [t.data_ptr() for t in (hidden, cu, out, out)]
    with pytest.raises(ValueError, match=message):
        _C.fused_pool(*addresses, **(arguments | change))


# ---- bits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 2, 3, 41, 49, 300])
def test_a_row_has_the_same_bits_alone_and_in_any_batch(count: int, dtype: torch.dtype) -> None:
    width = 528
    hidden = random_rows(3 * count, width, dtype)
    gain, w = random_weights(width, dtype)
    cu = torch.arange(0, 3 * count + 1, 3, dtype=torch.int32)
    index = cu[1:] - 1
    results = []
    for threads in (1, 2, 40, 48):
        pooled = [
            pool(_C, hidden, cu, gain, mode, 300, threads=threads) for mode in ("last", "mean")
        ]
        results.append((*score(_C, hidden, index, gain, w, threads=threads), *pooled))
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))
    for row in {0, count // 2, count - 1}:
        alone = score(_C, hidden, index[row : row + 1].clone(), gain, w)
        assert same_bits(alone[1], results[0][1][row : row + 1])
        pooled = pool(_C, hidden, cu[row : row + 2].clone(), gain, "mean", 300)
        assert same_bits(pooled, results[0][3][row : row + 1])


@pytest.mark.slow
def test_the_order_of_blocks_does_not_matter() -> None:
    strict = load_strict()
    hidden = random_rows(13, 256, torch.bfloat16)
    gain, w = random_weights(256, torch.bfloat16)
    index = torch.arange(13, dtype=torch.int32)
    cu = torch.arange(14, dtype=torch.int32)
    results = []
    for order in ("forward", "reverse", "shuffled"):
        strict.set_block_order(order)
        pooled = pool(strict, hidden, cu, gain, "last", threads=5)
        results.append((*score(strict, hidden, index, gain, w, threads=5), pooled))
    strict.set_block_order("forward")
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))


# ---- bytes and buffers --------------------------------------------------------------------------


def bytes_moved(call: object) -> int:
    _C.reset_counters()
    call()
    counters = _C.counters()
    assert counters["launches"] == 1
    return counters["gm_read_bytes"] + counters["gm_write_bytes"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count, blocks", [(1, 1), (32, 2), (41, 40)])
def test_every_byte_moves_once(count: int, blocks: int, dtype: torch.dtype) -> None:
    width, length = 1024, 3
    hidden = random_rows(length * count, width, dtype)
    gain, w = random_weights(width, dtype)
    cu = torch.arange(0, length * count + 1, length, dtype=torch.int32)
    index = cu[1:] - 1
    row = width * dtype.itemsize

    moved = bytes_moved(lambda: gather(_C, hidden, index, False, blocks))
    assert moved <= 1.05 * (2 * count * row + 4 * count)
    moved = bytes_moved(lambda: score(_C, hidden, index, gain, w, threads=blocks))
    assert moved <= 1.05 * (count * row + blocks * (row + 4 * width) + 12 * count)
    for mode, tokens in (("last", 1), ("mean", length), ("cls", 1)):
        out = 256 * dtype.itemsize
        moved = bytes_moved(lambda m=mode: pool(_C, hidden, cu, gain, m, 256, threads=blocks))
        assert moved <= 1.05 * (count * (tokens * row + out) + blocks * row + 4 * (count + 1))
        moved = bytes_moved(lambda m=mode: pool(_C, hidden, cu, None, m, 256, threads=blocks))
        assert moved <= 1.05 * (count * (tokens * out + out) + 4 * (count + 1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_widest_rows_fit_the_unified_buffer(dtype: torch.dtype) -> None:
    hidden = random_rows(3, 8192, dtype)
    gain, w = random_weights(8192, dtype)
    cu = torch.tensor([0, 3], dtype=torch.int32)
    _C.reset_counters()
    gather(_C, hidden, cu, True)
    score(_C, hidden, cu[:1], gain, w)
    for mode in ("last", "mean", "cls"):
        for norm in (None, gain, gain.float()):
            pool(_C, hidden, cu, norm, mode)
    assert 0 < _C.counters()["ub_peak_bytes"] <= UB_BUDGET


@pytest.mark.slow
def test_build_info() -> None:
    info = _C.build_info()
    assert info["kernels"] == ("last_token_gather", "score_head", "fused_pool")
    assert info["target"] == "cpu" and info["strict"] is False
    assert load_strict().build_info()["strict"] is True
