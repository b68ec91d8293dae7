"""Fused attention of the simulated CANN against plain torch, and the limits it enforces."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

torch_npu = pytest.importorskip("torch_npu")
from sim_cases import (  # noqa: E402
    HEADS,
    KV_HEADS,
    TOLERANCE,
    TRIANGLE,
    WIDTH,
    close,
    infer,
    inputs,
    packed,
    reference,
    triangle,
)

pytestmark = pytest.mark.usefixtures("sim")


@given(
    lengths=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=5),
    causal=st.booleans(),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
)
def test_packed_inference(lengths: list[tuple[int, int]], causal: bool, dtype: torch.dtype) -> None:
    """Queries at the end of their keys, as with a prefix whose keys are there already."""
    ends = torch.tensor([n for n, _ in lengths]).cumsum(0).tolist()
    key_ends = torch.tensor([n + before for n, before in lengths]).cumsum(0).tolist()
    qkv = inputs(dtype, ends[-1], key_ends[-1])
    out, lse = infer(
        qkv,
        actual_seq_qlen=ends,
        actual_seq_kvlen=key_ends,
        return_softmax_lse=True,
        **({"sparse_mode": 3, "atten_mask": triangle()} if causal else {}),
    )
    want, want_lse = packed(qkv, ends, key_ends, causal)
    assert out.dtype == dtype
    close(out, want, dtype)
    close(lse.squeeze(-1), want_lse, dtype)


@pytest.mark.parametrize("width", [64, 128, 192])
def test_every_token_sees_all_of_its_sequence(width: int) -> None:
    """Of pictures, in one call; with a key head for each query head, also in width 64."""
    ends = torch.tensor([300, 4, 4, 16, 1]).cumsum(0).tolist()
    for dtype in (torch.float16, torch.bfloat16):
        qkv = inputs(dtype, ends[-1], ends[-1], width, HEADS)
        out, _ = infer(qkv, actual_seq_qlen=ends, actual_seq_kvlen=ends, sparse_mode=0)
        close(out, packed(qkv, ends, ends, False)[0], dtype)


def test_the_older_function_and_the_one_of_training() -> None:
    ends = [7, 15, 24]
    for dtype in TOLERANCE:
        qkv = inputs(dtype, 24, 24)
        for causal in (False, True):
            mask = {"sparse_mode": 3, "atten_mask": triangle()} if causal else {}
            want, _ = packed(qkv, ends, ends, causal)
            q, k, v = (t.npu() for t in qkv)
            scale = WIDTH**-0.5
            trained = torch_npu.npu_fusion_attention(
                q,
                k,
                v,
                HEADS,
                "TND",
                scale=scale,
                actual_seq_qlen=ends,
                actual_seq_kvlen=ends,
                **mask,
            )
            close(trained[0], want, dtype)
            if dtype == torch.float32:
                continue
            lengths = {"actual_seq_lengths": ends, "actual_seq_lengths_kv": ends}
            shape = {"num_heads": HEADS, "num_key_value_heads": KV_HEADS, "input_layout": "TND"}
            older = torch_npu.npu_fused_infer_attention_score(
                q, k, v, scale=scale, **shape, **lengths, **mask
            )
            close(older[0], want, dtype)


@pytest.mark.parametrize("layout", ["BNSD", "BSND", "BSH"])
def test_padded_layouts(layout: str) -> None:
    dtype = torch.bfloat16
    q, k, v = (torch.randn(2, n, 6, 64).to(dtype) for n in (HEADS, KV_HEADS, KV_HEADS))
    parts = [reference(q[b], k[b], v[b], True)[0] for b in range(2)]
    places = {
        "BNSD": lambda t: t,
        "BSND": lambda t: t.transpose(1, 2).contiguous(),
        "BSH": lambda t: t.transpose(1, 2).flatten(2),
    }
    place = places[layout]
    out, _ = infer(
        tuple(map(place, (q, k, v))),
        input_layout=layout,
        num_key_value_heads=KV_HEADS,
        softmax_scale=64**-0.5,
        sparse_mode=2,
        atten_mask=triangle(),
    )
    close(out, place(torch.stack(parts)), dtype)


@pytest.mark.parametrize("causal", [False, True])
def test_scaled_dot_product_attention(causal: bool) -> None:
    q, k, v = (torch.randn(2, 3, 6, 16) for _ in range(3))
    got = F.scaled_dot_product_attention(q.npu(), k.npu(), v.npu(), is_causal=causal)
    close(
        got,
        F.scaled_dot_product_attention(q.double(), k.double(), v.double(), is_causal=causal),
        torch.float32,
    )


ENDS = {"actual_seq_qlen": [3, 8], "actual_seq_kvlen": [3, 8]}
CAUSAL = {"sparse_mode": 3, "atten_mask": TRIANGLE}
REFUSED = {
    "float32": (r"dtype Float", {"dtype": torch.float32}),
    "head size": ("head sizes 128, 192 or", {"width": 80}),
    "groups of width 64": ("head sizes 128, 192 or", {"width": 64}),
    "no lengths": ("needs both lengths", {"actual_seq_qlen": None, "actual_seq_kvlen": None}),
    "rows left out": ("query lengths end at 7, the tensor at 8", {"actual_seq_qlen": [3, 7]}),
    "keys left out": ("key lengths end at 7, the tensor at 8", {"actual_seq_kvlen": [3, 7]}),
    "keys that are not there": ("key lengths end at 9, the", {"actual_seq_kvlen": [3, 9]}),
    "unequal counts": ("2 query lengths, 1 key lengths", {"actual_seq_kvlen": [8]}),
    "too many sequences": (
        "at most 4096",
        {"actual_seq_qlen": [0] * 4096 + [8], "actual_seq_kvlen": [0] * 4096 + [8]},
    ),
    "head size, as many key heads": ("head sizes 128, 192 or", {"width": 72, "kv_heads": HEADS}),
    "causal without a mask": ("needs the 2048 x 2048 mask", {"sparse_mode": 3}),
    "mask of another shape": (
        "needs a 2048 x 2048 mask",
        CAUSAL | {"atten_mask": TRIANGLE[:64, :64]},
    ),
    "mask of floats": ("mask dtype Half", CAUSAL | {"atten_mask": TRIANGLE.half()}),
    "mask without a mode": ("takes sparse_mode 0 without a mask", {"atten_mask": TRIANGLE}),
    "unknown mode": ("sparse_mode 8 is not simulated", {"sparse_mode": 8}),
    "unknown layout": ("layout NTD is not simulated", {"input_layout": "NTD"}),
}


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_limits_are_checked_when_the_operator_is_submitted(name: str, captured: bool) -> None:
    message, options = REFUSED[name]
    options = {k: v.npu() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    dtype, width = options.pop("dtype", torch.float16), options.pop("width", WIDTH)
    kv_heads = options.pop("kv_heads", KV_HEADS)
    qkv = tuple(t.npu() for t in inputs(dtype, 8, 8, width, kv_heads))
    torch.npu.synchronize()
    graph = torch.npu.NPUGraph()
    with torch.npu.stream(torch.npu.Stream()):
        if captured:
            graph.capture_begin()
        with pytest.raises(RuntimeError, match=message) as error:
            infer(qkv, **ENDS | options)
        if captured:
            graph.capture_end()
    assert "error code is 161002" in str(error.value)


def test_inputs_must_be_contiguous() -> None:
    _, k, v = (t.npu() for t in inputs(torch.float16, 8, 8))
    wide = torch.ones(8, HEADS, 2 * WIDTH, dtype=torch.float16, device="npu")
    with pytest.raises(RuntimeError, match="inputs must be contiguous"):
        infer((wide[..., :WIDTH], k, v), **ENDS)


def test_lengths_that_fall_fail_when_the_operator_runs() -> None:
    qkv = inputs(torch.float16, 8, 8)
    with pytest.raises(RuntimeError, match=r"507015(.|\n)*must not fall and not pass 8"):
        infer(qkv, actual_seq_qlen=[3, 8], actual_seq_kvlen=[9, 8])


def test_the_mask_must_be_the_triangle() -> None:
    wrong = TRIANGLE.clone()
    wrong[64, 3] = True
    with pytest.raises(RuntimeError, match=r"507015(.|\n)*must be triu"):
        infer(inputs(torch.float16, 8, 8), **ENDS | CAUSAL | {"atten_mask": wrong.npu()})
