"""A tiny random Llama and its Model-SAT, for tests that need no trained weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig as HfConfig
from transformers import LlamaForCausalLM

from training.model.model import ModelSat, build
from training.weights.base import Base

WIDTH, VOCABULARY = 64, 97


def tokenizer() -> Tokenizer:
    """Return a tokenizer of the words Yes and No; every other word is unknown."""
    built = Tokenizer(models.WordLevel({"Yes": 1, "No": 2, "?": 0}, unk_token="?"))
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    return built


def base(seed: int = 0, layers: int = 3) -> Base:
    """Return random weights: 4 query heads, 2 key/value heads, width 64."""
    torch.manual_seed(seed)
    config: dict[str, Any] = {
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": WIDTH,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,
    }
    model = LlamaForCausalLM(HfConfig(**config))
    arrays = {
        name: tensor.numpy().astype(np.float32)
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"
    }
    return Base(config, arrays, tokenizer())


def model_sat(of: Base, width_in: int = 5) -> ModelSat:
    """Return a ModelSat with a random connector."""
    return ModelSat(build(of, causal=True), torch.nn.Linear(width_in, WIDTH), of.tokenizer)


def prompts(lengths: list[int], seed: int = 0) -> list[NDArray[np.int64]]:
    """Draw random prompts of these lengths."""
    random = np.random.default_rng(seed)
    return [random.integers(0, VOCABULARY, n) for n in lengths]


def padded(tokens: list[NDArray[np.int64]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad prompts for the torch model: tokens (B, L) and lengths (B,)."""
    lengths = torch.tensor([len(t) for t in tokens])
    rows = torch.zeros(len(tokens), int(lengths.max()), dtype=torch.long)
    for i, row in enumerate(tokens):
        rows[i, : len(row)] = torch.from_numpy(row)
    return rows, lengths
