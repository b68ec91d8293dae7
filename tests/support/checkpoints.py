"""Small checkpoints with random weights, written by transformers in the published layout.

The vocabulary and the architecture are real, and the dimensions are small.  No norm weight is 1 and
no bias is 0, so a part that is left out or in the wrong place changes the score.
"""

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import qwen_vocab
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

YES, NO = 9693, 2152
DECODER: dict[str, Any] = dict(
    vocab_size=151936, hidden_size=96, intermediate_size=160, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, head_dim=32, rms_norm_eps=1e-6,
    max_position_embeddings=40960,
)  # fmt: skip
VISION: dict[str, Any] = dict(
    depth=3, hidden_size=64, intermediate_size=96, num_heads=4, out_hidden_size=96,
    deepstack_visual_indexes=[0, 2], num_position_embeddings=64,
)  # fmt: skip

# Every query with every document; unlike enough for their scores to foretell those of other texts.
QUERIES = ["a", "What is the capital of China?", "蒸汽机的热源是什么？", "Who met Tesla?"]
DOCUMENTS = [
    "",
    "Beijing is the capital of China.",
    "北京是中国的首都，也是全国的政治和文化中心。",
    "def add(a, b):\n    return a + b",
    "The match was abandoned after forty minutes, because the pitch was under water.",
    "The sea rises and falls twice a day as the Earth turns under the pull of the Moon. " * 5,
]
PROMPT = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: Given a web search query, retrieve relevant passages that answer"
    " the query\n<Query>: {}\n<Document>: {}<|im_end|>\n<|im_start|>assistant\n"
)


def write_random(
    folder: Path,
    family: str,
    *,
    tied: bool,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    shards: int = 1,
    **shape: int,
) -> None:
    """Writes a checkpoint whose scores spread over about 0.05 to 0.95.

    Args:
        folder: where; made if it is not there.
        family: "qwen3-reranker", "qwen3-vl-reranker" or "qwen3-sequence-classification".
        tied: whether the embedding is the output matrix; of no effect on a classifier.
        dtype: of the stored weights.
        seed: of the weights.
        shards: number of files that hold them.
        shape: sizes of the decoder other than those of ``DECODER``.
    """
    torch.manual_seed(seed)
    model = _build(family, tied, DECODER | shape)
    _randomise(model)
    qwen_vocab.write(folder)
    _spread_scores(model, family, Tokenizer.from_file(str(folder / "tokenizer.json")))
    # Published weights are bfloat16: a difference to float32 is then the arithmetic's alone.
    model.to(torch.bfloat16).to(dtype).save_pretrained(folder)
    _publish_config(folder / "config.json")
    if family == "qwen3-vl-reranker":
        _write_preprocessors(folder)
    if shards > 1:
        _split(folder, shards)


def write_classifier(reranker: Path, folder: Path) -> None:
    """Writes a one-label classifier out of an untied VL reranker, as converters of these models
    do."""
    shutil.copytree(reranker, folder, dirs_exist_ok=True)
    tensors = load_file(folder / "model.safetensors")
    head = tensors.pop("lm_head.weight").float()
    tensors["score.weight"] = head[YES : YES + 1] - head[NO : NO + 1]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["architectures"] = ["Qwen3VLForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


def strip_prefix(folder: Path) -> None:
    """Renames a text checkpoint's tensors as Qwen3-Embedding is published: without "model."."""
    tensors = load_file(folder / "model.safetensors")
    tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _build(family: str, tied: bool, decoder: dict[str, Any]) -> Any:
    ids: dict[str, Any] = {"bos_token_id": 151643, "eos_token_id": 151645}
    if family == "qwen3-vl-reranker":
        half = decoder["head_dim"] // 2
        plane = half * 5 // 16  # published: 24, 20 and 20 of 64
        rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_interleaved": True,
                "mrope_section": [half - 2 * plane, plane, plane]}  # fmt: skip
        text = decoder | ids | {"rope_parameters": rope, "tie_word_embeddings": tied}
        vision = VISION | {"out_hidden_size": decoder["hidden_size"]}
        return Qwen3VLForConditionalGeneration(
            Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)
        )
    text = decoder | ids | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    if family == "qwen3-reranker":
        return Qwen3ForCausalLM(Qwen3Config(**text, tie_word_embeddings=tied))
    if family == "qwen3-sequence-classification":
        text |= {"num_labels": 1, "pad_token_id": 151643}
        return Qwen3ForSequenceClassification(Qwen3Config(**text))
    raise ValueError(f"no family {family!r}")


@torch.no_grad()
def _randomise(model: Any) -> None:
    for name, tensor in model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            tensor.normal_(1.5, 0.2)  # attention sharp enough to tell one text from another
        elif tensor.dim() == 1:
            tensor.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
        elif name.endswith(("embed_tokens.weight", "pos_embed.weight")):
            tensor.normal_()
        else:
            tensor.normal_(std=1 / math.sqrt(tensor[0].numel()))


@torch.no_grad()
def _spread_scores(model: Any, family: str, tokenizer: Tokenizer) -> None:
    """Sets the final norm's weight g so that logits have mean 0 and standard deviation 1.2.

    A logit is (normed * g) . w. Weights g = 1 - c * mean(normed) * w bring the mean to 0 without a
    change of w, which belongs to the embedding where the two are tied.
    """
    vision = family == "qwen3-vl-reranker"
    norm = (model.model.language_model if vision else model.model).norm
    seen: list[torch.Tensor] = []
    hook = norm.register_forward_hook(lambda _, __, output: seen.append(output[0, -1]))
    for query, document in itertools.product(QUERIES, DOCUMENTS):
        text = PROMPT.format(query, document) + ("" if vision else "<think>\n\n</think>\n\n")
        model.eval().base_model(torch.tensor([tokenizer.encode(text).ids]))
    hook.remove()
    if family == "qwen3-sequence-classification":
        w = model.score.weight[0]
    else:
        head = model.get_output_embeddings().weight
        w = head[YES] - head[NO]
    terms = torch.stack(seen) / norm.weight * w
    mean = terms.mean(0)
    g = 1 - mean * mean.sum() / mean.square().sum()
    norm.weight.copy_(g * 1.2 / (terms @ g).std())


def _publish_config(file: Path) -> None:
    """Spells rotary settings and dtype as published files do; transformers 5 has its own way."""
    config = json.loads(file.read_text("utf-8"))
    config["torch_dtype"] = config.pop("dtype")
    for part in (config, config.get("text_config", {})):
        if rope := part.pop("rope_parameters", None):
            part["rope_theta"] = rope.pop("rope_theta")
            part["rope_scaling"] = rope if "mrope_section" in rope else None
        part.pop("dtype", None)
    config.get("vision_config", {}).pop("rope_parameters", None)  # no setting in published files
    file.write_text(json.dumps(config, indent=2), "utf-8")


def _write_preprocessors(folder: Path) -> None:
    common = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2,
              "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
              "processor_class": "Qwen3VLProcessor"}  # fmt: skip
    image = common | {"size": {"longest_edge": 16777216, "shortest_edge": 65536},
                      "image_processor_type": "Qwen2VLImageProcessorFast"}  # fmt: skip
    video = common | {"size": {"longest_edge": 25165824, "shortest_edge": 4096},
                      "video_processor_type": "Qwen3VLVideoProcessor"}  # fmt: skip
    for name, settings in [("", image), ("video_", video)]:
        (folder / f"{name}preprocessor_config.json").write_text(json.dumps(settings, indent=2))


def _split(folder: Path, shards: int) -> None:
    """Deals the tensors out over several files, with an index: no layer lies in one file."""
    whole = folder / "model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    weight_map: dict[str, str] = {}
    for number in range(shards):
        part = {name: tensors[name] for name in sorted(tensors)[number::shards]}
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
