"""Does what the published scripts do, written once more and independently of pyrerank.

Prompts are literal strings, tokenised whole by transformers; pictures are resized by the published
package (`published_media`) and cut up by transformers; scores come from the full vocabulary's
logits, embeddings from the last hidden state.  Sources: the model cards of Qwen3-Reranker,
Qwen3-Embedding and Qwen3-VL-Reranker, the scripts beside them and in
github.com/QwenLM/Qwen3-VL-Embedding.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from published_media import SIDE, Clip, resized
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
    Qwen3Model,
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

TEXT_PROMPT = """<|im_start|>system
Judge whether the Document meets the requirements based on the Query and the Instruct provided. \
Note that the answer can only be "yes" or "no".<|im_end|>
<|im_start|>user
<Instruct>: {instruction}
<Query>: {query}
<Document>: {document}<|im_end|>
<|im_start|>assistant
<think>

</think>

"""
TEXT_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"

VL_PROMPT = """<|im_start|>system
Judge whether the Document meets the requirements based on the Query and the Instruct provided. \
Note that the answer can only be "yes" or "no".<|im_end|>
<|im_start|>user
<Instruct>: {instruction}<Query>:{query}
<Document>:{document}<|im_end|>
<|im_start|>assistant
"""
VL_INSTRUCTION = "Given a search query, retrieve relevant candidates that answer the query."

PROMPTS = {"qwen3": (TEXT_PROMPT, TEXT_INSTRUCTION), "qwen3-vl": (VL_PROMPT, VL_INSTRUCTION)}

VL_EMBEDDING_PROMPT = """<|im_start|>system
{instruction}<|im_end|>
<|im_start|>user
{content}<|im_end|>
<|im_start|>assistant
"""
VL_EMBEDDING_INSTRUCTION = "Represent the user's input."

# Most tokens before the last few, and how many these are.  The VL reranker's script puts the last
# five back after it has cut, the text reranker's cuts between head and tail to 8,192 in all.
LIMITS = {
    "qwen3": (8192 - 9, 9),
    "qwen3-vl": (10240, 5),
    "qwen3-embedding": (8192 - 1, 1),
    "qwen3-vl-embedding": (8192 - 5, 5),
}

IMAGE_PAD, VIDEO_PAD = 151655, 151656

Part = str | PIL.Image.Image | Clip
Content = str | Sequence[Part]  # a str is the text by itself; parts: videos, images, texts


@dataclass(frozen=True)
class Wording:
    """The text of a content, and the resized pictures that it speaks of, in its order."""

    text: str = ""
    images: list[np.ndarray] = field(default_factory=list)
    videos: list[np.ndarray] = field(default_factory=list)

    @classmethod
    def of(cls, content: Content) -> "Wording":
        if not content and not isinstance(content, str):
            return cls("NULL")
        words, images, videos = [], [], []
        for part in [content] if isinstance(content, str) else content:
            if isinstance(part, str):
                words.append(part)
            elif isinstance(part, Clip):
                videos.append(part.frames)
                for second in part.seconds:
                    words.append(f"<{second:.1f} seconds>{_pads('video', part.frames[0])}")
            else:
                images.append(resized(part))
                words.append(_pads("image", images[-1]))
        return cls("".join(words), images, videos)


def _pads(kind: str, pixels: np.ndarray) -> str:
    height, width, _ = pixels.shape
    pads = f"<|{kind}_pad|>" * (height // SIDE * (width // SIDE))
    return f"<|vision_start|>{pads}<|vision_end|>"


@dataclass(frozen=True)
class Prompt:
    """Token ids of a whole prompt, and its pictures, all images, all videos."""

    ids: list[int]
    images: list[np.ndarray]
    videos: list[np.ndarray]

    def inputs(self) -> dict[str, Any]:
        """What transformers' models are called with."""
        ids = torch.tensor([self.ids])
        inputs = {"input_ids": ids}
        if self.images or self.videos:
            inputs["mm_token_type_ids"] = _kinds(ids)
        if self.images:
            processor = Qwen2VLImageProcessorPil(
                do_resize=False, patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3
            )
            inputs |= processor(self.images, return_tensors="pt", input_data_format="channels_last")
        if self.videos:
            patches, grids = zip(*map(_video_patches, self.videos), strict=True)
            inputs["pixel_values_videos"] = torch.cat(patches)
            inputs["video_grid_thw"] = torch.tensor(grids)
        return inputs

    def positions(self, model: Any) -> list[list[int]]:
        """Time, height and width of every token."""
        ids = torch.tensor([self.ids])
        images = [(1, *image.shape[:2]) for image in self.images]
        videos = [(len(video) // 2, *video.shape[1:3]) for video in self.videos]
        grids = [
            torch.tensor([(t, h // 16, w // 16) for t, h, w in sizes]) if sizes else None
            for sizes in (images, videos)
        ]
        return model.base_model.get_rope_index(ids, _kinds(ids), *grids)[0][:, 0].tolist()

    def spans(self) -> list[tuple[int, int, int]]:
        """Start, height and width in tokens of every run of vision tokens."""
        sizes = {
            IMAGE_PAD: iter([image.shape[:2] for image in self.images]),
            VIDEO_PAD: iter([frame.shape[:2] for v in self.videos for frame in v[::2]]),
        }
        spans, start = [], 0
        for id, run in itertools.groupby(self.ids):
            length = len(list(run))
            if id in sizes:
                height, width = next(sizes[id])
                spans.append((start, height // SIDE, width // SIDE))
                assert spans[-1][1] * spans[-1][2] == length
            start += length
        assert all(next(left, None) is None for left in sizes.values())
        return spans


def _kinds(ids: torch.Tensor) -> torch.Tensor:
    return (ids == IMAGE_PAD).int() + 2 * (ids == VIDEO_PAD).int()


def _video_patches(frames: np.ndarray) -> tuple[torch.Tensor, list[int]]:
    # normalised as published: by 255 times the mean and the deviation
    video = (torch.from_numpy(frames).permute(0, 3, 1, 2).float() - 127.5) / 127.5
    patches, *grid = Qwen3VLVideoProcessor.patchify(None, video[None], 16, 2, 2)
    return patches[0], grid


def prompt(family: str, query: str, document: str, instruction: str | None = None) -> str:
    """The published prompt of a pair, whole."""
    text, default = PROMPTS[family]
    return text.format(
        instruction=default if instruction is None else instruction,
        query=query,
        document=document,
    )


def embedding_prompt(family: str, content: str, instruction: str | None = None) -> str:
    """The published prompt of an embedder's input, whole."""
    if family == "qwen3":
        before = "" if instruction is None else f"Instruct: {instruction}\nQuery:"
        return f"{before}{content}<|endoftext|>"
    return VL_EMBEDDING_PROMPT.format(
        instruction=VL_EMBEDDING_INSTRUCTION if instruction is None else instruction,
        content=content,
    )


def truncate(kind: str, ids: list[int], special: set[int]) -> list[int]:
    """Cuts a prompt as the published scripts do: all special tokens stay, and so do the last few;
    of the others the first ones stay that fit."""
    limit, tail = LIMITS[kind]
    ids, end = ids[:-tail], ids[-tail:]
    room = limit - sum(id in special for id in ids)
    kept = []
    for id in ids:
        if id in special:
            kept.append(id)
        elif room > 0:
            kept.append(id)
            room -= 1
    return kept + end


def _family(path: Path) -> str:
    return "qwen3-vl" if "VL" in _architecture(path) else "qwen3"


def _architecture(path: Path) -> str:
    return json.loads((path / "config.json").read_text())["architectures"][0]


class Published:
    """transformers' own model of a reranker's checkpoint, float32, one pair at a time."""

    def __init__(self, path: Path) -> None:
        kind = {
            "Qwen3ForCausalLM": Qwen3ForCausalLM,
            "Qwen3VLForConditionalGeneration": Qwen3VLForConditionalGeneration,
            "Qwen3ForSequenceClassification": Qwen3ForSequenceClassification,
            "Qwen3VLForSequenceClassification": Qwen3VLModel,  # transformers has none with a head
        }[_architecture(path)]
        self.family = _family(path)
        self.model = kind.from_pretrained(path, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self._path = path

    def prompt(self, query: Content, document: Content, instruction: str | None = None) -> Prompt:
        q, d = Wording.of(query), Wording.of(document)
        text = prompt(self.family, q.text, d.text, instruction)
        ids = _encode(self.tokenizer, self.family, text)
        return Prompt(ids, q.images + d.images, q.videos + d.videos)

    @torch.no_grad()
    def score(self, query: Content, document: Content, instruction: str | None = None) -> float:
        """P(yes) against P(no) of the full vocabulary at the last token, or the classifier's."""
        inputs = self.prompt(query, document, instruction).inputs()
        if isinstance(self.model, Qwen3ForSequenceClassification):
            return self.model(**inputs).logits[0, 0].sigmoid().item()
        if isinstance(self.model, Qwen3VLModel):
            w = load_file(self._path / "model.safetensors")["score.weight"].float()
            return (w @ self.model(**inputs).last_hidden_state[0, -1]).sigmoid().item()
        logits = self.model(**inputs, logits_to_keep=1).logits[0, -1]
        yes, no = self.tokenizer.convert_tokens_to_ids(["yes", "no"])
        probabilities = torch.log_softmax(logits, -1)
        return torch.softmax(probabilities[[no, yes]], 0)[1].item()


class PublishedEmbedder:
    """transformers' own model of an embedder's checkpoint, float32, one input at a time."""

    def __init__(self, path: Path) -> None:
        self.family = _family(path)
        kind = Qwen3VLModel if self.family == "qwen3-vl" else Qwen3Model
        self.model = kind.from_pretrained(path, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)

    def prompt(self, content: Content, instruction: str | None = None) -> Prompt:
        wording = Wording.of(content)
        text = embedding_prompt(self.family, wording.text, instruction)
        ids = _encode(self.tokenizer, f"{self.family}-embedding", text)
        return Prompt(ids, wording.images, wording.videos)

    @torch.no_grad()
    def hidden(self, content: Content, instruction: str | None = None) -> np.ndarray:
        """The last token's hidden state after the final norm, float64 [hidden_size]."""
        inputs = self.prompt(content, instruction).inputs()
        return self.model(**inputs).last_hidden_state[0, -1].double().numpy()


def _encode(tokenizer: Any, kind: str, text: str) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return truncate(kind, ids, set(tokenizer.all_special_ids))
