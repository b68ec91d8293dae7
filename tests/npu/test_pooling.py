"""Pooling over all tokens of a prompt on an NPU, eagerly and in graphs, against the CPU."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from pyrerank import Embedder
from pyrerank.weights.find import DEMO

TEXTS = [
    "Beijing is the capital of China.",
    "Beijing is the capital of China, and Paris that of France.",
    "北京是中华人民共和国的首都。",
    "a",
    "def f(x):\n\treturn x ** 2  # code\n" * 4,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An embedder of texts that the files of sentence-transformers may stand beside."""
    folder = tmp_path_factory.mktemp("pooling")
    torch.manual_seed(0)
    sizes = {"vocab_size": 16026, "hidden_size": 64, "intermediate_size": 64, "head_dim": 64,
             "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 2}  # fmt: skip
    Qwen3ForCausalLM(Qwen3Config(**sizes, tie_word_embeddings=True)).save_pretrained(folder)
    shutil.copy(DEMO / "tokenizer.json", folder)
    (folder / "1_Pooling").mkdir()
    modules = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    entries = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (kind, path) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    return folder


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_vectors_are_those_of_the_cpu(device, folder, mode, graph):
    (folder / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode": mode}))
    want = Embedder(folder, device="cpu", dtype="float32").embed(TEXTS)
    engine = Embedder(folder, device=device, dtype="float32", graph=graph, token_budget=128)
    got = engine.embed(TEXTS)
    assert np.abs(got - want).max() <= 1e-5
    assert np.abs(want[0] - want[2]).max() > 1e-2
    assert (engine.core.graphs is not None and engine.core.graphs.replays > 0) == graph
