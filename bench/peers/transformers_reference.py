"""transformers, used as the published scripts do: it computes one prompt at a time, and multiplies
the last hidden state by the difference of the rows "yes" and "no", in the model's dtype."""

from typing import Any

import numpy as np
import PIL.Image
import torch
import transformers
from prompts import EMBEDDING_PARTS, IMAGE, NO, PARTS, YES, family
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

SIDE = 32  # pixels; a square of this side becomes one token
PAD = "<|image_pad|>"


class Engine:
    computed = None  # transformers computes every prompt whole, and does not count

    def __init__(self, model: str, device: str, dtype: str, task: str) -> None:
        self._family = family(model)
        kind = (
            "Qwen3VLForConditionalGeneration" if self._family == "qwen3_vl" else "Qwen3ForCausalLM"
        )
        whole = getattr(transformers, kind).from_pretrained(model, dtype=getattr(torch, dtype))
        head = whole.get_output_embeddings().weight.detach()
        self._w = (head[YES] - head[NO]).to(device)
        self._model = whole.model.to(device).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._pad = self._tokenizer.convert_tokens_to_ids(PAD)
        self._images = Qwen2VLImageProcessorPil(
            do_resize=False, patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3
        )
        self._device = device

    def score(self, query: Any, documents: list[Any]) -> list[float]:
        queries = query if isinstance(query, list) else [query] * len(documents)
        pairs = zip(queries, documents, strict=True)
        hidden = [self._last_hidden(PARTS[self._family], pair) for pair in pairs]
        return [torch.sigmoid(self._w @ each).item() for each in hidden]

    def embed(self, inputs: list[Any]) -> list[list[float]]:
        parts = EMBEDDING_PARTS[self._family]
        hidden = torch.stack([self._last_hidden(parts, [content]) for content in inputs])
        return torch.nn.functional.normalize(hidden.float(), dim=-1).tolist()

    @torch.inference_mode()
    def _last_hidden(self, parts: tuple[str, ...], contents: Any) -> torch.Tensor:
        text, images = parts[0], []
        for content, part in zip(contents, parts[1:], strict=True):
            if isinstance(content, str):
                text += content
            else:
                # its size is one that the published limits do not change
                images.append(np.asarray(PIL.Image.open(content["image"]).convert("RGB")))
                height, width, _ = images[-1].shape
                text += IMAGE.replace(PAD, PAD * (height // SIDE * (width // SIDE)))
            text += part
        ids = torch.tensor([self._tokenizer(text, add_special_tokens=False).input_ids])
        inputs = {"input_ids": ids}
        if images:
            inputs["mm_token_type_ids"] = (ids == self._pad).int()
            inputs |= self._images(images, return_tensors="pt", input_data_format="channels_last")
        inputs = {name: tensor.to(self._device) for name, tensor in inputs.items()}
        return self._model(**inputs, use_cache=False).last_hidden_state[0, -1]
