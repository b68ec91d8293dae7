"""What the device compiler refuses by type must not compile here either, and say why."""

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SIM = Path(__file__).resolve().parents[2] / "csrc" / "sim"

PROLOGUE = """
#include <cstdint>
#include "kernel_operator.h"
using namespace AscendC;
void kernel(LocalTensor<float> f, LocalTensor<half> h, LocalTensor<bfloat16_t> b,
            LocalTensor<int32_t> i, GlobalTensor<float> g, int64_t n)
{
    (void)n;
    uint64_t mask[2] = {1, 0};
    (void)mask;
"""

ACCEPTED = """
    Add(f, f, f, 8);
    Add(h, h, h, 8);
    Add(i, i, i, 8);
    Muls(f, f, 2.0f, 8);
    Muls(h, h, half(2.0f), 8);
    Add(f, f, f, mask, 1, BinaryRepeatParams{1, 1, 1, 8, 8, 8});
    Muls<float, false>(f, f, 1.0f, MASK_PLACEHOLDER, 1, {});
    Cast(f, b, RoundMode::CAST_NONE, 8);
    Cast(b, f, RoundMode::CAST_RINT, 8);
    Duplicate(b, bfloat16_t(1.0f), 8);
    Axpy(f, h, half(1.0f), 8);
    MulAddDst(f, h, h, 8);
    ReduceSum<float>(f, f, f, 8);
    f(0) = f(1);
    float x = f(0);
    (void)x;
    DataCopyExtParams params{1, static_cast<uint32_t>(n), 0, 0, 0};
    DataCopyPad(b, GlobalTensor<bfloat16_t>(), params,
                DataCopyPadExtParams<bfloat16_t>{true, 0, 1, bfloat16_t(0.0f)});
    DataCopyPad(g, f, {1, 4, 0, 0, 0});
    SetAtomicAdd<float>();
    PipeBarrier<PIPE_V>();
    g.SetL2CacheHint(CacheMode::CACHE_MODE_DISABLE);
"""

REFUSED = [
    (
        "bf16_add",
        "Add(b, b, b, 8);",
        "Add takes half, float, int16_t and int32_t on A2; Cast other types to float first",
    ),
    (
        "bf16_muls",
        "Muls(b, b, bfloat16_t(1.0f), 8);",
        "Muls takes half, float, int16_t and int32_t on A2",
    ),
    (
        "bf16_strided",
        "Mul(b, b, b, mask, 1, BinaryRepeatParams());",
        "Mul takes half, float, int16_t and int32_t",
    ),
    ("bf16_exp", "Exp(b, b, 8);", "Exp takes half and float on A2"),
    (
        "bf16_axpy",
        "Axpy(b, b, bfloat16_t(1.0f), 8);",
        "Axpy takes half, float, and half sources with a float",
    ),
    ("bf16_sum", "ReduceSum(b, b, b, 8);", "ReduceSum takes half and float on A2"),
    ("bf16_whole_sum", "WholeReduceSum(b, b, 64, 1, 1, 1, 8);", "sums take half and float on A2"),
    ("int_div", "Div(i, i, i, 8);", "Div takes half and float on A2"),
    ("int_sum", "BlockReduceSum(i, i, 1, 64, 1, 1, 8);", "sums take half and float on A2"),
    (
        "double_scalar",
        "Muls(f, f, 1.0, 8);",
        "Muls: the scalar must have exactly the tensor's element type",
    ),
    (
        "int_scalar",
        "Adds(f, f, 1, 8);",
        "Adds: the scalar must have exactly the tensor's element type",
    ),
    (
        "duplicate_scalar",
        "Duplicate(f, 0, 8);",
        "Duplicate: the scalar must have exactly the tensor's element type",
    ),
    (
        "bf16_half_cast",
        "Cast(b, h, RoundMode::CAST_RINT, 8);",
        "Cast: A2 has no instruction for this pair of types",
    ),
    (
        "half_bf16_cast",
        "Cast(h, b, RoundMode::CAST_RINT, 8);",
        "Cast: A2 has no instruction for this pair of types",
    ),
    ("no_round_mode", "Cast(f, b, 8);", "no matching function for call to 'Cast"),
    ("mixed_types", "Add(f, h, h, 8);", "no matching function for call to 'Add"),
    ("narrowed_length", "DataCopyExtParams{1, n, 0, 0, 0};", "narrowing conversion"),
    ("narrowed_stride", "BinaryRepeatParams{1, 1, 1, 8, n, 8};", "narrowing conversion"),
    ("bf16_operator", "bfloat16_t s = b.GetValue(0) + b.GetValue(1);", "no match for 'operator+'"),
    ("implicit_half", "half s = 1.0f;", "conversion from 'float' to non-scalar type"),
    (
        "padding_value",
        "DataCopyPad(f, g, {1, 4, 0, 0, 0}, DataCopyPadExtParams<half>());",
        "no matching function",
    ),
    (
        "global_store",
        "g.SetValue(0, 1.0f);",
        "GlobalTensor::SetValue loses data when two cores share a cache line",
    ),
    ("scalar_barrier", "PipeBarrier<PIPE_S>();", "the scalar pipe needs none"),
    ("unknown_event", "SetFlag<HardEvent::M_V>(0);", "'M_V' is not a member"),
    (
        "queue_position",
        "TQue<TPosition::VECCALC, 1> q;",
        "queue position: VECIN, VECOUT, or VECIN bound to VECOUT",
    ),
    (
        "queue_depth",
        "TQue<TPosition::VECIN, 0> q;",
        "queue depth: depth 0 selects another interface",
    ),
    ("atomic_type", "SetAtomicAdd<int64_t>();", "SetAtomicAdd takes int8_t, int16_t, half"),
    (
        "cache_control",
        "DataCacheCleanAndInvalid(g);",
        "'DataCacheCleanAndInvalid' was not declared",
    ),
    ("address_escape", "f.GetPhyAddr();", "has no member named 'GetPhyAddr'"),
]


def compile_kernel(tmp_path: Path, body: str, strict: int) -> subprocess.CompletedProcess:
    source = tmp_path / "kernel.cpp"
    source.write_text(PROLOGUE + body + "\n}\n")
    flags = [
        "-std=c++17",
        "-fsyntax-only",
        "-Werror=narrowing",
        f"-DASCENDC_SIM_STRICT={strict}",
        f"-I{SIM}",
    ]
    return subprocess.run(
        ["g++", *flags, str(source)],
        capture_output=True,
        text=True,
        env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
    )


@pytest.mark.parametrize("strict", [0, 1])
def test_accepted(tmp_path, strict):
    done = compile_kernel(tmp_path, ACCEPTED, strict)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("body", "reason"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_refused(tmp_path, body, reason):
    done = compile_kernel(tmp_path, body, 0)
    assert done.returncode != 0
    assert reason in done.stderr, done.stderr[:3000]
