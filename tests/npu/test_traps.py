"""What torch_npu does that a user of graphs can fall into, and that the engine does not."""

from pathlib import Path

import pytest
import torch
from checkpoints import write_random

from pyrerank import Reranker
from pyrerank.devices.ascend import FusedInfer, cumulative
from pyrerank.engine.batch import Batch, pack

pytestmark = pytest.mark.usefixtures("sim")
TOKENS = 12


def batch_of(lengths: list[int]) -> Batch:
    return pack([[0] * length for length in lengths], [()] * len(lengths), [0] * len(lengths))


def attention_in_a_graph(ends: list[int]):
    """A graph of one fused inference attention, its inputs' batch, and its result."""
    q, k, v = (torch.randn(TOKENS, 2, 128).bfloat16().npu() for _ in range(3))
    lengths = [b - a for a, b in zip([0, *ends], ends, strict=False)]
    batch = batch_of(lengths)
    attend = FusedInfer(torch.device("npu", 0))
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph, auto_dispatch_capture=True):
        out = attend(q, k, v, batch)
    return graph, out, (attend, q, k, v)


def test_unknown_keys_of_an_update_change_nothing_and_ours_are_known():
    graph, out, (attend, *qkv) = attention_in_a_graph([5, TOKENS])
    results = []
    for update in (
        cumulative([5, 7], [5, 7]),
        {"actual_seq_q_len": [3, TOKENS], "actual_seq_lengths_kv": [3, TOKENS]},
        cumulative([3, 9], [3, 9]),
    ):
        graph.update(cpu_update_input=[update])
        graph.replay()
        results.append(out.cpu())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[1], results[2])
    eager = batch_of([3, 9])
    torch.testing.assert_close(results[2], attend(*qkv, eager).cpu())


def test_every_attention_of_the_engine_can_be_updated(tmp_path: Path):
    write_random(tmp_path, "qwen3-reranker", tied=True, dtype=torch.bfloat16)
    engine = Reranker(tmp_path, device="npu", dtype="bfloat16")
    engine.score("query", ["document"])
    [(graph, _)] = engine.core.graphs._graphs.values()
    records = graph.graph_dispatch_mode.graph_dispatch_records
    assert len(records) == 3  # layers
    assert all(cumulative([1], [1]).keys() <= record.kwargs.keys() for record in records)


def test_a_pinned_source_copied_in_a_capture_is_read_again_at_each_replay():
    source, target = torch.zeros(4).pin_memory(), torch.zeros(4, device="npu")
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        target.copy_(source, non_blocking=True)
    for value in (1.0, 2.0):
        source.fill_(value)
        graph.replay()
        assert target.cpu().tolist() == [value] * 4


def test_the_engine_copies_nothing_from_the_host_inside_its_graphs(sim, tmp_path: Path):
    write_random(tmp_path, "qwen3-reranker", tied=True, dtype=torch.bfloat16)
    engine = Reranker(tmp_path, device="npu", dtype="bfloat16")
    engine.score("query", ["document"])
    [(graph, _)] = engine.core.graphs._graphs.values()
    torch.npu.synchronize()
    before = sim.stats()["h2d"]
    bucket = engine.core.graphs.buckets[0]
    zeros = [0] * bucket.sequences
    lengths = cumulative([*zeros, bucket.tokens], [*zeros, bucket.keys])
    last = cumulative([*zeros, bucket.sequences + 1], [*zeros, bucket.keys])
    graph.update(cpu_update_input=[lengths, lengths, last])
    graph.replay()
    torch.npu.synchronize()
    assert sim.stats()["h2d"] == before


@pytest.mark.parametrize("by", ["mask", "index"])
def test_rows_are_inserted_by_index_because_a_mask_cannot_be_captured(by):
    x, rows = torch.zeros(6, 2, device="npu"), torch.ones(2, 2, device="npu")
    mask = torch.tensor([False, True, False, False, True, False], device="npu")
    index = torch.tensor([1, 4], device="npu")
    graph, stream = torch.npu.NPUGraph(), torch.npu.Stream()
    torch.npu.synchronize()
    with torch.npu.stream(stream):
        graph.capture_begin()
        if by == "mask":
            with pytest.raises(RuntimeError, match="1070"):
                x[mask] = rows
            with pytest.raises(RuntimeError, match="507903"):
                graph.capture_end()
            return
        x.index_copy_(0, index, rows)
        graph.capture_end()
    graph.replay()
    assert x.cpu()[:, 0].tolist() == [0, 1, 0, 0, 1, 0]
