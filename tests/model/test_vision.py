"""The vision tower and what it needs, against transformers' Qwen3-VL on random weights."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import DECODER, VISION
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from pyrerank import CheckpointError
from pyrerank.devices.select import resolve
from pyrerank.engine.batch import positions
from pyrerank.model.decoder import interleaved_axes
from pyrerank.model.patches import patches
from pyrerank.model.vision import VisionTower
from pyrerank.weights.checkpoint import open_checkpoint
from pyrerank.weights.config import VisionConfig

pytestmark = pytest.mark.slow

CPU = resolve("cpu")
IMAGE, VIDEO, VOCABULARY = 100, 101, 128  # token ids
# t, h, w in patches: the smallest, odd multiples of 2, the table's own size, a strip, a video
GRIDS = [(1, 2, 2), (1, 6, 10), (1, 8, 8), (1, 2, 46), (3, 6, 4), (1, 26, 18), (2, 2, 2)]
# blocks of the published towers, fewer of them
REAL = {
    "2B": dict(hidden_size=1024, intermediate_size=4096, num_heads=16, num_position_embeddings=2304,
               depth=2, deepstack_visual_indexes=[0]),
    "8B": dict(hidden_size=1152, intermediate_size=4304, num_heads=16, num_position_embeddings=2304,
               depth=2, deepstack_visual_indexes=[1]),
}  # fmt: skip


def write(folder: Path, **vision: object) -> None:
    """A checkpoint in the published layout, of few tokens, with no norm of 1 and no bias of 0."""
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [6, 5, 5]}
    text = DECODER | {"vocab_size": VOCABULARY, "rope_parameters": rope}
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=VISION | vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    model = Qwen3VLForConditionalGeneration(config)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                tensor.uniform_(0.5, 1.5)
            else:
                size = 1 if tensor.ndim == 1 else tensor[0].numel()
                tensor.normal_(std=1 / math.sqrt(size) if tensor.ndim > 1 else 0.2)
    # Published weights are bfloat16: a difference to float32 is then the arithmetic's alone.
    model.to(torch.bfloat16).save_pretrained(folder)


def reference(folder: Path, dtype: torch.dtype = torch.float32) -> Qwen3VLModel:
    return Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval().model


@torch.no_grad()
def published(model: Qwen3VLModel, x: torch.Tensor, grids: list) -> torch.Tensor:
    out = model.visual(x.to(model.dtype), grid_thw=torch.tensor(grids))
    return torch.stack((out.pooler_output, *out.deepstack_features))


def random_patches(grids: list) -> torch.Tensor:
    return torch.rand(sum(map(math.prod, grids)), 1536) * 2 - 1


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("vision")
    write(folder)
    return folder


@pytest.fixture(scope="module")
def model(original) -> Qwen3VLModel:
    return reference(original)


@pytest.fixture(scope="module")
def tower(original) -> VisionTower:
    return VisionTower.load(open_checkpoint(original), CPU, torch.float32)


class TestTower:
    def test_equals_the_published_tower(self, model, tower):
        x = random_patches(GRIDS)
        got = tower(x, GRIDS)
        assert got.shape == (3, len(x) // 4, 96)
        # float32 sums of a few hundred terms, in another order
        torch.testing.assert_close(got, published(model, x, GRIDS), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("size", REAL)
    def test_equals_the_published_tower_at_published_widths(self, size, tmp_path):
        write(tmp_path, **REAL[size])
        grids = [(2, 4, 6), (1, 10, 8)]
        x = random_patches(grids)
        got = VisionTower.load(open_checkpoint(tmp_path), CPU, torch.float32)(x, grids)
        torch.testing.assert_close(got, published(reference(tmp_path), x, grids), atol=1e-5, rtol=0)

    def test_bfloat16_is_as_near_to_float32_as_the_published_tower(self, original, model):
        half = VisionTower.load(open_checkpoint(original), CPU, torch.bfloat16)
        x = random_patches(GRIDS).bfloat16().float()  # both round their input
        want = published(model, x, GRIDS)
        errors = []
        for out in (half(x, GRIDS), published(reference(original, torch.bfloat16), x, GRIDS)):
            assert out.dtype is torch.bfloat16
            errors.append((out.float() - want).abs())
        for ours, theirs in zip(*errors, strict=True):
            # features have a deviation of about 1, a step of bfloat16 there is 2 ** -7
            assert ours.max() < 5e-2
            assert ours.mean() < 1.1 * theirs.mean()

    @pytest.mark.parametrize("dtype, bound", [(torch.float32, 3e-6), (torch.bfloat16, 2**-5)])
    def test_a_picture_alone_and_among_others(self, original, dtype, bound):
        tower = VisionTower.load(open_checkpoint(original), CPU, dtype)
        x = random_patches(GRIDS)
        together = tower(x, GRIDS)
        start = 0
        for grid in GRIDS:
            rows = slice(start, start + math.prod(grid))
            out = slice(rows.start // 4, rows.stop // 4)
            alone = tower(x[rows], [grid])
            # Products of another height may add in another order; features reach 3 or so, where a
            # step of float32 is 2.4e-7 and one of bfloat16 2**-6.
            torch.testing.assert_close(alone, together[:, out], atol=bound, rtol=0)
            start = rows.stop

    def test_a_video_is_its_pairs_of_frames(self, tower):
        x = random_patches([(4, 6, 8)])
        whole, pairs = tower(x, [(4, 6, 8)]), tower(x, [(1, 6, 8)] * 4)
        torch.testing.assert_close(whole, pairs, atol=1e-6, rtol=0)

    def test_without_deepstack(self, tmp_path):
        write(tmp_path, deepstack_visual_indexes=[])
        tower = VisionTower.load(open_checkpoint(tmp_path), CPU, torch.float32)
        assert tower(random_patches([(1, 4, 4)]), [(1, 4, 4)]).shape == (1, 4, 96)

    def test_grids_that_do_not_fit(self, tower):
        with pytest.raises(AssertionError):
            tower(torch.zeros(15, 1536), [(1, 4, 4)])
        with pytest.raises(AssertionError):
            tower(torch.zeros(0, 1536), [])


class TestPatches:
    @pytest.mark.parametrize("height, width", [(32, 32), (64, 96), (128, 32), (288, 352)])
    def test_an_image_equals_the_published_processor(self, height, width):
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        processor = Qwen2VLImageProcessorPil(
            do_resize=False, patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3
        )
        want = processor(pixels, return_tensors="pt", input_data_format="channels_last")
        assert want.image_grid_thw.tolist() == [[1, height // 16, width // 16]]
        # it scales and shifts in two roundings, of numbers up to 1
        got = patches([pixels[None]], torch.float32)
        torch.testing.assert_close(got, want.pixel_values, atol=3e-7, rtol=0)

    @pytest.mark.parametrize("frames", [2, 6])
    def test_a_video_equals_the_published_processor(self, frames):
        pixels = np.random.default_rng(0).integers(0, 256, (frames, 64, 96, 3), np.uint8)
        # normalised as published: by 255 times the mean and the deviation
        video = (torch.tensor(pixels).permute(0, 3, 1, 2).float() - 127.5) / 127.5
        want, *grid = Qwen3VLVideoProcessor.patchify(None, video[None], 16, 2, 2)
        assert grid == [frames // 2, 4, 6]
        assert torch.equal(patches([pixels], torch.float32), want[0])

    def test_several_of_several_sizes_in_another_dtype(self):
        shapes = [(1, 64, 96, 3), (4, 32, 64, 3), (1, 32, 32, 3)]
        random = np.random.default_rng(0)
        pictures = [random.integers(0, 256, shape, np.uint8) for shape in shapes]
        each = [patches([pixels], torch.float32) for pixels in pictures]
        assert [len(rows) for rows in each] == [24, 16, 4]
        got = patches(pictures, torch.bfloat16)
        assert torch.equal(got, torch.cat(each).bfloat16())

    @pytest.mark.parametrize("frames", [1, 2])
    def test_a_view_that_is_read_only_and_not_contiguous(self, frames):
        pixels = np.random.default_rng(0).integers(0, 256, (frames, 70, 64, 3), np.uint8)
        view = pixels[:, 66:2:-1]
        view.flags.writeable = False
        got = patches([view], torch.float32)
        assert torch.equal(got, patches([view.copy()], torch.float32))

    @pytest.mark.parametrize(
        "shape, dtype",
        [
            ((3, 32, 32, 3), np.uint8),
            ((1, 48, 32, 3), np.uint8),
            ((1, 32, 33, 3), np.uint8),
            ((1, 32, 32, 4), np.uint8),
            ((1, 0, 32, 3), np.uint8),
            ((0, 32, 32, 3), np.uint8),
            ((1, 32, 32, 3), np.float32),
        ],
    )
    def test_refuses_what_media_never_makes(self, shape, dtype):
        with pytest.raises(AssertionError):
            patches([np.zeros(shape, dtype)], torch.float32)


# A part of a prompt: how many ordinary tokens precede it, whether it is a video, and its grid. Two
# pictures always have tokens between them, the markers of their end and start.
def part(video: bool, pairs: int) -> st.SearchStrategy:
    numbers = (st.integers(1, 9), st.just(video), st.integers(1, pairs))
    return st.tuples(*numbers, st.integers(1, 5), st.integers(1, 5))


parts = st.lists(part(False, 1) | part(True, 4), max_size=5)


class Layout:
    """A prompt of such parts: token types, grids for transformers, spans for pyrerank."""

    def __init__(self, parts: list, tail: int) -> None:
        self.kinds: list[int] = []
        self.grids: list[tuple[int, int, int]] = []
        self.grids_by_kind: dict[int, list[tuple[int, int, int]]] = {1: [], 2: []}
        self.spans: list[tuple[int, int, int]] = []
        for text, video, t, h, w in parts:
            kind = 2 if video else 1
            for _ in range(t):
                self.kinds += [0] * text
                self.spans.append((len(self.kinds), h, w))
                self.kinds += [kind] * (h * w)
            self.grids.append((t, 2 * h, 2 * w))
            self.grids_by_kind[kind].append(self.grids[-1])
        self.kinds += [0] * tail

    def thw(self, kind: int) -> torch.Tensor | None:
        return torch.tensor(self.grids_by_kind[kind]) if self.grids_by_kind[kind] else None

    def types(self) -> torch.Tensor:
        return torch.tensor([self.kinds], dtype=torch.int32)


class TestPositions:
    @given(parts=parts, tail=st.integers(1, 9))
    def test_equal_the_published_ones(self, model, parts, tail):
        prompt = Layout(parts, tail)
        length = len(prompt.kinds)
        want, _ = model.get_rope_index(
            torch.zeros(1, length, dtype=torch.long), prompt.types(), prompt.thw(1), prompt.thw(2)
        )
        got = positions(length, prompt.spans)
        assert got.dtype is torch.int32
        assert got.tolist() == want[:, 0].tolist()

    def test_written_out(self):
        # two words, an image of 2 x 3 rows, a word, an image of one row, a word
        assert positions(11, [(2, 2, 3), (9, 1, 1)]).tolist() == [
            [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7],
            [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7],
            [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7],
        ]

    def test_a_picture_first_and_last(self):
        assert positions(6, [(0, 1, 2), (2, 2, 2)]).tolist() == [
            [0, 0, 2, 2, 2, 2],
            [0, 0, 2, 2, 3, 3],
            [0, 1, 2, 3, 2, 3],
        ]

    @pytest.mark.parametrize("spans", [[(3, 2, 2)], [(1, 1, 3), (3, 1, 1)], [(-1, 1, 1)]])
    def test_spans_that_do_not_fit(self, spans):
        with pytest.raises(AssertionError):
            positions(6, spans)


class TestRotary:
    # of the tests' checkpoints and of the published ones
    @pytest.mark.parametrize("pairs, section", [(16, [6, 5, 5]), (64, [24, 20, 20])])
    def test_equals_the_published_angles(self, model, pairs, section):
        inv_freq = 1 / 5e6 ** (torch.arange(pairs) / pairs)
        rope = type(model.language_model.rotary_emb)(model.config.text_config)
        rope.inv_freq, rope.mrope_section = inv_freq, section
        place = torch.randint(0, 10000, (3, 77), dtype=torch.int32)
        cos, sin = rope(torch.zeros(1), place[:, None])
        angles = place.float()[interleaved_axes(section)].T * inv_freq
        angles = torch.cat((angles, angles), -1)
        assert torch.equal(angles.cos(), cos[0]) and torch.equal(angles.sin(), sin[0])


class TestLoading:
    @pytest.fixture
    def damaged(self, original, tmp_path) -> Path:
        """A copy that a test may damage."""
        for file in ("config.json", "model.safetensors"):
            (tmp_path / file).write_bytes((original / file).read_bytes())
        return tmp_path

    @staticmethod
    def load(folder: Path) -> VisionTower:
        return VisionTower.load(open_checkpoint(folder), CPU, torch.float32)

    @staticmethod
    def edit(folder: Path, **changes: object) -> None:
        """Replaces entries of vision_config, or drops those given as None."""
        file = folder / "config.json"
        config = json.loads(file.read_text())
        vision = config["vision_config"] | changes
        config["vision_config"] = {k: v for k, v in vision.items() if v is not None}
        file.write_text(json.dumps(config))

    def test_reads_the_published_fields(self, damaged):
        self.edit(damaged, rope_parameters=None)  # as in published files
        config = open_checkpoint(damaged).vision_config()
        assert config == VisionConfig(**VISION | {"deepstack_visual_indexes": (0, 2)})
        assert (config.head_dim, config.side) == (16, 8)

    @pytest.mark.parametrize("field", VisionConfig.__dataclass_fields__)
    def test_a_field_that_is_missing(self, damaged, field):
        self.edit(damaged, **{field: None})
        with pytest.raises(CheckpointError, match=f"{field} must be a .*, got None$"):
            self.load(damaged)

    @pytest.mark.parametrize(
        "field, value, message",
        [
            ("hidden_act", "silu", "hidden_act must be 'gelu_pytorch_tanh', got 'silu'"),
            ("hidden_act", None, "hidden_act must be 'gelu_pytorch_tanh', got None"),
            ("patch_size", 14, "patch_size must be 16, got 14"),
            ("temporal_patch_size", 1, "temporal_patch_size must be 2, got 1"),
            ("spatial_merge_size", 4, "spatial_merge_size must be 2, got 4"),
            ("in_channels", 1, "in_channels must be 3, got 1"),
            ("out_hidden_size", 64, "out_hidden_size must be 96, got 64"),
            ("rope_parameters", {"rope_type": "yarn"}, "rope_type must be 'axial', got 'yarn'"),
            ("rope_parameters", {"rope_theta": 500.0}, "rope_theta must be 10000.0, got 500.0"),
            ("num_heads", 3, "hidden_size must be num_heads times a multiple of 4"),
            ("num_position_embeddings", 63, "num_position_embeddings must be a square"),
            ("deepstack_visual_indexes", [2, 0], "must be rising numbers below depth"),
            ("deepstack_visual_indexes", [0, 0], "must be rising numbers below depth"),
            ("deepstack_visual_indexes", [0, 3], "must be rising numbers below depth"),
            ("deepstack_visual_indexes", ["0"], "must be rising numbers below depth"),
            ("deepstack_visual_indexes", 2, "must be a list"),
            ("num_heads", 0, "num_heads must be a positive whole number, got 0"),
            ("depth", "3", "depth must be a positive whole number, got '3'"),
        ],
    )
    def test_a_value_that_is_not_supported(self, damaged, field, value, message):
        self.edit(damaged, **{field: value})
        with pytest.raises(CheckpointError, match=message):
            self.load(damaged)

    def test_more_levels_than_decoder_layers(self, damaged):
        self.edit(damaged, depth=4, deepstack_visual_indexes=[0, 1, 2, 3])
        with pytest.raises(CheckpointError, match="no more than the decoder's layers"):
            self.load(damaged)

    @pytest.mark.parametrize(
        "preprocessor, message",
        [
            ({"image_mean": [0.5, 0.5, 0.5], "size": {"longest_edge": 1}}, None),
            ({"image_mean": [0.48, 0.46, 0.41]}, r"image_mean must be .*, got \[0\.48"),
            ({"image_std": [1.0] * 3, "patch_size": 14}, r"image_std .*; patch_size must be 16"),
        ],
    )
    def test_pixels_that_are_prepared_in_another_way(self, damaged, preprocessor, message):
        (damaged / "preprocessor_config.json").write_text(json.dumps(preprocessor))
        if message is None:
            self.load(damaged)
            return
        with pytest.raises(CheckpointError, match=message):
            self.load(damaged)

    def test_no_vision_config(self, damaged):
        file = damaged / "config.json"
        config = json.loads(file.read_text())
        del config["vision_config"]
        file.write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=r"config\.json has no vision_config"):
            self.load(damaged)

    @pytest.mark.parametrize(
        "name, shape, message",
        [
            ("merger.norm.weight", None, r"missing model\.visual\.merger\.norm\.weight"),
            ("extra.weight", (2,), r"unexpected model\.visual\.extra\.weight"),
            ("pos_embed.weight", (81, 64), r"pos_embed\.weight is \(81, 64\), not \(64, 64\)"),
            ("patch_embed.proj.weight", (64, 1536), r"not \(64, 3, 2, 16, 16\)"),
        ],
    )
    def test_a_tensor_that_does_not_fit(self, damaged, name, shape, message):
        tensors = load_file(damaged / "model.safetensors")
        tensors.pop(f"model.visual.{name}", None)
        if shape is not None:
            tensors[f"model.visual.{name}"] = torch.zeros(shape)
        save_file(tensors, damaged / "model.safetensors", {"format": "pt"})
        with pytest.raises(CheckpointError, match=message):
            self.load(damaged)

    def test_more_blocks_than_stored_names_a_few(self, damaged):
        self.edit(damaged, depth=5)
        with pytest.raises(CheckpointError, match=r"missing .*blocks\.3.* \(and 16 more\)"):
            self.load(damaged)
