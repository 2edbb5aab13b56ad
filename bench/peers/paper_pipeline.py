"""The pipeline of the Model-SAT paper in torch and transformers, as a baseline.

It scores M candidates as a batch of M sequences [e_c, x, p] (embedding of the candidate,
instruction, prompt), with eager attention. The vocabulary head reads the last position alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from training.weights.base import BACKBONE, CACHE, load_base


def reference_pipeline(
    layers: int, tokens: NDArray[np.int64], embeddings: NDArray[np.float32], threads: int
) -> Callable[[], object]:
    """Return a function that scores tokens (L,) with embeddings (M, D).

    Raises ImportError if torch is not installed.
    """
    import torch

    from training.model.model import build

    torch.set_num_threads(threads)
    base = load_base(BACKBONE, CACHE, layers)
    model = build(base, causal=True)
    model.set_attn_implementation("eager")
    count = len(embeddings)

    @torch.no_grad()
    def run() -> object:
        prefix = model.get_input_embeddings()(torch.from_numpy(tokens))
        first = torch.from_numpy(embeddings)[:, None]
        rows = torch.cat([first, prefix.expand(count, -1, -1)], dim=1)
        output = model(inputs_embeds=rows, use_cache=False, logits_to_keep=1)
        return output.logits[:, -1].softmax(dim=-1)

    return run
