"""The published prompts, in the form that the peers take."""

import json
from pathlib import Path
from typing import Any

_HEAD = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: "
)
_TAIL = "<|im_end|>\n<|im_start|>assistant\n"
_EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
YES, NO = 9693, 2152  # ids of the tokens "yes" and "no"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"

# the text before the query, before the document, and after the document
PARTS = {
    "qwen3": (
        f"{_HEAD}Given a web search query, retrieve relevant passages that answer the query"
        "\n<Query>: ",
        "\n<Document>: ",
        _TAIL + _EMPTY_THOUGHT,
    ),
    "qwen3_vl": (
        f"{_HEAD}Given a search query, retrieve relevant candidates that answer the query.<Query>:",
        "\n<Document>:",
        _TAIL,
    ),
}
# what stands before and after what is embedded
EMBEDDING_PARTS = {
    "qwen3": ("", "<|endoftext|>"),
    "qwen3_vl": (
        "<|im_start|>system\nRepresent the user's input.<|im_end|>\n<|im_start|>user\n",
        _TAIL,
    ),
}
# vLLM's, to make the classifier of the two tokens' rows
OVERRIDES = {
    family: {
        "architectures": [architecture],
        "classifier_from_token": ["no", "yes"],
        "is_original_qwen3_reranker": True,
    }
    for family, architecture in (
        ("qwen3", "Qwen3ForSequenceClassification"),
        ("qwen3_vl", "Qwen3VLForSequenceClassification"),
    )
}


def family(model: str) -> str:
    """ "qwen3" or "qwen3_vl"."""
    config: dict[str, Any] = json.loads((Path(model) / "config.json").read_text("utf-8"))
    return str(config["model_type"])


def chat_template(family: str) -> str:
    """Jinja over messages of the roles query and document, whose content is a text, or parts."""
    before, between, after = map(json.dumps, PARTS[family])
    return (
        "{%- macro show(content) %}{% if content is string %}{{ content }}{% else %}"
        "{% for part in content %}{% if part.type == 'text' %}{{ part.text }}{% else %}"
        f"{IMAGE}{{% endif %}}{{% endfor %}}{{% endif %}}{{% endmacro -%}}"
        f"{{{{ {before} }}}}{_of('query')}{{{{ {between} }}}}{_of('document')}{{{{ {after} }}}}"
    )


def _of(role: str) -> str:
    return f"{{{{ show((messages | selectattr('role', 'eq', '{role}') | first).content) }}}}"
