"""Results of single instructions against numpy, torch or exact fractions, on both builds."""

from fractions import Fraction

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.slow

NONE, RINT, FLOOR, CEIL, ROUND, TRUNC, ODD = range(7)
MODES = {"rint": RINT, "floor": FLOOR, "ceil": CEIL, "round": ROUND, "trunc": TRUNC}

rng = np.random.default_rng(20)


def hard_floats() -> np.ndarray:
    """Every exponent with mantissas about the ties of both 16-bit formats, and random bits."""
    exponents = np.arange(256, dtype=np.uint32) << 23
    tails = [
        0,
        1,
        0xFFF,
        0x1000,
        0x1001,
        0x1FFF,
        0x3000,
        0x2FFF,
        0x3001,
        0x7FFF,
        0x8000,
        0x8001,
        0x18000,
        0x7FFFFF,
        0x7FE000,
    ]
    bits = (exponents[:, None] | np.array(tails, dtype=np.uint32)).ravel()
    bits = np.concatenate([bits, bits | 0x80000000, rng.integers(0, 2**32, 4000, dtype=np.uint32)])
    return bits.astype(np.uint32).view(np.float32)


def expected_rounding(
    value: float, mode: int, digits: int, lowest: int, largest: Fraction
) -> float:
    """value rounded to `digits` bits with least exponent `lowest`, by exact fractions."""
    if value == 0 or np.isinf(value):
        return value
    exact = abs(Fraction(value))
    exponent = exact.numerator.bit_length() - exact.denominator.bit_length()
    if Fraction(2) ** exponent > exact:
        exponent -= 1
    unit = Fraction(2) ** max(exponent - digits + 1, lowest)
    count, rest = divmod(exact, unit)
    odd, negative = count % 2 == 1, value < 0
    up = {
        RINT: rest > unit / 2 or (rest == unit / 2 and odd),
        ROUND: rest >= unit / 2,
        FLOOR: negative and rest > 0,
        CEIL: not negative and rest > 0,
        TRUNC: False,
        ODD: rest > 0 and not odd,
    }[mode]
    if (
        exact > largest
    ):  # beyond the format: by direction, or by distance from the largest value's next
        step = Fraction(2) ** (exponent_of(largest) - digits + 1)
        up = {
            RINT: exact >= largest + step / 2,
            ROUND: exact >= largest + step / 2,
            TRUNC: False,
            ODD: False,
        }.get(mode, negative if mode == FLOOR else not negative)
        magnitude = np.inf if up else float(largest)
    else:
        result = (count + up) * unit
        magnitude = float(result) if result <= largest else np.inf
    return -magnitude if negative else magnitude


def exponent_of(value: Fraction) -> int:
    return value.numerator.bit_length() - value.denominator.bit_length()


BF16 = (8, -133, Fraction(torch.finfo(torch.bfloat16).max))
HALF = (11, -24, Fraction(65504))


def same_bits(got: np.ndarray, wanted: np.ndarray) -> None:
    nan = np.isnan(wanted)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got[~nan].view(np.uint32), wanted[~nan].view(np.uint32))


@pytest.mark.parametrize(
    ("target", "mode"), [("half", "odd"), *((t, m) for t in ("bfloat16", "half") for m in MODES)]
)
def test_cast_float_to_16_bits(both, target, mode):
    x = hard_floats()
    number = ODD if mode == "odd" else MODES[mode]
    bits = both(f"cast_{target}_float", x, np.zeros(x.size, np.uint16), [x.size, number])
    got = (
        (bits.astype(np.uint32) << 16).view(np.float32)
        if target == "bfloat16"
        else bits.view(np.float16)
    )
    form = BF16 if target == "bfloat16" else HALF
    wanted = [np.nan if np.isnan(v) else expected_rounding(float(v), number, *form) for v in x]
    same_bits(got.astype(np.float32), np.array(wanted, dtype=np.float32))


def test_cast_rint_is_torch(both):
    x = hard_floats()
    x = x[~np.isnan(x)]
    for target, dtype in (("bfloat16", torch.bfloat16), ("half", torch.float16)):
        bits = both(f"cast_{target}_float", x, np.zeros(x.size, np.int16), [x.size, RINT])
        np.testing.assert_array_equal(bits, torch.from_numpy(x).to(dtype).view(torch.int16).numpy())


def test_cast_none_to_half_is_rint(both):
    x = hard_floats()
    none, rint = (
        both("cast_half_float", x, np.zeros(x.size, np.uint16), [x.size, m]) for m in (NONE, RINT)
    )
    np.testing.assert_array_equal(none, rint)


def test_cast_16_bits_to_float_is_exact(both):
    bits = np.arange(65536, dtype=np.uint16)[:16384]
    for start in range(0, 65536, 16384):
        part = bits + np.uint16(start)
        got = both("cast_float_bfloat16", part, np.zeros(part.size, np.float32), [part.size, NONE])
        np.testing.assert_array_equal(got.view(np.uint32), part.astype(np.uint32) << 16)
        got = both("cast_float_half", part, np.zeros(part.size, np.float32), [part.size, NONE])
        same_bits(got, part.view(np.float16).astype(np.float32))


INTEGER = {
    RINT: np.rint,
    FLOOR: np.floor,
    CEIL: np.ceil,
    TRUNC: np.trunc,
    ROUND: lambda v: np.copysign(np.floor(np.abs(v) + 0.5), v),
}


@pytest.mark.parametrize("mode", MODES)
def test_cast_to_int32(both, mode):
    halves = np.arange(-4001, 4001, dtype=np.float64) / 4
    big = np.array(
        [
            0.49999997,
            -0.49999997,
            8388607.5,
            16777217.0,
            2.0**31,
            -(2.0**31),
            3e38,
            -3e38,
            np.inf,
            -np.inf,
        ]
    )
    x = np.concatenate([halves, big]).astype(np.float32)
    wanted = np.clip(INTEGER[MODES[mode]](x.astype(np.float64)), -(2.0**31), 2.0**31 - 1).astype(
        np.int32
    )
    got = both("cast_int32_float", x, np.zeros(x.size, np.int32), [x.size, MODES[mode]])
    np.testing.assert_array_equal(got, wanted)

    b = torch.from_numpy(x).bfloat16()
    value = b.float().numpy().astype(np.float64)
    wanted = np.clip(INTEGER[MODES[mode]](value), -(2.0**31), 2.0**31 - 1).astype(np.int32)
    source = b.view(torch.int16).numpy()
    got = both("cast_int32_bfloat16", source, np.zeros(x.size, np.int32), [x.size, MODES[mode]])
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("mode", ["none", *MODES])
def test_cast_int32_to_float(both, mode):
    number = MODES.get(mode, NONE)
    edges = np.array(
        [0, 1, -1, 2**24, 2**24 + 1, 2**24 + 3, -(2**24) - 1, 2**31 - 1, -(2**31), 2**30 + 65],
        np.int64,
    )
    x = np.concatenate([edges, rng.integers(-(2**31), 2**31, 3000)]).astype(np.int32)
    got = both("cast_float_int32", x, np.zeros(x.size, np.float32), [x.size, number])
    wanted = [expected_rounding(float(v), number or RINT, 24, -149, Fraction(2) ** 127) for v in x]
    np.testing.assert_array_equal(got, np.array(wanted, np.float32))


def relative(got, exact):
    near = np.abs(exact) > 1e-6  # the logarithm of 1 has no relative error
    return np.max(np.abs((got[near].astype(np.float64) - exact[near]) / exact[near]))


BINARY = {
    0: np.add,
    1: np.subtract,
    2: np.multiply,
    5: np.divide,
    3: lambda a, b: np.where(a > b, a, b),
    4: lambda a, b: np.where(a < b, a, b),
}


@pytest.mark.parametrize(
    ("dtype", "op"),
    [
        (d, op)
        for d in ("float32", "float16", "int32", "int16")
        for op in BINARY
        if op != 5 or d.startswith("float")
    ],
)
def test_arithmetic(both, dtype, op):
    n = 1003
    if dtype.startswith("int"):
        x, y = (
            rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, n).astype(dtype)
            for _ in range(2)
        )
    else:
        x, y = (rng.standard_normal(n).astype(dtype) for _ in range(2))
    name = {"float32": "float", "float16": "half"}.get(dtype, dtype)
    wanted = BINARY[op](x, y)
    np.testing.assert_array_equal(both(f"count_{name}", x, y, [n, op]), wanted)


SCALAR = {14: np.add, 15: np.multiply, 16: np.maximum, 17: np.minimum}


@pytest.mark.parametrize("op", SCALAR)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_scalar_arithmetic(both, dtype, op):
    x = (rng.standard_normal(515) * 4).astype(dtype)
    name = "float" if dtype == "float32" else "half"
    wanted = SCALAR[op](x, np.array(3, dtype))
    np.testing.assert_array_equal(both(f"count_{name}", x, np.zeros_like(x), [x.size, op]), wanted)


def test_count_leaves_the_rest(both):
    x, y = np.ones(64, np.float32), np.full(64, 5, np.float32)
    got = both("count_float", x, y, [13, 0])
    np.testing.assert_array_equal(got, np.where(np.arange(64) < 13, 6, 5))


@pytest.mark.parametrize(
    ("op", "exact", "bound"),
    [
        (6, np.exp, 2**-24),
        (7, np.log, 2**-24),
        (8, np.sqrt, 2**-24),
        (9, np.abs, 0),
        (10, lambda v: 1 / v, 1.1e-4),
        (11, lambda v: 1 / np.sqrt(v), 1.1e-4),
    ],
)
def test_functions(both, op, exact, bound):
    x = np.exp(rng.uniform(-20, 4, 2000)).astype(np.float32)
    got = both("count_float", x, np.zeros_like(x), [x.size, op])
    error = relative(got, exact(x.astype(np.float64)))
    assert error <= bound
    if op in (10, 11):  # an approximation must not pass for the exact value
        assert error >= 0.9e-4
    h = np.exp(rng.uniform(-2, 2, 500)).astype(np.float16)
    got = both("count_half", h, np.zeros_like(h), [h.size, op])
    assert relative(got, exact(h.astype(np.float64))) <= (2.1e-3 if op in (10, 11) else 2**-11)


def test_exp_at_the_ends(both):
    x = np.array([-np.inf, -200, -104, -87.5, 0, 88.7, 88.8, np.inf, np.nan], np.float32)
    got = both("count_float", x, np.zeros_like(x), [x.size, 6])
    with np.errstate(over="ignore"):
        same_bits(got, np.exp(x.astype(np.float64)).astype(np.float32))


def test_multiply_add_rounds_twice(both):
    x, y = (rng.standard_normal(700).astype(np.float32) for _ in range(2))
    np.testing.assert_array_equal(both("count_float", x, y, [x.size, 12]), y + x * x)
    np.testing.assert_array_equal(both("count_float", x, y, [x.size, 13]), y + x * np.float32(3))
    h, g = x.astype(np.float16), y.astype(np.float16)
    np.testing.assert_array_equal(both("count_half", h, g, [h.size, 12]), g + h * h)
    wide = h.astype(np.float32)
    np.testing.assert_array_equal(both("wide_muladd", h, y, [h.size, 0]), y + wide * wide)
    np.testing.assert_array_equal(both("wide_muladd", h, y, [h.size, 1]), y + wide * np.float32(3))


# ---- Sums ----


def tree(values: np.ndarray) -> np.ndarray:
    """Neighbours added, then pairs of pairs: over the last axis, in the type of the data."""
    while values.shape[-1] > 1:
        values = values[..., 0::2] + values[..., 1::2]
    return values[..., 0]


def padded(values: np.ndarray, lanes: int) -> np.ndarray:
    full = np.full(-(-values.size // lanes) * lanes, -0.0, values.dtype)
    full[: values.size] = values
    return full.reshape(-1, lanes)


@pytest.mark.parametrize("n", [1, 2, 7, 63, 64, 65, 127, 129, 1000, 1134, 4096, 4097])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_reduce_sum_order(both, dtype, n):
    x = rng.standard_normal(n).astype(dtype)
    name, lanes = ("float", 64) if dtype == "float32" else ("half", 128)
    wanted = np.zeros(1, dtype)
    for k, repeat in enumerate(tree(padded(x, lanes))):
        wanted[0] = repeat if k == 0 else wanted[0] + repeat
    got = both(f"sum_{name}", x, np.zeros(1, dtype), [n, 1, 0])
    assert got.tobytes() == wanted.tobytes()


@pytest.mark.parametrize(
    ("mask", "repeats", "stride"), [(64, 5, 8), (13, 3, 2), (64, 64, 8), (64, 65, 8), (64, 300, 8)]
)
def test_reduce_sum_by_repeats(both, mask, repeats, stride):
    x = rng.standard_normal(repeats * stride * 8 + 64).astype(np.float32)
    rows = np.stack([x[r * stride * 8 :][:mask] for r in range(repeats)])
    full = np.full((repeats, 64), -0.0, np.float32)
    full[:, :mask] = rows
    left = tree(full)
    while left.size > 1:
        left = tree(padded(left, 64))
    got = both("sum_float", x, np.zeros(1, np.float32), [x.size, 1, 1, mask, repeats, 0, 0, stride])
    assert got.tobytes() == left.tobytes()


@pytest.mark.parametrize("kind", ["whole", "block", "pair", "repeat"])
@pytest.mark.parametrize(
    ("mask", "repeats", "dst", "blk", "rep"),
    [
        (64, 4, 1, 1, 8),
        (50, 3, 2, 1, 8),
        (64, 2, 1, 2, 16),
        (9, 5, 3, 1, 2),
        (1, 1, 1, 1, 8),
        (64, 3, 1, 0, 1),
    ],
)
def test_grouped_sums(both, kind, mask, repeats, dst, blk, rep):
    number, group, unit = {
        "whole": (2, 64, 1),
        "block": (3, 8, 8),
        "pair": (4, 2, 32),
        "repeat": (5, 64, 1),
    }[kind]
    x = rng.standard_normal(1024).astype(np.float32)
    y = np.full(512, 99, np.float32)
    wanted = y.copy()
    for r in range(repeats):
        lanes = np.array(
            [x[(r * rep + lane // 8 * blk) * 8 + lane % 8] for lane in range(64)], np.float32
        )
        lanes[mask:] = -0.0
        sums = tree(lanes.reshape(-1, group))
        used = -(-mask // group)  # groups without a lane keep their result
        wanted[r * dst * unit :][:used] = sums[:used]
    got = both("sum_float", x, y, [x.size, y.size, number, mask, repeats, dst, blk, rep])
    assert got.tobytes() == wanted.tobytes()


def test_grouped_sums_of_half(both):
    x = rng.standard_normal(384).astype(np.float16)
    got = both("sum_half", x, np.zeros(16, np.float16), [384, 16, 2, 128, 3, 1, 1, 8])
    np.testing.assert_array_equal(got[:3], tree(x.reshape(3, 128)))
    got = both("sum_half", x, np.zeros(32, np.float16), [384, 32, 3, 128, 3, 1, 1, 8])
    np.testing.assert_array_equal(got[:24], tree(x.reshape(24, 16)))


def test_brcb(both):
    x = np.arange(16, dtype=np.float32)
    got = both("brcb_float", x, np.zeros(128, np.float32), [16, 128, 2, 1, 8])
    np.testing.assert_array_equal(got, np.repeat(x, 8))
    got = both("brcb_float", x, np.full(256, -1, np.float32), [16, 256, 2, 2, 16])
    np.testing.assert_array_equal(got.reshape(16, 2, 8)[:, 0], np.repeat(x, 8).reshape(16, 8))
    assert (got.reshape(16, 2, 8)[:, 1] == -1).all()
    x = np.arange(16, dtype=np.int16)
    got = both("brcb_int16", x, np.zeros(256, np.int16), [16, 256, 2, 1, 8])
    np.testing.assert_array_equal(got, np.repeat(x, 16))
