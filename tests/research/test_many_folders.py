"""Training on a GPU computes what the rest of training and serving computes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from engine.registry.encoder import accuracy_weighted
from research.many_folders.data.candidates import (
    ALWAYS,
    BOTH,
    EITHER,
    NEVER,
    by_task,
    pick,
    represent,
)
from research.many_folders.data.near_duplicates import Shingles
from research.many_folders.left_out import LeftOut, draw_items, match_by_items
from research.many_folders.loss import Memory, bce, contrast
from research.many_folders.match import Match, matched
from research.many_folders.model import FusedModel
from research.many_folders.weights import best_of_rank, dequantised
from tests.support import tiny_llama
from training.model import loss


def test_the_fused_model_is_the_model_that_is_exported() -> None:
    base = tiny_llama.base()
    model = tiny_llama.model_sat(base).eval()
    weight, bias = (p.detach() for p in (model.connector.weight, model.connector.bias))
    fused = FusedModel(base.arrays, base.config, (weight, bias), model.yes_id, model.no_id)
    tokens, lengths = tiny_llama.padded(tiny_llama.prompts([9, 5]))
    c = torch.randn(3, weight.shape[1])
    with torch.no_grad():
        expected = model(tokens, lengths, c)
        h = fused(tokens, lengths, c)
        null = fused(tokens, lengths, c[:1])[:, 0]
    torch.testing.assert_close(fused.margins(h[:, 1:]), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(h[:, 0], null)  # the null row does not depend on the candidates


def test_figures_become_the_representation_that_serving_computes() -> None:
    random = np.random.default_rng(0)
    figures = random.random((7, 9)).astype(np.float32)
    figures[0, 3] = np.nan
    means, vectors = random.random(9), random.normal(size=(9, 5)).astype(np.float32)
    means[4] = np.nan
    given = [torch.from_numpy(x.astype(np.float32)) for x in (figures, means, vectors)]
    expected = accuracy_weighted(figures, means, vectors)
    found = represent(given[0], None, *given[1:])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    usual, few = (represent(given[0], torch.full((7, 9), n), *given[1:]) for n in (20.0, 3.0))
    np.testing.assert_allclose(usual, expected, atol=1e-4)
    assert few[:, :-1].norm() < 0.5 * usual[:, :-1].norm()
    torch.testing.assert_close(few[:, -1], usual[:, -1])


def test_losses_without_branches_are_those_of_training() -> None:
    random = np.random.default_rng(0)
    logits = torch.from_numpy(random.normal(size=(6, 4)))
    outcomes = torch.from_numpy((random.random((6, 4)) > 0.5).astype(float))
    outcomes[0], outcomes[2, 1] = torch.nan, torch.nan
    torch.testing.assert_close(bce(logits, outcomes), loss.bce(logits, outcomes))
    for z, y in ((logits, outcomes), (logits.T, outcomes.T)):
        torch.testing.assert_close(contrast(z, y), loss.contrast(z, y))


def test_a_synthetic_candidate_has_the_figures_of_its_outcomes() -> None:
    a = torch.tensor([[1.0, 0.0, 1.0, 0.0, torch.nan]])
    b = torch.tensor([[0.0, 0.0, 1.0, 1.0, 1.0]])
    modes = torch.tensor([[EITHER, BOTH, NEVER, ALWAYS, EITHER]])
    found = pick(modes, a, b, torch.rand)
    torch.testing.assert_close(
        found, torch.tensor([[1.0, 0.0, 0.0, 1.0, torch.nan]]), equal_nan=True
    )
    figures, counts = by_task(found, torch.tensor([0, 0, 1, 1, 2]), 3)
    torch.testing.assert_close(figures, torch.tensor([[0.5, 0.5, torch.nan]]), equal_nan=True)
    assert counts.tolist() == [[2, 2, 0]]


def test_the_memory_recalls_residuals_of_alike_instructions() -> None:
    torch.manual_seed(0)
    memory, real = Memory.empty(8, 3, torch.device("cpu")), torch.tensor([0, 2])
    for _ in range(20):
        null = torch.randn(16, 8)
        outcomes = (null[:, :1] > 0).float().expand(-1, 2)
        memory.remember(null, torch.zeros(16, 2), outcomes, real)
    null = torch.randn(64, 8, requires_grad=True)
    common, relative = memory.recalled(null, real)
    assert torch.corrcoef(torch.stack([common[:, 0], null[:, 0]]))[0, 1] > 0.8
    torch.testing.assert_close(relative[:, 0], relative[:, 1])  # their outcomes are the same
    common.sum().backward()
    assert null.grad is not None
    assert null.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_stored_weights_are_read_as_gguf_reads_them(kind: str) -> None:
    of = gguf.GGMLQuantizationType[kind]
    random = np.random.default_rng(0)
    for width in (576, 1536):
        stored = gguf.quantize(random.normal(size=(4, width)).astype(np.float32), of)
        np.testing.assert_array_equal(dequantised(stored), gguf.dequantize(stored, of))


@pytest.mark.parametrize("shape", [(8, 20), (20, 8)])
def test_the_low_rank_change_is_the_best_of_its_rank(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    change = torch.randn(shape)
    high, low = best_of_rank(change, 3)
    least = torch.linalg.svdvals(change)[3:].norm()
    assert (change - high.float() @ low.float()).norm() == pytest.approx(float(least), rel=1e-2)


def test_near_duplicates_are_found_beyond_templates() -> None:
    template = "please answer the following question about a number of things with care now "
    own = ["alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi"] * 1
    first = [template + f"{word} one two" for word in "abcdefgh"] + own
    second = [own[0] + " After careful thought, answer in a box", template + "another one two"]
    shingles = Shingles([first, second])
    fresh = shingles.fresh(1, np.arange(2), lambda text: text)
    assert fresh.tolist() == [False, True]


def test_the_match_adds_the_figure_of_the_instructions_own_task() -> None:
    random = torch.Generator().manual_seed(0)
    normal = torch.nn.functional.normalize
    raw = normal(torch.randn(6, 384, generator=random), dim=1)
    match = Match(16)
    match.center = raw.mean(dim=0)
    whole = match.whole(normal(raw - match.center, dim=1))
    torch.testing.assert_close(whole, raw, atol=1e-4, rtol=1e-4)
    figures = torch.rand(4, 6, generator=random)
    figures[0, 2] = torch.nan
    found = matched(raw[[1, 5]], whole, figures, 0.01)
    own = figures[:, [1, 5]].T - figures.nanmean(dim=1)
    torch.testing.assert_close(found, own, atol=1e-3, rtol=1e-3)
    null = torch.randn(60, 16, generator=random)
    match.fit(null, normal(null @ torch.randn(16, 384, generator=random), dim=1))
    assert match.embedding(null).norm(dim=1).allclose(torch.ones(60))


def test_a_tasks_own_questions_find_the_task_of_another_question() -> None:
    random = np.random.default_rng(0)
    task = np.repeat([0, 1, 2], 20)
    null = 3 * random.normal(size=(3, 16))[task] + random.normal(size=(60, 16))
    figures = random.random((5, 3))
    zeros = np.zeros((60, 5))
    folder = LeftOut(null, zeros, zeros, zeros, task, figures)
    items = draw_items(task, 5)
    assert np.bincount(task[items]).tolist() == [5, 5, 5]
    own = (figures - figures.mean(axis=1, keepdims=True))[:, task].T
    found = match_by_items(folder, items, 0.1)
    assert np.abs(found - own).mean() < 0.1 * np.abs(own).mean()
