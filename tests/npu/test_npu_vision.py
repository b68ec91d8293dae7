"""Pictures on an NPU: the vision tower against the CPU's, and engines that read pictures."""

import gc
import math
from functools import cache
from pathlib import Path
from unittest.mock import patch

import checkpoints
import numpy as np
import pytest
import torch
from checkpoints import write_random

pytest.importorskip("torch_npu")
from pyrerank import Embedder, Media, OutOfMemory, Reranker
from pyrerank.devices.select import resolve
from pyrerank.engine.graphs import buckets
from pyrerank.media.reader import Reader
from pyrerank.model.linear import Float
from pyrerank.model.vision import VisionTower
from pyrerank.weights.checkpoint import open_checkpoint
from pyrerank.weights.config import VisionConfig

FEATURES = {torch.float32: 1e-5, torch.bfloat16: 5e-2}
SCORES = {"float32": 1e-5, "bfloat16": 2e-2}
# t, h, w in patches: the smallest, odd multiples of 2, a strip, videos
GRIDS = [(1, 2, 2), (1, 6, 10), (1, 8, 8), (1, 2, 46), (3, 6, 4), (1, 26, 18), (2, 2, 2)]
# heads of attention: the published towers', and smaller ones
TOWERS = {
    "heads of 16": {},
    "heads of 64": {"hidden_size": 128, "num_heads": 2},
    "heads of 72": {"hidden_size": 144, "num_heads": 2},
}
NPU = torch.device("npu", 0)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    @cache
    def write(kind: str = "heads of 16", **decoder: int) -> Path:
        folder = tmp_path_factory.mktemp("checkpoint")
        with patch.dict(checkpoints.VISION, TOWERS[kind]):
            write_random(folder, "qwen3-vl-reranker", tied=True, dtype=torch.bfloat16, **decoder)
        return folder

    return write


# ---- the tower ----------------------------------------------------------------------------------


def load(folder: Path, device: torch.device | str, dtype: torch.dtype) -> VisionTower:
    return VisionTower.load(open_checkpoint(folder), resolve(device), dtype)


def random_patches(grids: list) -> torch.Tensor:
    return torch.rand(sum(map(math.prod, grids)), 1536) * 2 - 1


@pytest.mark.parametrize("dtype", FEATURES, ids=str)
@pytest.mark.parametrize("kind", TOWERS)
def test_features_are_those_of_the_cpu(checkpoint, kind, dtype):
    x = random_patches(GRIDS).bfloat16()
    want = load(checkpoint(kind), "cpu", torch.float32)(x, GRIDS)
    tower = load(checkpoint(kind), NPU, dtype)
    got = tower(x, GRIDS)
    assert (got.device, got.dtype) == (NPU, dtype)
    torch.testing.assert_close(got.cpu().float(), want, atol=FEATURES[dtype], rtol=0)
    assert want.std() > 0.5  # the tower can show a difference
    assert torch.equal(tower(x.npu(), GRIDS).cpu(), got.cpu())  # from patches that are there


def test_a_block_attends_to_all_pictures_in_one_call(sim, checkpoint):
    folder = checkpoint()
    half, single = (load(folder, NPU, dtype) for dtype in (torch.bfloat16, torch.float32))
    launches = set()
    for grids in (GRIDS[:1], GRIDS, GRIDS * 3):
        x = random_patches(grids)
        sim.reset_counts()
        half(x, grids)
        assert sim.count("aclnnFusedInferAttentionScoreV4") == len(half.blocks)
        launches.add(sum(sim.counts().values()))
        single(x, grids)
        sequences = sum(pairs for pairs, _, _ in grids)
        assert sim.count("aclnnFlashAttentionScore") == sequences * len(single.blocks)
    assert len(launches) == 1


def test_the_host_waits_for_no_block(sim, checkpoint):
    tower = load(checkpoint(), NPU, torch.bfloat16)
    x = random_patches(GRIDS)
    waits = []
    for depth in (3, 1):
        del tower.blocks[depth:]
        before = sim.stats()["syncs"]
        tower(x, GRIDS)
        waits.append(sim.stats()["syncs"] - before)
    assert waits[0] == waits[1]


# hidden_size, intermediate_size, hidden_size of the decoder
PUBLISHED = {"2B": (1024, 4096, 2048), "8B": (1152, 4304, 4096)}


@pytest.mark.parametrize("dtype", FEATURES, ids=str)
@pytest.mark.parametrize("size", PUBLISHED)
def test_memory_of_a_pass_at_published_widths(sim, size, dtype):
    hidden, inner, out = PUBLISHED[size]
    with torch.device("meta"):
        config = VisionConfig(2, hidden, inner, 16, out, 2304, (0,))
        tower = VisionTower(config, resolve("npu"), Float())
    tower = tower.to_empty(device=NPU).to(dtype).requires_grad_(False)
    tower.inv_freq = torch.ones(hidden // 64, device=NPU)
    grids = [(1, 14, 16), (1, 4, 4), (2, 16, 10)] * 4
    x = random_patches(grids)
    taken = tower.activation_bytes(len(x))
    gc.collect()
    torch.npu.empty_cache()
    before = sim.stats(0)["bytes_now"]
    sim.reset_peak()
    torch.empty(taken, dtype=torch.uint8, device=NPU)  # the allocator cuts all others from it
    with torch.inference_mode():
        tower(x, grids)
    elsewhere = 8 << 20  # tensors of less than a MiB, and what the allocator rounds up
    assert taken <= sim.stats(0)["bytes_peak"] - before <= taken + elsewhere
    torch.npu.empty_cache()
    held = torch.npu.memory_allocated()
    torch.npu.reset_peak_memory_stats()
    with torch.inference_mode():
        tower(x, grids)
    assert 0.75 * taken < torch.npu.max_memory_allocated() - held <= taken


# ---- engines ------------------------------------------------------------------------------------

MEDIA = Media(max_image_tokens=40)
FOLDER = Path(__file__).parents[1] / "data/pictures"
QUERY = "Which picture shows an animal?"


def noise(seed: int, height: int = 64, width: int = 96) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


FRAMES = [noise(seed) for seed in range(5)]
CONTENTS = [
    {"image": FOLDER / "cat.jpg"},
    "words alone",
    {"image": noise(0), "text": "noise"},
    {"video": FRAMES, "text": "a film"},
    {"image": [noise(1), FOLDER / "page.png"]},
    {"video": FRAMES[:2], "image": noise(2, 80, 50), "text": "everything"},
]
PICTURES = 7  # in CONTENTS


@pytest.fixture(scope="session")
def on_cpu(checkpoint):
    engines = cache(lambda kind: Reranker(checkpoint(kind), device="cpu", dtype="float32"))
    return lambda kind, query, documents: engines(kind).score(query, documents, media=MEDIA)


def engine(folder: Path, dtype: str, graph: bool, **options: object) -> Reranker:
    options = {"token_budget": 512} | options
    return Reranker(folder, device="npu", dtype=dtype, graph=graph, **options)


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("dtype", SCORES)
@pytest.mark.parametrize("kind", TOWERS)
def test_scores_are_those_of_the_cpu(checkpoint, on_cpu, kind, dtype, graph):
    ours = engine(checkpoint(kind), dtype, graph)
    for query in (QUERY, {"image": noise(3), "text": "like this"}):
        want = on_cpu(kind, query, CONTENTS)
        assert max(want) - min(want) > 0.1  # the checkpoint can show a difference
        got = ours.score(query, CONTENTS, media=MEDIA)
        assert got == pytest.approx(want, abs=SCORES[dtype])
    assert ours.core.features.encoded == PICTURES + 1


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("dtype", SCORES)
def test_embeddings_are_those_of_the_cpu(checkpoint, dtype, graph):
    want = Embedder(checkpoint(), device="cpu", dtype="float32").embed(CONTENTS, media=MEDIA)
    ours = Embedder(checkpoint(), device="npu", dtype=dtype, graph=graph, token_budget=512)
    got = ours.embed(CONTENTS, media=MEDIA)
    bound = {"float32": 1e-5, "bfloat16": 5e-3}[dtype]
    assert abs((got * want).sum(1) - 1).max() <= bound


@pytest.mark.parametrize("dtype", SCORES)
def test_words_and_pictures_take_turns_in_graphs(checkpoint, on_cpu, dtype):
    ours = engine(checkpoint(), dtype, graph=True)
    first, second = ([{"image": noise(n)}, {"image": noise(n + 1), "text": "x"}] for n in (10, 20))
    words = ["words", "some more of these words. " * 8]  # as many tokens, and no picture
    captures = [1, 1, 2, 2, 2, 2, 2]  # two graphs for buckets of one size
    for batch, number in zip([first, second, words] * 2 + [first], captures, strict=True):
        want = on_cpu("heads of 16", QUERY, batch)
        assert ours.score(QUERY, batch, media=MEDIA) == pytest.approx(want, abs=SCORES[dtype])
        assert ours.core.graphs.captures == number
    assert ours.core.graphs.replays == len(captures)
    # of another bucket, whose rows of features held other pictures before
    batch = [{"image": [noise(seed, 160, 160) for seed in range(30, 34)]}, *first, "words"]
    want = on_cpu("heads of 16", QUERY, batch)
    assert ours.score(QUERY, batch, media=MEDIA) == pytest.approx(want, abs=SCORES[dtype])
    assert (ours.core.graphs.captures, ours.core.graphs.replays) == (3, len(captures) + 1)


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("dtype", SCORES)
def test_prefixes_reach_through_pictures(checkpoint, on_cpu, dtype, graph):
    ours = engine(checkpoint(), dtype, graph, token_budget=1024)
    pictures = [noise(seed) for seed in range(3)]
    documents = [
        {"image": pictures[:2]},
        {"image": pictures[:1], "text": "the first"},
        {"image": [pictures[0], pictures[2]]},
        {"image": pictures[:2], "text": "both"},
        "words alone",
        {"image": pictures[:1], "text": "the first?"},
    ]
    computed = []
    for query in (QUERY, {"image": noise(3), "text": "like this"}):
        want = on_cpu("heads of 16", query, documents)
        for prune in (False, True):
            ours.core.prune_last_layer = prune
            before = ours.core.computed
            got = ours.score(query, documents, media=MEDIA)
            assert got == pytest.approx(want, abs=SCORES[dtype])
            computed.append(ours.core.computed - before)
        pairs = [
            ours.core.encoder.pair("", query, document, reader=Reader(MEDIA))
            for document in documents
        ]
        prompts = ours.core.encoder.encode(pairs)
        # each token with its picture: the pixels tell pictures of one size apart
        nodes = set()
        for prompt in prompts:
            names = list(prompt.ids)
            for visual, (start, height, width) in zip(prompt.visuals, prompt.spans, strict=True):
                pixels = visual.frames.tobytes()
                names[start : start + height * width] = [pixels] * (height * width)
            nodes |= {tuple(names[:end]) for end in range(1, len(names) + 1)}
        assert computed[-2:] == [len(nodes)] * 2
        assert len(nodes) < sum(len(prompt.ids) for prompt in prompts) / 2
    if graph:
        assert ours.core.graphs.replays == len(computed)


def test_warmup_captures_both_kinds_of_every_bucket(checkpoint, on_cpu):
    ours = engine(checkpoint(), "bfloat16", graph=True, token_budget=256)
    ours.warmup()
    assert ours.core.graphs.captures == 2 * len(buckets(256))
    for batch in (["words"], [{"image": noise(0)}], [{"image": noise(1)}, "words"]):
        want = on_cpu("heads of 16", QUERY, batch)
        assert ours.score(QUERY, batch, media=MEDIA) == pytest.approx(want, abs=2e-2)
    assert ours.core.graphs.captures == 2 * len(buckets(256))


def test_a_picture_beyond_the_largest_bucket_runs_eagerly(checkpoint, on_cpu):
    ours = engine(checkpoint(), "bfloat16", graph=True, token_budget=128)
    batch = [{"image": [noise(seed, 128, 160) for seed in range(6)]}]  # 20 rows each
    got = ours.score(QUERY, batch, media=MEDIA)
    assert got == pytest.approx(on_cpu("heads of 16", QUERY, batch), abs=2e-2)
    assert ours.core.graphs.replays == 0


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_the_host_waits_for_no_layer_and_nothing_is_allocated(sim, checkpoint, graph):
    waits = []
    for layers in (3, 6):
        ours = engine(checkpoint(num_hidden_layers=layers), "bfloat16", graph)
        batches = [[{"image": noise(n)}, {"image": noise(n + 1), "text": "x"}] for n in range(3)]
        for batch in batches[:2]:
            ours.score(QUERY, batch, media=MEDIA)
        before = sim.stats()
        ours.score(QUERY, batches[2], media=MEDIA)
        after = sim.stats()
        waits.append(after["syncs"] - before["syncs"])
        assert after["mallocs"] == before["mallocs"]
        assert after["replays"] - before["replays"] == graph
        # pictures that are remembered cost what words cost
        before = sim.stats()
        ours.score(QUERY, batches[1], media=MEDIA)
        assert sim.stats()["syncs"] - before["syncs"] == 2
    assert waits[0] == waits[1]


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_a_picture_is_encoded_once_while_it_is_remembered(sim, checkpoint, graph):
    engines = [engine(checkpoint(), "bfloat16", graph, vision_cache=size) for size in (1 << 20, 0)]
    scores, passes = [], []
    for ours in engines:
        for _ in range(2):
            sim.reset_counts()
            scores.append(ours.score(QUERY, CONTENTS[:2], media=MEDIA))
            passes.append(sim.count("aclnnLayerNorm") > 0)  # the decoder has none
    assert passes == [True, False, True, True]
    assert scores[1:] == scores[:1] * 3
    assert [ours.core.features.encoded for ours in engines] == [1, 2]


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_the_tower_runs_out_of_memory(sim, checkpoint, graph):
    ours = engine(checkpoint(), "bfloat16", graph)
    small, large = [{"image": noise(0)}], [{"image": noise(1, 640, 640)}]
    want = ours.score(QUERY, small, media=MEDIA)
    torch.npu.empty_cache()
    sim.set_memory(sim.stats(0)["bytes_now"] + (1 << 20))
    try:
        with pytest.raises(OutOfMemory, match="can be used again"):
            ours.score(QUERY, large)
        assert ours.score(QUERY, small, media=MEDIA) == want
    finally:
        sim.set_memory(16 << 30)
    assert ours.core.features.encoded == 2  # out of memory forgets all features
    [score] = ours.score(QUERY, large)
    assert 0 < score < 1


@pytest.fixture(scope="module")
def widths(tmp_path_factory):
    """Dimensions near those of the 2B model, but for the number of layers."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tower = {"hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "depth": 2}
    tower |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 2304}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
    sizes = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 1}
    with patch.dict(checkpoints.VISION, tower):
        options = {"tied": True, "dtype": torch.bfloat16}
        write_random(folder, "qwen3-vl-reranker", **options, **heads, **sizes)
    return folder


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("dtype", SCORES)
def test_the_peak_with_pictures_is_within_the_formula(sim, widths, dtype, graph):
    gc.collect()
    torch.npu.empty_cache()
    before = sim.stats(0)["bytes_now"]
    sim.reset_peak()
    ours = engine(widths, dtype, graph, token_budget=576, vision_cache=0)
    documents = [{"image": noise(seed, 704, 704)} for seed in range(2)]  # 484 rows each
    ours.score(QUERY, documents)
    ours.score(QUERY, documents)  # a capture gives free memory back
    peak = sim.stats(0)["bytes_peak"] - before
    assert 3 / 4 * ours.device_memory() < peak < 1.05 * ours.device_memory()
    mallocs = sim.stats(0)["mallocs"]
    ours.score(QUERY, documents)
    assert sim.stats(0)["mallocs"] == mallocs
