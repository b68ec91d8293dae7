"""vLLM, used as a pooling runner in this process.

On a CPU its default cache block is 128 tokens, so that shorter prefixes in common are never found:
``block_size=32`` is the setting that did best.
"""

import os
from typing import Any

from prompts import OVERRIDES, chat_template, family

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")  # GiB
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # so memory is this process's
threads = int(os.environ["OMP_NUM_THREADS"])
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{threads - 1}")

from vllm import LLM  # noqa: E402  # reads the settings above


class Engine:
    computed = None

    def __init__(self, model: str, device: str, dtype: str, task: str, **options: Any) -> None:
        kind = family(model)
        if kind == "qwen3_vl":
            # 4 to 1,800 tokens are the published limits; vLLM would profile images of 16,384
            options["mm_processor_kwargs"] = {
                "size": {"shortest_edge": 4 * 32**2, "longest_edge": 1800 * 32**2}
            }
        self._template = chat_template(kind)
        self._llm = LLM(
            model,
            runner="pooling",
            dtype=dtype,
            max_model_len=4096,
            allowed_local_media_path="/",
            hf_overrides=OVERRIDES[kind],
            **options,
        )

    def score(self, query: Any, documents: list[Any]) -> list[float]:
        first = [_content(each) for each in query] if isinstance(query, list) else _content(query)
        second = [_content(document) for document in documents]
        outputs = self._llm.score(first, second, chat_template=self._template, use_tqdm=False)
        return [output.outputs.score for output in outputs]


def _content(content: Any) -> Any:
    if isinstance(content, str):
        return content
    url = {"url": "file://" + content["image"]}
    return {"content": [{"type": "image_url", "image_url": url}]}
