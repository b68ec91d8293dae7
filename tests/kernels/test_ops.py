"""The operators through torch: against their twins, views, errors, fakes, tracing.

The twin computes in float32 in another order, so the tolerance is that of float32 arithmetic
(2e-6 of the largest magnitude) plus one rounding to the result's dtype.
"""

import math
import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pyrerank import DeviceError
from pyrerank.kernels import extension, ops
from pyrerank.kernels.calls import ELEMENTS_PER_THREAD, POOL_MODES

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
ROUNDING = {torch.bfloat16: 2**-8, torch.float16: 2**-10, torch.float32: 2**-23}
EPS = 1e-6


def ids(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def assert_close(got: Tensor, want: Tensor) -> None:
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    largest = want.double().abs().max().item() if want.numel() else 0.0
    torch.testing.assert_close(
        got, want, rtol=2 * ROUNDING[want.dtype], atol=1e-5 * largest + 1e-7, equal_nan=True
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [16, 1024, 2560])
def test_operators_agree_with_their_twins(width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(width)
    hidden, gain = torch.randn(1134, width).to(dtype), torch.rand(width).to(dtype) + 0.5
    w, index, cu = torch.randn(width) / 8, ids(0, 1133, 5, 5), ids(0, 1, 130, 131, 1000)
    assert torch.equal(ops.last_token_gather(hidden, index=index), hidden[index.long()])
    assert torch.equal(
        ops.last_token_gather(hidden, cu), ops.last_token_gather_reference(hidden, cu)
    )
    got = ops.score_head(hidden, index, gain, EPS, w, 0.5)
    for ours, twin in zip(
        got, ops.score_head_reference(hidden, index, gain, EPS, w, 0.5), strict=True
    ):
        assert_close(ours, twin)
    for mode in POOL_MODES:
        for norm, dim, normalize in ((gain, None, True), (None, 7, False), (gain.float(), 9, True)):
            got = ops.fused_pool(hidden, cu, norm, EPS, mode, dim, normalize)
            twin = ops.fused_pool_reference(hidden, cu, norm, EPS, mode, dim, normalize)
            assert_close(got, twin)


@given(data=st.data())
@settings(max_examples=40)
def test_views_and_padded_buckets(data: st.DataObject) -> None:
    width, tokens = 16 * data.draw(st.integers(1, 8)), data.draw(st.integers(2, 30))
    gap, offset = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 3))
    torch.manual_seed(data.draw(st.integers(0, 999)))
    store = torch.rand(tokens * (width + gap) + offset)  # positive: no sum cancels
    hidden = store.as_strided((tokens, width), (width + gap, 1), offset)
    cuts = sorted(data.draw(st.sets(st.integers(0, tokens), min_size=2)))
    cu = torch.tensor(cuts, dtype=torch.int32).repeat_interleave(2)[::2]  # not contiguous
    mode = data.draw(st.sampled_from(POOL_MODES))
    gain = torch.rand(2 * width)[::2]
    got = ops.fused_pool(hidden, cu, gain, EPS, mode)
    assert_close(got, ops.fused_pool_reference(hidden, cu, gain, EPS, mode))
    score, logit = ops.score_head(hidden, cu[1:] - 1, gain, EPS, gain)
    twin = ops.score_head_reference(hidden, cu[1:] - 1, gain, EPS, gain)
    assert_close(logit, twin[1])
    assert_close(score, twin[0])
    assert torch.equal(ops.last_token_gather(hidden, cu), hidden[cu[1:].long() - 1])


def test_a_twin_gives_nan_where_a_kernel_does() -> None:
    hidden, gain = torch.randn(4, 16), torch.ones(16)
    rows = ops.last_token_gather_reference(hidden, index=ids(0, -1, 4, 3))
    assert rows.isnan().all(1).tolist() == [False, True, True, False]
    _, logit = ops.score_head_reference(hidden, ids(0, -1, 4, 3), gain, EPS, gain)
    assert logit.isnan().tolist() == [False, True, True, False]
    for mode in POOL_MODES:
        pooled = ops.fused_pool_reference(hidden, ids(0, 2, 2, 4, 5), gain, EPS, mode)
        assert pooled.isnan().all(1).tolist() == [False, True, False, True]


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_empty_batch(dtype: torch.dtype) -> None:
    hidden, gain, none = torch.ones(3, 32, dtype=dtype), torch.ones(32), ids()
    assert ops.last_token_gather(hidden, index=none).shape == (0, 32)
    assert ops.last_token_gather(hidden, ids(0)).shape == (0, 32)
    score, logit = ops.score_head(hidden, none, gain, EPS, gain)
    assert score.shape == logit.shape == (0,) and score.dtype == torch.float32
    pooled = ops.fused_pool(hidden, ids(0), gain, dim=8)
    assert pooled.shape == (0, 8) and pooled.dtype == dtype
    assert ops.fused_pool_reference(hidden, ids(0), gain, dim=8).shape == (0, 8)


def test_nan_is_never_clamped_away() -> None:
    hidden, gain = torch.randn(2, 64), torch.ones(64)
    hidden[1, 3] = math.nan
    score, logit = ops.score_head(hidden, ids(0, 1), gain, EPS, gain)
    assert score.isnan().tolist() == logit.isnan().tolist() == [False, True]
    assert ops.fused_pool(hidden, ids(0, 1, 2), gain)[1].isnan().all()


def test_threads_do_not_change_a_bit() -> None:
    width = 4096
    hidden, gain, w = torch.randn(400, width).bfloat16(), torch.rand(width), torch.randn(width)
    index, before = torch.arange(400, dtype=torch.int32), torch.get_num_threads()
    assert hidden.numel() > 3 * ELEMENTS_PER_THREAD
    try:
        torch.set_num_threads(1)
        one = ops.score_head(hidden, index, gain, EPS, w)
        torch.set_num_threads(3)
        three = ops.score_head(hidden, index, gain, EPS, w)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one[1], three[1]) and torch.equal(one[0], three[0])


HIDDEN, GAIN, CU, INDEX = torch.ones(4, 32), torch.ones(32), ids(0, 2, 4), ids(0, 3)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: ops.fused_pool(HIDDEN.double(), CU), TypeError, "hidden: got torch.float64"),
        (lambda: ops.fused_pool(HIDDEN[0], CU), ValueError, "hidden: got shape (32,)"),
        (lambda: ops.fused_pool(HIDDEN.T, CU), ValueError, "hidden: got strides (1, 32)"),
        (lambda: ops.fused_pool(HIDDEN[:1].expand(4, 32), CU), ValueError, "strides (0, 1)"),
        (lambda: ops.fused_pool(torch.ones(4, 24), CU), ValueError, "got 24, wanted a multiple"),
        (
            lambda: ops.fused_pool(torch.ones(4, 8208), CU),
            ValueError,
            "got 8208, wanted 16 to 8192",
        ),
        (lambda: ops.fused_pool(HIDDEN, CU.long()), TypeError, "cu_seqlens: got torch.int64"),
        (lambda: ops.fused_pool(HIDDEN, CU[None]), ValueError, "cu_seqlens: got shape (1, 3)"),
        (lambda: ops.fused_pool(HIDDEN, ids()), ValueError, "cu_seqlens: got no element"),
        (lambda: ops.fused_pool(HIDDEN, ids(0, 2, 2)), ValueError, "got 2 to 2 for sequence 1"),
        (lambda: ops.fused_pool(HIDDEN, ids(0, 3, 2)), ValueError, "got 3 to 2 for sequence 1"),
        (lambda: ops.fused_pool(HIDDEN, ids(0, 5)), ValueError, "within the 4 rows of hidden"),
        (lambda: ops.fused_pool(HIDDEN, ids(-1, 2)), ValueError, "cu_seqlens: got -1 to 2"),
        (lambda: ops.fused_pool(HIDDEN, CU, GAIN[:5]), ValueError, "norm_weight: got shape (5,)"),
        (
            lambda: ops.fused_pool(HIDDEN, CU, GAIN.half()),
            TypeError,
            "norm_weight: got torch.float16",
        ),
        (lambda: ops.fused_pool(HIDDEN, CU, GAIN, 0.0), ValueError, "eps: got 0.0"),
        (lambda: ops.fused_pool(HIDDEN, CU, mode="max"), ValueError, "mode: got 'max'"),
        (lambda: ops.fused_pool(HIDDEN, CU, dim=33), ValueError, "dim: got 33, wanted 1 to 32"),
        (lambda: ops.fused_pool(HIDDEN, CU, dim=0), ValueError, "dim: got 0, wanted 1 to 32"),
        (lambda: ops.fused_pool(HIDDEN, CU.to("meta")), ValueError, "cu_seqlens: got device meta"),
        (lambda: ops.score_head(HIDDEN, INDEX.short(), GAIN, EPS, GAIN), TypeError, "index: got"),
        (
            lambda: ops.score_head(HIDDEN, ids(0, 4), GAIN, EPS, GAIN),
            ValueError,
            "index[1]: got 4, wanted 0 to 3",
        ),
        (lambda: ops.score_head(HIDDEN, ids(-1), GAIN, EPS, GAIN), ValueError, "index[0]: got -1"),
        (lambda: ops.score_head(HIDDEN, INDEX, GAIN, EPS, GAIN.half()), TypeError, "w: got"),
        (lambda: ops.score_head(HIDDEN, INDEX, GAIN, EPS, GAIN[1:]), ValueError, "w: got shape"),
        (lambda: ops.last_token_gather(HIDDEN), ValueError, "got neither, wanted exactly one"),
        (lambda: ops.last_token_gather(HIDDEN, CU, index=INDEX), ValueError, "got both"),
        (lambda: ops.last_token_gather(HIDDEN, ids(2, 1)), ValueError, "got 2 to 1 for sequence 0"),
        (lambda: ops.last_token_gather(HIDDEN, index=ids(9)), ValueError, "index[0]: got 9"),
    ],
)
def test_errors_name_argument_got_and_wanted(
    call: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: torch.dtype) -> None:
    hidden, gain, w = torch.randn(6, 32).to(dtype), torch.ones(32, dtype=dtype), torch.randn(32)
    cu, index = ids(0, 2, 6), ids(1, 5)
    library = torch.ops.pyrerank
    torch.library.opcheck(library.last_token_gather.default, (hidden, cu))
    torch.library.opcheck(library.last_token_gather.default, (hidden,), {"index": index})
    torch.library.opcheck(library.score_head.default, (hidden, index, gain, EPS, w, 0.5))
    torch.library.opcheck(library.fused_pool.default, (hidden, cu, gain, EPS, "mean", 8, True))
    torch.library.opcheck(library.fused_pool.default, (hidden, cu))


def test_tracing_knows_the_shapes() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    def model(hidden: Tensor, cu: Tensor) -> Tensor:
        return ops.fused_pool(hidden * 2, cu, dim=8) + 1

    hidden, cu = torch.randn(5, 32), ids(0, 2, 5)
    traced = make_fx(model, tracing_mode="symbolic")(hidden, cu)
    other, more = torch.randn(9, 32), ids(0, 1, 4, 9)
    assert torch.equal(traced(other, more), model(other, more))


# ---- which module runs, and when the operators are there ----------------------------------------


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_results_are_nan_until_a_kernel_has_written_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        def __getattr__(self, name: str) -> object:
            return lambda *addresses, **sizes: None

    monkeypatch.setattr(extension, "_C", Silent())
    results = [
        ops.last_token_gather(HIDDEN, CU),
        *ops.score_head(HIDDEN, INDEX, GAIN, EPS, GAIN),
        ops.fused_pool(HIDDEN.bfloat16(), CU),
    ]
    assert all(result.numel() and result.isnan().all() for result in results)


BUILT_FOR_AN_NPU = """
import sys, types
C = types.ModuleType("pyrerank._C")
C.build_info = lambda: {"target": "npu"}
def launch(*addresses, **sizes):
    raise AssertionError("an address of the host went to an NPU")
C.last_token_gather = C.score_head = C.fused_pool = launch
sys.modules["pyrerank._C"] = C
"""
SCORES = """
import pyrerank
print(pyrerank.Reranker("demo", device="cpu").score("moon", ["the moon", "a cat"]))
"""


def test_a_module_built_for_an_npu_gets_nothing_of_the_host() -> None:
    got = [float(score) for score in run(BUILT_FOR_AN_NPU + SCORES).strip("[]\n").split(",")]
    want = [float(score) for score in run(SCORES).strip("[]\n").split(",")]
    assert got == pytest.approx(want, abs=2e-2) and want[0] > 0.5 > want[1]


def test_kernels_for_an_npu_that_do_not_load_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> object:
        raise ImportError("libascendcl.so: cannot open shared object file")

    extension.npu_kernels.cache_clear()
    monkeypatch.setattr(extension, "import_module", broken)
    with pytest.raises(DeviceError, match=r"libascendcl.so.*source the set_env.sh.*reinstall"):
        extension.npu_kernels()
    monkeypatch.undo()
    assert extension.npu_kernels() is extension._C, "nothing was built with CANN here"
    extension.npu_kernels.cache_clear()


def test_without_an_extension_ids_are_checked_as_well() -> None:
    assert "index[1]: got 4" in run("""
import sys
sys.modules["pyrerank._C"] = None
import torch
from pyrerank import DeviceError
from pyrerank.kernels import extension, ops
assert extension._C is None
hidden, gain, index = torch.ones(4, 32), torch.ones(32), torch.tensor([0, 4], dtype=torch.int32)
assert not ops.score_head(hidden, index[:1], gain, 1e-6, gain)[0].isnan().any()
try:
    ops.score_head(hidden, index, gain, 1e-6, w=gain)
except ValueError as error:
    print(error)
""")


@pytest.mark.parametrize(
    "imports",
    [
        "import torch, pyrerank",
        "import pyrerank, torch",
        "import pyrerank.kernels.ops, torch",
        "import pyrerank; from importlib.util import find_spec; find_spec('torch'); import torch",
    ],
)
def test_the_operators_are_registered(imports: str) -> None:
    names = "last_token_gather", "score_head", "fused_pool"
    run(f"{imports}; [getattr(torch.ops.pyrerank, name).default for name in {names}]")


def test_importing_pyrerank_imports_no_torch() -> None:
    run("import sys, pyrerank; assert 'torch' not in sys.modules and 'ops' not in vars(pyrerank)")
