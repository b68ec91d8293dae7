"""What the published scripts do, written out once more, independently of pyrerank.

Prompts are literal strings, tokenised whole by transformers; scores come from the full vocabulary's
logits.  Sources: the model cards of Qwen3-Reranker and Qwen3-VL-Reranker and the scripts beside
them.
"""

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
    Qwen3VLForConditionalGeneration,
)

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


def prompt(family: str, query: str, document: str, instruction: str | None = None) -> str:
    """The published prompt of a pair, whole."""
    text, default = PROMPTS[family]
    for name, value in (
        ("instruction", default if instruction is None else instruction),
        ("query", query),
        ("document", document),
    ):
        text = text.replace("{" + name + "}", value, 1)
    return text


def truncate(family: str, ids: list[int], special: set[int]) -> list[int]:
    """Cuts a prompt as published: the VL script keeps all special tokens and the first others that
    fit 10,240, and puts the last five tokens back; the text script cuts the middle to 8,192 in
    all (head 37 tokens, tail 9)."""
    if family == "qwen3":
        tail = ids[-9:]
        return ids if len(ids) <= 8192 else ids[: 8192 - 9] + tail
    ids, tail = ids[:-5], ids[-5:]
    room = 10240 - sum(id in special for id in ids)
    kept = []
    for id in ids:
        if id in special:
            kept.append(id)
        elif room > 0:
            kept.append(id)
            room -= 1
    return kept + tail


class Published:
    """transformers' own model of a checkpoint, float32, one pair at a time."""

    def __init__(self, path: Path) -> None:
        config = AutoConfig.from_pretrained(path)
        self.family = "qwen3-vl" if config.model_type == "qwen3_vl" else "qwen3"
        classes = {
            "Qwen3ForCausalLM": Qwen3ForCausalLM,
            "Qwen3VLForConditionalGeneration": Qwen3VLForConditionalGeneration,
            "Qwen3ForSequenceClassification": Qwen3ForSequenceClassification,
        }
        self.model = classes[config.architectures[0]].from_pretrained(path, dtype=torch.float32)
        self.model.eval()
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)

    def ids(self, query: str, document: str, instruction: str | None = None) -> list[int]:
        text = prompt(self.family, query, document, instruction)
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return truncate(self.family, ids, set(self.tokenizer.all_special_ids))

    @torch.no_grad()
    def score(self, query: str, document: str, instruction: str | None = None) -> float:
        """P(yes) against P(no) of the full vocabulary at the last token, or the classifier's."""
        ids = torch.tensor([self.ids(query, document, instruction)])
        if isinstance(self.model, Qwen3ForSequenceClassification):
            return self.model(ids).logits[0, 0].sigmoid().item()
        logits = self.model(ids, logits_to_keep=1).logits[0, -1]
        yes, no = self.tokenizer.convert_tokens_to_ids(["yes", "no"])
        probabilities = torch.log_softmax(logits, -1)
        return torch.softmax(probabilities[[no, yes]], 0)[1].item()
