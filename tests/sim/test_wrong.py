"""Every rule of the checked build, by a kernel that breaks it and a twin that does not.

A wrong kernel must be refused with its own name, the API call and the rule; the twin must pass and
give the right result.
"""

import mmap

import numpy as np
import pytest

pytestmark = pytest.mark.slow

N = 40

# kernel: what the error must say after "<kernel>_wrong, block <b>: ". The twin computes 2 * x.
ORDINARY = {
    # address and length
    "misaligned_operand": "Muls(dst): starts at UB byte 324, which is not a multiple of 32",
    "dropped_tail": "DataCopy: count 37 is 148 bytes, not a multiple of 32",
    "misaligned_copy": "DataCopyPad: dst starts 8 bytes past a multiple of 32",
    "copy_past_buffer": (
        "DataCopyPad(dst): touches UB bytes [320, 480), past the end of the tensor at 448"
    ),
    "too_much_padding": "DataCopyPad: paddings of 0 and 9 elements: at most 32 bytes each",
    "split_element": "DataCopyPad: blockLen 158 is not a multiple of the 4 bytes of an element",
    "too_many_blocks": "DataCopyPad: blockCount 5000 is outside 0..4095",
    "scratch_offset": "TBuf::GetWithOffset: offset 8 is not a multiple of 32",
    "index_past_end": "LocalTensor::GetValue: index 40 is past the end of a tensor of 40 elements",
    "offset_past_end": (
        "LocalTensor::operator[]: offset 48 is past the end of a tensor of 40 elements"
    ),
    "over_budget": "InitBuffer: 190336 bytes asked for, over the budget of 188160",
    "over_limit": "InitBuffer: 196928 bytes asked for, the unified buffer has 196608",
    "empty_buffer": "InitBuffer: a buffer of 0 bytes",
    # what memory holds
    "undefined_filler": (
        "Muls(src): reads UB bytes [148, 160), filler of DataCopyPad, which is undefined"
    ),
    "never_written": "Mul(src0): reads UB bytes [320, 480), which nothing wrote",
    # global memory
    "past_region": "DataCopyPad(src): touches bytes [32, 192) of region 'gm0', which has 160",
    "past_tensor": "DataCopyPad(src): touches bytes [0, 160) of a global tensor of 156 bytes",
    "negative_index": "DataCopyPad(src): touches bytes [-160, 0) of a global tensor of 160 bytes",
    "write_to_input": "DataCopyPad(dst): writes to region 'gm0', which is read only",
    "size_unknown": "GlobalTensor::GetSize: SetGlobalBuffer was given no size",
    "misaligned_global": "GlobalTensor::SetGlobalBuffer: address ",
    "cores_overlap": "DataCopyPad(dst): writes 'gm1' bytes [156, 160), which block 0 writes",
    "cores_unordered": "DataCopyPad(src): reads 'gm1' bytes [0, 160), which block 0 writes",
    "atomic_left_on": "SetAtomicAdd: atomic mode is left on at the end of the kernel",
    "atomic_type": "DataCopyPad: atomic add is on for another element type",
    "stale_cache": (
        "GlobalTensor::GetValue(tensor): reads 'gm1' bytes [0, 4), which this launch wrote by DMA"
    ),
    # barriers and flags
    "missing_barrier": (
        "Muls(src): reads UB bytes [160, 320) before Muls on pipe V has written them; needs "
        "PipeBarrier<PIPE_V>()"
    ),
    "overwritten_operand": (
        "Duplicate(dst): writes UB bytes [0, 160) before Add on pipe V has read them; needs "
        "PipeBarrier<PIPE_V>()"
    ),
    "skipped_enque": (
        "Add(src0): reads UB bytes [0, 160) before DataCopyPad on pipe MTE2 has written them; "
        "needs SetFlag and WaitFlag<HardEvent::MTE2_V>"
    ),
    "skipped_enque_out": (
        "DataCopyPad(src): reads UB bytes [160, 320) before Add on pipe V has written them; "
        "needs SetFlag and WaitFlag<HardEvent::V_MTE3>"
    ),
    "scratch_copy_in": (
        "Add(src0): reads UB bytes [320, 480) before DataCopyPad on pipe MTE2 has written"
    ),
    "scratch_copy_out": (
        "DataCopyPad(src): reads UB bytes [320, 480) before Add on pipe V has written them"
    ),
    "scratch_reused": (
        "DataCopyPad(dst): writes UB bytes [320, 480) before Add on pipe V has read them; "
        "needs SetFlag and WaitFlag<HardEvent::V_MTE2>"
    ),
    "result_reused": (
        "Duplicate(dst): writes UB bytes [320, 480) before DataCopyPad on pipe MTE3 has read "
        "them; needs SetFlag and WaitFlag<HardEvent::MTE3_V>"
    ),
    "copy_twice": (
        "DataCopyPad(dst): writes UB bytes [0, 160) before DataCopyPad on pipe MTE2 has "
        "written them; needs PipeBarrier<PIPE_MTE2>()"
    ),
    "store_twice": (
        "DataCopyPad(dst): writes 'gm1' bytes [0, 160) before DataCopyPad on pipe MTE3 has "
        "written them; needs PipeBarrier<PIPE_MTE3>()"
    ),
    "read_back": (
        "DataCopyPad(src): reads 'gm1' bytes [0, 160) before DataCopyPad on pipe MTE3 has "
        "written them; needs SetFlag and WaitFlag<HardEvent::MTE3_MTE2>"
    ),
    "bound_queue": (
        "DataCopyPad(src): reads UB bytes [0, 160) before DataCopyPad on pipe MTE2 has written "
        "them; needs SetFlag and WaitFlag<HardEvent::MTE2_MTE3>"
    ),
    "scalar_store_unseen": (
        "Mul(src1): reads UB bytes [320, 324) before LocalTensor::SetValue on pipe S has "
        "written them; needs SetFlag and WaitFlag<HardEvent::S_V>"
    ),
    "scalar_store_copied": (
        "DataCopyPad(src): reads UB bytes [160, 164) before LocalTensor::SetValue on pipe S "
        "has written them; needs SetFlag and WaitFlag<HardEvent::S_MTE3>"
    ),
    "scalar_load_early": (
        "LocalTensor::GetValue(tensor): reads UB bytes [320, 324) before Duplicate on pipe V "
        "has written them; needs SetFlag and WaitFlag<HardEvent::V_S>"
    ),
    "queued_scalar_load": (
        "LocalTensor::GetValue(tensor): reads UB bytes [0, 4) before DataCopyPad on pipe MTE2 "
        "has written them; needs SetFlag and WaitFlag<HardEvent::MTE2_S>"
    ),
    "known_through_scalar": "DataCopyPad(src): reads UB bytes [320, 480) before Add on pipe V",
    "flag_left_up": "SetFlag: flag 7 of V_MTE2 is left up at the end of the kernel",
    "flag_never_set": "WaitFlag: flag 3 of S_V was not set: the core would hang",
    "flag_set_twice": "SetFlag: flag 1 of V_S is up already: set twice without a WaitFlag",
    "flag_id_range": "SetFlag: id 8 of V_S is outside 0..7",
    "event_not_reserved": "ReleaseEventID: id 0 of V_S was not reserved",
    "events_used_up": "AllocEventID: all 8 ids of V_S are in use",
    "fetched_id_kept": "SetFlag: flag 0 of MTE2_V is up already",
    # queues and buffers
    "used_in_queue": "Add(src0): used between EnQue and DeQue",
    "no_free_buffer": (
        "AllocTensor: no free buffer among the queue's 1: the core would spin for ever"
    ),
    "never_freed": "AllocTensor: buffer 0 was never freed",
    "left_in_queue": "EnQue: buffer 0 was left in its queue",
    "freed_twice": "FreeTensor: the tensor is free already",
    "used_after_free": "Add(src0): used after FreeTensor",
    "used_after_reuse": "Add(src0): used after FreeTensor: the buffer was handed out again",
    "foreign_tensor": "FreeTensor: the tensor belongs to another queue",
    "empty_queue": "DeQue: the queue is empty",
    "queued_twice": "EnQue: the tensor is already in the queue",
    "beyond_depth": "EnQue: the queue already holds its depth of 1 tensors",
    "no_init": "AllocTensor: the queue was used before InitBuffer",
    "init_twice": "InitBuffer: called twice for one queue",
    "too_many_at_position": "InitBuffer: 9 buffers at one position: there are event ids for 8",
    "too_many_buffers": "InitBuffer: more than 64 buffers in all",
    "second_pipe": "TPipe: a second TPipe while one is alive",
    # arguments of vector instructions
    "repeat_wraps": "Add: repeatTime 256 is outside 0..255 and would wrap in 8 bits",
    "stride_wraps": "Add: repeat stride 256 of src0 is outside 0..255 and would wrap in 8 bits",
    "stride_past_end": "Add(src0): touches UB bytes [288, 544), past the end of the tensor at 512",
    "zero_block_stride": "Add: block stride 0 of dst is outside 1..255",
    "mask_too_wide": "Add: mask 128 is above the 64 lanes of a repeat",
    "mask_high_half": "Add: mask[1] must be 0 for a type with 64 lanes in a repeat",
    "mask_lost": "Add: isSetMask = false, but no mask is set",
    "mask_mode": "SetVectorMask: template says counter mode, the core is in normal mode",
    "counter_mode_forgotten": "Add: mask mode is counter",
    "counter_mode_left": "SetMaskCount: mask mode is left at counter at the end of the kernel",
    "partial_overlap": "Add(dst): overlaps src0 without being the same lanes",
    "count_past_end": (
        "Duplicate(dst): touches UB bytes [320, 356), past the end of the tensor at 352"
    ),
    "negative_count": "Add: count -1 is negative",
}

# Twins that compute something else.
OTHER = {
    "widened_in_place": "Cast(dst): overlaps src, whose elements have another width",
    "cast_mode": "Cast: round mode 0 is not one this pair of types accepts",
    "small_work_buffer": "ReduceSum: tmp of 32 bytes is too small: 16 partial sums need 64",
    "mask_and_repeat_swapped": (
        "WholeReduceSum(src): touches UB bytes [1280, 1300), past the end of the tensor"
    ),
    "misaligned_sums": "BlockReduceSum: dst starts 16 bytes past a multiple of 32",
    "sum_of_nothing": "ReduceSum: count 0: at least 1",
}

ELEMENTS = {  # where the bug needs a length of its own
    "dropped_tail": 37,
    "undefined_filler": 37,
    "repeat_wraps": 64 * 256,
    "stride_wraps": 64,
    "stride_past_end": 128,
    "zero_block_stride": 64,
    "mask_too_wide": 64,
    "mask_high_half": 64,
    "mask_lost": 64,
    "mask_mode": 64,
    "counter_mode_forgotten": 64,
    "small_work_buffer": 1024,
    "mask_and_repeat_swapped": 320,
    "misaligned_sums": 64,
    "sum_of_nothing": 64,
}
BLOCKS = {"cores_overlap": 3, "cores_unordered": 2}


def expected_of(kernel: str, x: np.ndarray) -> np.ndarray:
    if kernel == "widened_in_place":
        return x.astype(np.float32)
    if kernel == "cast_mode":
        return x  # small integers: exact in bfloat16
    return x.astype(np.float64).sum(keepdims=True).astype(np.float32)


def wrong_error(strict, broken_rule, kernel, x, y, args, blocks=1) -> str:
    with pytest.raises(broken_rule) as caught:
        strict.run(f"{kernel}_wrong", x, y, args, blocks=blocks)
    return str(caught.value)


@pytest.mark.parametrize("kernel", ORDINARY)
def test_wrong_is_refused_and_twin_is_right(strict, fast, broken_rule, kernel):
    n, blocks = ELEMENTS.get(kernel, N), BLOCKS.get(kernel, 1)
    x = np.arange(1, n * blocks + 1, dtype=np.float32)
    error = wrong_error(strict, broken_rule, kernel, x, np.zeros_like(x), [n], blocks)
    assert error.startswith(f"{kernel}_wrong, block "), error
    assert f": {ORDINARY[kernel]}" in error, error
    for simulator in (strict, fast):
        y = simulator.run(f"{kernel}_right", x, np.zeros_like(x), [n], blocks=blocks)
        np.testing.assert_array_equal(y, 2 * x)


@pytest.mark.parametrize("kernel", OTHER)
def test_other_results(strict, fast, broken_rule, kernel):
    n = ELEMENTS.get(kernel, N)
    x = (np.arange(n) % 11).astype(np.float16 if kernel == "widened_in_place" else np.float32)
    expected = expected_of(kernel, x)
    error = wrong_error(strict, broken_rule, kernel, x, np.zeros_like(expected), [n])
    assert error.startswith(f"{kernel}_wrong, block 0: {OTHER[kernel]}"), error
    for simulator in (strict, fast):
        y = simulator.run(f"{kernel}_right", x, np.zeros_like(expected), [n])
        np.testing.assert_array_equal(y, expected)


def test_row_offset_in_32_bits(strict, broken_rule):
    """A tensor of 2.6 GB, of which one page is touched: row * width does not fit 32 bits."""
    row, width = 40_000, 65_536
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, (row + 1) * width, flags=private)
    x = np.frombuffer(memory, dtype=np.int8)
    x[row * width : row * width + 64] = np.arange(64)
    y = np.zeros(64, np.int8)
    error = wrong_error(strict, broken_rule, "offset_in_32_bits", x, y, [row, width])
    start = "offset_in_32_bits_wrong, block 0: DataCopyPad(src): touches bytes [-"
    assert error.startswith(start), error
    strict.run("offset_in_32_bits_right", x, y, [row, width])
    np.testing.assert_array_equal(y, np.arange(64))


def test_error_names_the_block(strict, broken_rule):
    x = np.zeros(3 * N, np.float32)
    error = wrong_error(strict, broken_rule, "cores_overlap", x, np.zeros_like(x), [N], blocks=3)
    assert error.startswith("cores_overlap_wrong, block 1: ")


def test_a_launch_after_an_error_is_clean(strict, broken_rule):
    x = np.arange(N, dtype=np.float32)
    wrong_error(strict, broken_rule, "atomic_left_on", x, np.zeros_like(x), [N])
    y = strict.run("missing_barrier_right", x, np.zeros_like(x), [N])
    np.testing.assert_array_equal(y, 2 * x)


@pytest.mark.parametrize("blocks", [0, 65536])
def test_block_dim_range(strict, fast, broken_rule, blocks):
    x = np.zeros(N, np.float32)
    for simulator in (strict, fast):
        with pytest.raises(broken_rule, match=f"blockDim {blocks}; it must be 1 to 65535"):
            simulator.run("missing_barrier_right", x, x.copy(), [N], blocks=blocks)
