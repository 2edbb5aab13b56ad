"""What training computes in its own way is what the library would have computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Phi3Config, Phi3ForCausalLM

from engine.api.errors import BundleError
from tests.support import tiny_llama
from training.config import TrainingConfig
from training.model.lora import TARGETS, adapt, truncate_to_rank
from training.model.model import build, candidate_last
from training.weights.base import Base
from training.weights.phi3 import phi3_as_llama

PLAN = TrainingConfig(data=(), output_dir="", tuning="lora", lora_rank=4)


def test_last_layer_equals_the_whole_model_at_candidate_positions() -> None:
    model = tiny_llama.model_sat(tiny_llama.base()).eval()
    tokens, lengths = tiny_llama.padded(tiny_llama.prompts([9, 5]))
    c = torch.randn(3, 5)
    with torch.no_grad():
        found = model(tokens, lengths, c)
        prefix = model.backbone.get_input_embeddings()(tokens)
        inputs, mask, positions = candidate_last(prefix, lengths, model.connector(c))
        hidden = model.backbone.model(
            inputs_embeds=inputs, attention_mask=mask, position_ids=positions, use_cache=False
        ).last_hidden_state[:, -3:]
    head = model.backbone.get_output_embeddings().weight
    expected = hidden @ (head[model.yes_id] - head[model.no_id])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
def test_fused_adapter_equals_peft() -> None:
    """Values and gradients."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, init_lora_weights=False)
    theirs = get_peft_model(build(tiny_llama.base(), causal=True), config)
    ours = adapt(build(tiny_llama.base(), causal=True), PLAN)
    ours.load_state_dict(theirs.state_dict())
    tokens = torch.randint(0, tiny_llama.VOCABULARY, (2, 7))
    found, expected = ours(tokens).logits, theirs(tokens).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    found.square().mean().backward()
    expected.square().mean().backward()
    gradients = {n: p.grad for n, p in theirs.named_parameters() if p.requires_grad}
    assert gradients
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-6, rtol=1e-3)


def test_low_rank_change_survives_truncation() -> None:
    base = tiny_llama.base()
    model = adapt(build(base, causal=True), TrainingConfig(data=(), output_dir="", tuning="full"))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == len(TARGETS) * 3
    random = np.random.default_rng(0)
    changed = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in trained:
                rows, columns = parameter.shape
                change = random.normal(0, 0.1, (rows, 2)) @ random.normal(0, 0.1, (2, columns))
                parameter += torch.from_numpy(change).float()
                changed[name] = parameter.clone()
    factors = truncate_to_rank(model, base.arrays, rank=2)
    assert len(factors) == 2 * len(trained)
    for name, parameter in model.named_parameters():
        if name in trained:
            torch.testing.assert_close(parameter, changed[name], atol=2e-3, rtol=1e-2)
    truncate_to_rank(model, base.arrays, rank=1)
    lost = sum(
        (p - changed[n]).abs().max().item() for n, p in model.named_parameters() if n in changed
    )
    assert lost > 0.1


def test_phi3_equals_llama_after_renaming() -> None:
    torch.manual_seed(0)
    config = Phi3Config(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=tiny_llama.VOCABULARY,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
        initializer_range=0.3,
    )
    phi = Phi3ForCausalLM(config).eval()
    arrays = {name: tensor.numpy() for name, tensor in phi.state_dict().items()}
    llama = build(
        Base(*phi3_as_llama(config.to_dict(), arrays), tiny_llama.tokenizer()), causal=True
    )
    tokens = torch.randint(0, tiny_llama.VOCABULARY, (2, 11))
    with torch.no_grad():
        torch.testing.assert_close(llama(tokens).logits, phi(tokens).logits)
    scaled = config.to_dict() | {"rope_scaling": {"type": "longrope"}}
    with pytest.raises(BundleError, match="4k-context"):
        phi3_as_llama(scaled, arrays)
