"""Property tests of everything with strides: repeats, masks and copies, against numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.slow

QUICK = settings(max_examples=150, deadline=None, derandomize=True)

strides = st.tuples(st.integers(0, 3), st.integers(0, 12))


def lane_index(block: int, repeat: int, r: int, lane: int, per_block: int) -> int:
    return (r * repeat + lane // per_block * block) * per_block + lane % per_block


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32"])
def test_strided_binary(both, dtype):
    lanes, per_block = (128, 16) if dtype == "float16" else (64, 8)
    name = {"float32": "float", "float16": "half"}.get(dtype, dtype)

    @QUICK
    @given(
        form=st.integers(0, 2),
        prefix=st.integers(0, lanes),
        bits=st.integers(0, 2**lanes - 1),
        repeats=st.integers(0, 5),
        out=st.tuples(st.integers(1, 3), st.integers(8, 24)),
        first=strides,
        second=strides,
    )
    def check(form, prefix, bits, repeats, out, first, second):
        if out[1] < 7 * out[0] + 1:  # results of different repeats apart from each other
            out = (out[0], 7 * out[0] + 1)
        half = 4096
        x = (np.arange(2 * half) * 7 % 1023).astype(dtype)
        y = np.full(3000, -5, dtype)
        wanted = y.copy()
        mask = {0: (1 << prefix) - 1, 1: bits}.get(form)
        total = prefix * max(repeats, 1)
        for r in range(-(-total // lanes) if form == 2 else repeats):
            for lane in range(lanes):
                if (r * lanes + lane >= total) if form == 2 else not mask >> lane & 1:
                    continue
                a = lane_index(*first, r, lane, per_block)
                b = lane_index(*second, r, lane, per_block)
                wanted[lane_index(*out, r, lane, per_block)] = x[a] - x[half + b]
        low = {0: prefix, 1: bits & (2**64 - 1), 2: total}[form]
        args = [
            2 * half,
            y.size,
            form,
            low,
            bits >> 64,
            repeats,
            out[0],
            first[0],
            second[0],
            out[1],
            first[1],
            second[1],
        ]
        np.testing.assert_array_equal(both(f"strided_sub_{name}", x, y, args), wanted)

    check()


def test_strided_cast(both):
    @QUICK
    @given(
        mask=st.integers(0, 64),
        repeats=st.integers(0, 5),
        out=st.tuples(st.integers(1, 2), st.integers(15, 20)),
        source=st.tuples(st.integers(0, 3), st.integers(0, 12)),
    )
    def check(mask, repeats, out, source):
        x = (np.arange(4096) % 251).astype(np.float32)
        bits = (x.view(np.uint32) >> 16).astype(np.uint16)
        y = np.full(2000, -5, np.float32)
        wanted = y.copy()
        for r in range(repeats):
            for lane in range(mask):
                wanted[lane_index(*out, r, lane, 8)] = x[lane_index(*source, r, lane, 16)]
        args = [x.size, y.size, mask, repeats, out[0], source[0], out[1], source[1]]
        np.testing.assert_array_equal(both("strided_cast", bits, y, args), wanted)

    check()


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_pad_in(both, size):
    dtype = {1: np.int8, 2: np.int16, 4: np.float32, 8: np.int64}[size]

    @QUICK
    @given(
        blocks=st.integers(0, 4),
        count=st.integers(0, 40),
        gap=st.integers(0, 9),
        spread=st.integers(0, 3),
        pad=st.booleans(),
        left=st.integers(0, 32 // size),
        right=st.integers(0, 32 // size),
        plain=st.booleans(),
    )
    def check(blocks, count, gap, spread, pad, left, right, plain):
        if plain:
            left = right = 0
        pad = pad or left > 0 or right > 0  # without it the fillers have no value to compare
        source = (np.arange(600) % 113 + 8).astype(dtype)
        before = np.full(8192 // size, 3, dtype)
        wanted = before.copy()
        stride = -(-(left + count + right) * size // 32) * 32 + spread * 32
        for b in range(blocks if count else 0):
            at = b * stride // size
            values = source[b * (count + gap) :][:count]
            end = at + -(-(left + count + right) * size // 32) * 32 // size
            wanted[at:end] = values[0] if left == right == 0 else 7
            wanted[at + left : at + left + count] = values
        args = [
            source.nbytes,
            before.nbytes,
            blocks,
            count * size,
            gap * size,
            spread,
            pad,
            left,
            right,
        ]
        np.testing.assert_array_equal(both(f"pad_in_{size}", source, before, args), wanted)

    check()


def test_filler_is_the_first_element_not_zero(both):
    source = np.array([9, 8, 7], np.float32)
    got = both("pad_in_4", source, np.zeros(16, np.float32), [12, 64, 1, 12, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(got[:8], [9, 8, 7, 9, 9, 9, 9, 9])
    assert (got[8:] == 0).all()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_pad_out_writes_exact_bytes(both, size):
    dtype = {1: np.int8, 2: np.int16, 4: np.float32}[size]

    @QUICK
    @given(
        blocks=st.integers(0, 4),
        count=st.integers(0, 40),
        spread=st.integers(0, 3),
        gap=st.integers(0, 9),
    )
    def check(blocks, count, spread, gap):
        source = (np.arange(2048 // size) % 113).astype(dtype)
        before = np.full(400, -3, dtype)
        wanted = before.copy()
        stride = (-(-count * size // 32) + spread) * 32 // size
        for b in range(blocks):
            wanted[b * (count + gap) :][:count] = source[b * stride :][:count]
        args = [source.nbytes, before.nbytes, blocks, count * size, spread, gap * size]
        np.testing.assert_array_equal(both(f"pad_out_{size}", source, before, args), wanted)

    check()


@pytest.mark.parametrize("way", [0, 1, 2], ids=["in", "out", "inside"])
def test_block_copy(both, way):
    @QUICK
    @given(
        blocks=st.integers(1, 5),
        length=st.integers(0, 6),
        src_gap=st.integers(0, 4),
        dst_gap=st.integers(0, 4),
    )
    def check(blocks, length, src_gap, dst_gap):
        x = np.arange(512, dtype=np.float32)
        y = np.full(512, -1, np.float32)
        wanted = y.copy()
        for b in range(blocks):
            wanted[b * (length + dst_gap) * 8 :][: length * 8] = x[b * (length + src_gap) * 8 :][
                : length * 8
            ]
        np.testing.assert_array_equal(
            both("block_copy", x, y, [512, blocks, length, src_gap, dst_gap, way]), wanted
        )

    check()
