"""Graphs on the simulated CANN: capture, what it forbids, replay, updates of task groups."""

import contextlib
import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

torch_npu = pytest.importorskip("torch_npu")
from sim_cases import Decoder, capture, close  # noqa: E402


@pytest.fixture
def x(sim) -> torch.Tensor:
    return torch.ones(8, device="npu")


# ---------------------------------------------------------------- what a capture forbids


def recorded() -> torch.npu.Event:
    event = torch.npu.Event()
    event.record()
    return event


def unjoined(x: torch.Tensor) -> torch.Tensor:
    side = torch.npu.Stream()
    side.wait_stream(torch.npu.current_stream())
    with torch.npu.stream(side):
        return x * 3


def emptied(x: torch.Tensor) -> None:
    # with two devices in use, an empty_cache that fails leaves the other one current
    with torch.npu.device(x.device):
        torch.npu.empty_cache()


FORBIDDEN: dict[str, tuple[int, Callable[[torch.Tensor], object]]] = {
    "item": (107027, lambda x: (x * 2).sum().item()),
    "cpu": (107030, lambda x: (x * 2).cpu()),
    "synchronize the stream": (107027, lambda x: torch.npu.current_stream().synchronize()),
    "synchronize the device": (107030, lambda x: torch.npu.synchronize()),
    "query the stream": (107027, lambda x: torch.npu.current_stream().query()),
    "nonzero": (107027, lambda x: torch.nonzero(x)),
    "boolean index": (107027, lambda x: x[x > 0]),
    "pageable copy": (107030, lambda x: x.copy_(torch.ones(8))),
    "asynchronous pageable copy": (107041, lambda x: x.copy_(torch.ones(8), non_blocking=True)),
    "tensor literal": (107030, lambda x: torch.tensor([1, 2], device="npu")),
    "query an event": (107028, lambda x: recorded().query()),
    "synchronize an event": (107028, lambda x: recorded().synchronize()),
    "empty_cache": (107030, emptied),
    "side stream left open": (107025, unjoined),
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_an_illegal_act_fails_and_spoils_the_capture(x: torch.Tensor, name: str) -> None:
    code, act = FORBIDDEN[name]
    with pytest.raises(RuntimeError, match=f"error code is {code}"):
        capture(lambda: act(x))
    swallowed = torch.npu.NPUGraph()
    with torch.npu.stream(torch.npu.Stream()):
        swallowed.capture_begin()
        with contextlib.suppress(RuntimeError):  # the capture does not forget
            act(x)
        with pytest.raises(RuntimeError, match=r"error code is (507903|107025)"):
            swallowed.capture_end()
    with pytest.raises(RuntimeError):
        swallowed.replay()
    assert (x + 1).cpu().tolist() == [2] * 8  # and the device goes on


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_are_copied_by_an_index_that_changes_between_replays(sim, dtype) -> None:
    """As features of pictures take their places; padding repeats the first of them."""
    x, rows = torch.zeros(6, 4, dtype=dtype).npu(), torch.zeros(4, 4, dtype=dtype).npu()
    index = torch.zeros(4, dtype=torch.int32).npu()

    def body() -> torch.Tensor:
        there = index.long()
        x.index_copy_(0, there, rows)
        return x.index_copy(0, there, x.index_select(0, there) + rows)

    graph, out = capture(body)
    for places, sources in (([4, 1, 4, 4], [0, 1, 0, 0]), ([0, 5, 2, 3], [0, 1, 2, 3])):
        new = torch.randn(4, 4).to(dtype)[sources]
        x.zero_()
        rows.copy_(new)
        index.copy_(torch.tensor(places, dtype=torch.int32))
        graph.replay()
        want = torch.zeros(6, 4, dtype=dtype)
        want[places] = 2 * new
        assert torch.equal(out.cpu(), want)


def test_an_illegal_act_in_another_thread_spoils_a_global_capture(x: torch.Tensor) -> None:
    failures = []

    def act() -> None:
        try:
            x.cpu()
        except RuntimeError as error:
            failures.append(str(error))

    def body() -> None:
        thread = threading.Thread(target=act)
        thread.start()
        thread.join()

    with pytest.raises(RuntimeError, match="507903"):
        capture(body)
    assert "107030" in failures[0]
    capture_relaxed = torch.npu.NPUGraph()
    with torch.npu.stream(torch.npu.Stream()):
        capture_relaxed.capture_begin(capture_error_mode="thread_local")
        body()
        capture_relaxed.capture_end()
    assert len(failures) == 1


# ---------------------------------------------------------------- what it does


def test_a_capture_runs_nothing_and_each_replay_all(sim, x: torch.Tensor) -> None:
    y = torch.zeros(8, device="npu")
    torch.npu.synchronize()
    sim.reset_counts()
    graph, _ = capture(lambda: y.add_(x).mul_(2))
    assert y.cpu().tolist() == [0] * 8
    assert sim.count("aclnnInplaceAdd") == 0
    before = sim.stats()
    for expected in (2, 6, 14):
        graph.replay()
        assert y.cpu().tolist() == [expected] * 8
    after = sim.stats()
    assert sim.counts()["aclnnInplaceAdd"] == 3 == sim.count("aclnnInplaceMuls")
    assert after["replays"] - before["replays"] == 3
    assert after["mallocs"] == before["mallocs"]
    assert after["d2h"] - before["d2h"] == 3 * y.nbytes


def test_a_page_locked_source_is_read_again_at_each_replay(x: torch.Tensor) -> None:
    host = torch.ones(8).pin_memory()
    graph, _ = capture(lambda: x.copy_(host, non_blocking=True))
    for value in (5, 7):
        host.fill_(value)
        graph.replay()
        assert x.cpu().tolist() == [value] * 8


def test_side_streams_join_a_capture(x: torch.Tensor) -> None:
    def body() -> torch.Tensor:
        here, side = torch.npu.current_stream(), torch.npu.Stream()
        side.wait_stream(here)
        with torch.npu.stream(side):
            y = x * 3
        here.wait_stream(side)
        return y + 1

    graph, y = capture(body)
    x.fill_(2)
    graph.replay()
    assert y.cpu().tolist() == [7] * 8


def test_a_graph_keeps_its_own_memory(x: torch.Tensor) -> None:
    graph, big = capture(lambda: torch.zeros(1 << 20, device="npu") + x[0])
    others = [torch.full((1 << 18,), 9.0, device="npu") for _ in range(8)]
    graph.replay()
    assert big.cpu().eq(1).all()
    assert all(t.cpu().eq(9).all() for t in others)


def test_a_replay_that_reads_freed_memory_fails(sim) -> None:
    # large enough for an allocation of its own, which empty_cache gives back
    holder = [torch.empty(64 << 20, dtype=torch.int8, device="npu")]
    graph, _ = capture(lambda: holder[0][:8] + 1)
    graph.replay()
    torch.npu.synchronize()
    holder.clear()
    torch.npu.empty_cache()
    with pytest.raises(RuntimeError, match="was freed"):
        graph.replay()


# ---------------------------------------------------------------- updates


def test_lengths_of_a_captured_attention_are_updated(sim) -> None:
    decoder = Decoder([5, 17, 22])
    before = sim.stats()["updates"]
    for ends, first in (([5, 17, 22], True), ([9, 22], True), ([1, 2, 3, 22], False)):
        if first:
            decoder.update(ends)
        decoder.graph.replay()
        if not first:  # the replay waits for its update
            decoder.update(ends)
        close(decoder.out, decoder.want(ends), torch.bfloat16)
    assert sim.stats()["updates"] - before == 3 * decoder.layers


def test_the_last_of_two_updates_wins(sim) -> None:
    decoder = Decoder([5, 22])
    decoder.update([7, 22])
    decoder.update([21, 22])
    decoder.graph.replay()
    close(decoder.out, decoder.want([21, 22]), torch.bfloat16)


def test_an_update_with_wrong_lengths_is_refused_and_stays_open(sim) -> None:
    decoder = Decoder([5, 22])
    with pytest.raises(RuntimeError, match="query lengths end at 21, the tensor at 22"):
        decoder.update([5, 21])
    other = Decoder([3, 9])  # torch_npu has one update stream for all
    with pytest.raises(RuntimeError, match="error code is 107033"):
        other.update([4, 9])
    sim.revive()
    other.update([4, 9])
    other.graph.replay()
    close(other.out, other.want([4, 9]), torch.bfloat16)


# ---------------------------------------------------------------- streams and events


def test_a_stream_waits_for_an_event_of_another(x: torch.Tensor) -> None:
    """Nothing that waits runs early, and it runs by itself when the event comes."""
    first, second = torch.npu.Stream(), torch.npu.Stream()
    event = torch.npu.Event()
    with torch.npu.stream(first):
        x.fill_(3)
        event.record()
    with torch.npu.stream(second):
        event.wait()
        y = x * 2
    second.synchronize()
    assert y.cpu().tolist() == [6] * 8
    assert event.query()


def test_events_measure_time(x: torch.Tensor) -> None:
    start, end = (torch.npu.Event(enable_timing=True) for _ in range(2))
    start.record()
    F.silu(x)
    end.record()
    end.synchronize()
    assert start.elapsed_time(end) >= 0
