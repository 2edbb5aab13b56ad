"""Model-SAT in torch: capability encoder, connector and backbone.

One sequence holds the prompt and every candidate: [p, x, e_c1 .. e_cM]. The prompt is read once.
Each candidate is one more token at the position after the prompt; it sees the prompt and itself,
never another candidate. That is L + M positions for M candidates. The paper's layout, a sequence
for each candidate, is in research/paper_method.py.

Shapes: B instructions, L prompt tokens, M candidates, D backbone width, E encoder width,
C representation width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import rotate_half

from engine.api.errors import BundleError
from engine.bundle.prompt import NO, YES
from training.weights.base import Base, single_token


def build(base: Base, *, causal: bool) -> Any:
    """Build a transformers model with the arrays of `base`: a causal LM, or a plain encoder.

    Raises:
        BundleError: arrays are missing or unknown.
    """
    settings = dict(base.config)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    model = (AutoModelForCausalLM if causal else AutoModel).from_config(
        config, attn_implementation="sdpa"
    )
    state = {name: torch.from_numpy(array) for name, array in base.arrays.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    # Tied heads, BERT's unused pooler and constant position ids may be absent; nothing else.
    missing = [
        m for m in missing if not m.startswith(("lm_head", "pooler")) and "position_ids" not in m
    ]
    unexpected = [u for u in unexpected if not u.startswith("pooler") and "position_ids" not in u]
    if missing or unexpected:
        raise BundleError(
            f"the base weights lack {missing[:3]} and have unknown arrays {unexpected[:3]}."
        )
    if causal:
        model.tie_weights()
    return model.eval()


class TextEncoder:
    """Embed texts, mean-pooled and normalized, as the exported encoder does."""

    def __init__(self, base: Base) -> None:
        self.model = build(base, causal=False)
        self.tokenizer = base.tokenizer
        self.tokenizer.no_truncation()
        self.tokenizer.enable_padding()
        self.limit = int(base.config["max_position_embeddings"])

    def count(self, text: str) -> int:
        """Count the tokens of `text`, special ones included."""
        self.tokenizer.no_padding()
        count = len(self.tokenizer.encode(text).ids)
        self.tokenizer.enable_padding()
        return count

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Any:
        """Embed N texts: a (N, E) float32 NumPy array. Of a text over the limit the rest is cut."""
        self.tokenizer.enable_truncation(self.limit)
        encoded = self.tokenizer.encode_batch(list(texts))
        self.tokenizer.no_truncation()
        ids = torch.tensor([e.ids for e in encoded])
        mask = torch.tensor([e.attention_mask for e in encoded])
        hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return nn.functional.normalize(pooled, dim=-1).numpy()


class ModelSat(nn.Module):  # type: ignore[misc]  # torch is not followed
    """Backbone and connector; `forward` gives logit('Yes') - logit('No') for each candidate."""

    def __init__(self, backbone: Any, connector: nn.Linear, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.backbone = backbone
        self.connector = connector
        self.yes_id = single_token(tokenizer, YES)
        self.no_id = single_token(tokenizer, NO)

    def forward(self, tokens: Tensor, lengths: Tensor, capabilities: Tensor) -> Tensor:
        """Score every candidate on every instruction.

        Args:
            tokens: (B, L) prompt token ids, padded on the right.
            lengths: (B,) prompt lengths in tokens.
            capabilities: (M, C) capability representations, as the connector reads them.

        Returns:
            (B, M) margins, logit('Yes') - logit('No').
        """
        return self.margins(tokens, lengths, self.connector(capabilities))

    def margins(self, tokens: Tensor, lengths: Tensor, embeddings: Tensor) -> Tensor:
        """Score as `forward` does, from candidate embeddings e_c (M, D)."""
        prefix = self.backbone.get_input_embeddings()(tokens)
        inputs, mask, positions = candidate_last(prefix, lengths, embeddings)
        return self.read_out(self.hidden(inputs, mask, positions, tail=len(embeddings)))

    @staticmethod
    def count_positions(instructions: int, tokens: int, candidates: int) -> int:
        """Count the positions of the residual stream that one forward pass computes."""
        return instructions * (tokens + candidates)

    def read_out(self, hidden: Tensor) -> Tensor:
        """Turn hidden states (..., D) after the final norm into margins (...,)."""
        head = self.backbone.get_output_embeddings().weight
        return hidden @ (head[self.yes_id] - head[self.no_id])

    def hidden(self, inputs: Tensor, mask: Tensor, positions: Tensor, tail: int) -> Tensor:
        """Compute the hidden states of the last `tail` positions, after the final norm.

        inputs (N, S, D), additive mask (N, 1, S, S), positions (N, S) -> (N, tail, D). The last
        layer computes those positions alone.
        """
        decoder = self._decoder()
        rotary = decoder.rotary_emb(inputs, position_ids=positions)
        for layer in decoder.layers[:-1]:
            inputs = layer(inputs, attention_mask=mask, position_embeddings=rotary, use_cache=False)
        return decoder.norm(last_positions(decoder.layers[-1], inputs, mask, rotary, tail))

    def _decoder(self) -> Any:
        base = getattr(self.backbone, "get_base_model", lambda: self.backbone)()
        return base.model


def last_positions(
    layer: Any, inputs: Tensor, mask: Tensor, rotation: tuple[Tensor, Tensor], tail: int
) -> Tensor:
    """Compute the last `tail` positions of a Llama layer's output.

    inputs (N, S, D) -> (N, tail, D). Every position is a key and a value, only the last `tail` are
    queries. rotation: (cos, sin) of the rotary embedding.
    """
    attention = layer.self_attn
    x = layer.input_layernorm(inputs)

    def heads(of: Tensor) -> Tensor:
        return of.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)

    cos, sin = rotation
    q = apply_rotary(heads(attention.q_proj(x[:, -tail:])), cos[:, -tail:], sin[:, -tail:])
    k = apply_rotary(heads(attention.k_proj(x)), cos, sin)
    v = heads(attention.v_proj(x))
    mixed = nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask[:, :, -tail:], scale=attention.scaling, enable_gqa=True
    )
    out = inputs[:, -tail:] + attention.o_proj(mixed.transpose(1, 2).flatten(2))
    return out + layer.mlp(layer.post_attention_layernorm(out))


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary position embedding to x (N, heads, S, W); cos, sin (N, S, W)."""
    return x * cos[:, None] + rotate_half(x) * sin[:, None]


def candidate_last(
    prefix: Tensor, lengths: Tensor, embeddings: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Lay out prompts and candidates in one sequence per instruction.

    prefix (B, L, D), lengths (B,), embeddings (M, D) -> inputs (B, L + M, D), additive mask
    (B, 1, L + M, L + M), positions (B, L + M). Every candidate has the position after its prompt.
    """
    batch, length, _ = prefix.shape
    count = len(embeddings)
    inputs = torch.cat([prefix, embeddings.expand(batch, -1, -1)], dim=1)
    steps = torch.arange(length, device=prefix.device)
    allowed = torch.zeros(
        batch, length + count, length + count, dtype=torch.bool, device=prefix.device
    )
    allowed[:, :length, :length] = steps[:, None] >= steps
    allowed[:, length:, :length] = (steps < lengths[:, None])[:, None]
    allowed[:, length:, length:] = torch.eye(count, dtype=torch.bool, device=prefix.device)
    positions = torch.cat([steps.expand(batch, -1), lengths[:, None].expand(-1, count)], dim=1)
    return inputs, additive_mask(allowed, prefix), positions


def additive_mask(allowed: Tensor, like: Tensor) -> Tensor:
    """Turn allowed (N, S, S) into a mask (N, 1, S, S), typed as `like`, to add to the logits."""
    mask = torch.zeros(allowed.shape, dtype=like.dtype, device=like.device)
    return mask.masked_fill_(~allowed, torch.finfo(like.dtype).min)[:, None]
