"""The paper's layout and text representation: what they compute, and that they train."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.api.candidate import TaskResult
from engine.api.errors import BundleError, InvalidInputError
from engine.bundle.prompt import AFTER, INQUIRY
from research import ablations, paper
from research.paper import CapabilityFirst, Layout, PaperConfig, Representation
from research.representations import (
    TEXT_VARIANTS,
    capability_sentences,
    fixed_capabilities,
    pack,
    predict_variants,
    text_pieces,
    text_representation,
    weighted,
)
from tests.conftest import CHECKPOINT
from tests.support import datasets, tiny_llama
from training.model.model import ModelSat, TextEncoder, build
from training.state import prepare, read_data
from training.train import one_step, schedule_of
from training.weights.adapter import load_pretrained
from training.weights.base import load_base
from training.weights.merge import write_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning:transformers")]
RESULTS = [TaskResult(f"task {i}, algebra", i / 50) for i in range(50)]


def count_words(text: str) -> int:
    return len(text.split())


def layouts() -> tuple[CapabilityFirst, ModelSat]:
    """Both layouts with the same weights."""
    base = tiny_llama.base()
    connector = torch.nn.Linear(5, tiny_llama.WIDTH)
    backbone = build(base, causal=True)
    first = CapabilityFirst(backbone, connector, base.tokenizer).eval()
    return first, ModelSat(backbone, connector, base.tokenizer).eval()


@pytest.fixture
def config(tmp_path: Path) -> PaperConfig:
    """A tiny backbone, the real encoder, and outcomes that depend on the first word."""
    write_model(tmp_path / "backbone", tiny_llama.base(layers=2))
    return PaperConfig(
        data=(str(datasets.write(tmp_path / "data")),),
        output_dir=str(tmp_path / "out"),
        backbone=str(tmp_path / "backbone"),
        encoder=str(CHECKPOINT / "encoder"),
        layers=2,
        batch_size=8,
        epochs=6,
        connector_warmup_steps=6,
        lora_rank=4,
        synthetic_candidates=0,
        reformat_prob=0.0,
        connector_lr=3e-3,
        backbone_lr=3e-3,
        validate_every=1000,
        precision="float32",
    )


def test_capability_first_is_one_plain_sequence_per_candidate() -> None:
    """The candidate's embedding, then the prompt, through the library's own model."""
    model, _ = layouts()
    prompts, embeddings = tiny_llama.prompts([9, 5]), torch.randn(3, tiny_llama.WIDTH)
    head = model.backbone.get_output_embeddings().weight
    expected = torch.zeros(len(prompts), len(embeddings))
    with torch.no_grad():
        for i, prompt in enumerate(prompts):
            tokens = model.backbone.get_input_embeddings()(torch.from_numpy(prompt))
            for j, embedding in enumerate(embeddings):
                sequence = torch.cat([embedding[None], tokens])[None]
                hidden = model.backbone.model(inputs_embeds=sequence).last_hidden_state[0, -1]
                expected[i, j] = hidden @ (head[model.yes_id] - head[model.no_id])
        computed = model.margins(*tiny_llama.padded(prompts), embeddings)
    torch.testing.assert_close(computed, expected, atol=1e-5, rtol=1e-5)


def test_other_candidates_do_not_change_a_score() -> None:
    (first, last), (tokens, lengths) = layouts(), tiny_llama.padded(tiny_llama.prompts([17]))
    embeddings = torch.randn(40, tiny_llama.WIDTH)
    with torch.no_grad():
        crowd, alone = (first.margins(tokens, lengths, e) for e in (embeddings, embeddings[7:8]))
        other = last.margins(tokens, lengths, embeddings)
    torch.testing.assert_close(crowd[:, 7:8], alone, atol=1e-5, rtol=1e-5)
    assert (crowd - other).abs().max() > 0.01, "the two layouts are different functions"


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(60, 200))
def test_pieces_hold_every_sentence_whole(words: list[int], limit: int) -> None:
    sentences = [" ".join([f"s{i}"] * count) for i, count in enumerate(words)]
    pieces = pack(sentences, count_words, limit)
    assert " ".join(pieces).split() == " ".join(sentences).split()
    assert all(count_words(piece) <= limit for piece in pieces)


def test_a_sentence_longer_than_the_encoder_reads_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="the encoder reads 20"):
        pack(["one", "word " * 21], count_words, 20)


def test_text_representation_reads_every_task_in_each_order() -> None:
    embedded: list[str] = []

    def embed(texts: list[str]) -> np.ndarray:
        embedded.extend(texts)
        return np.array([[len(t), 1.0] for t in texts], dtype=np.float32)

    c = text_representation(RESULTS, embed, count_words, 256)  # type: ignore[arg-type]
    assert c.shape == (TEXT_VARIANTS, 2)
    for sentence in capability_sentences(RESULTS):
        assert sum(sentence in piece for piece in embedded) == TEXT_VARIANTS
    again = text_representation(RESULTS[::-1], embed, count_words, 256)  # type: ignore[arg-type]
    np.testing.assert_array_equal(again, c)


def test_joined_representations_have_unit_size_over_the_training_candidates(
    config: PaperConfig,
) -> None:
    (outcomes,) = read_data(config)
    encoder = TextEncoder(load_base(config.encoder))
    capability = fixed_capabilities((weighted, text_pieces), outcomes.test, encoder)
    variants = capability.variants(outcomes.test, encoder)
    width = int(load_base(config.encoder).config["hidden_size"])
    assert variants.shape == (TEXT_VARIANTS, datasets.CANDIDATES, 2 * width + 1)
    for part in (variants[..., : width + 1], variants[..., width + 1 :]):
        np.testing.assert_allclose(part.mean(axis=(0, 1)), 0, atol=1e-3)
        assert part.std(axis=1).mean() == pytest.approx(1, abs=1e-3)
    assert np.abs(variants[0] - variants[1])[:, width + 1 :].max() > 0.01


@pytest.mark.parametrize(
    ("layout", "representation"),
    [
        ("capability_first", "text"),
        ("capability_first", "accuracy_weighted"),
        ("candidate_last", "text"),
        ("instruction_first", "text"),
    ],
)
def test_a_run_learns_is_measured_and_is_not_exported(
    config: PaperConfig, layout: Layout, representation: Representation
) -> None:
    config = replace(config, layout=layout, representation=representation)
    report = paper.train(config)
    lines = (Path(config.output_dir) / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert np.mean(losses[-8:]) < 0.9 * np.mean(losses[:8])
    assert report["datasets"]["data"]["pooled_auc"] > 0.6
    assert json.loads((Path(config.output_dir) / "report.json").read_text()) == report
    run = prepare(config, paper.MODELS[layout], paper.builder_of(config))  # the last checkpoint
    predicted = predict_variants(run, run.datasets[0], run.datasets[0].test)
    variants = TEXT_VARIANTS if representation == "text" else 1
    assert predicted.shape == (variants, len(run.datasets[0].test), datasets.CANDIDATES)
    with pytest.raises(BundleError, match=r"research/ trains and measures the others"):
        load_pretrained(Path(config.output_dir))


def test_the_papers_order_is_candidate_instruction_prompt(config: PaperConfig) -> None:
    ordered = replace(config, layout="instruction_first")
    with pytest.raises(InvalidInputError, match="must be 0"):
        paper.builder_of(replace(ordered, reformat_prob=0.5))
    tokens = {}
    for name, settings in (("paper", ordered), ("served", config)):
        run = prepare(settings, paper.MODELS[settings.layout], paper.builder_of(settings))
        tokens[name] = run.datasets[0].tokens[3].tolist()
        tokenizer, text = run.datasets[0].tokenizer, run.datasets[0].outcomes.texts[3]
    x, before, after = (
        tokenizer.encode(part, add_special_tokens=False).ids for part in (text, INQUIRY, AFTER)
    )
    assert tokens["paper"] == [*x, *before, *after]
    assert tokens["served"] == [*before, *x, *after]


def test_the_papers_loss_alone_learns_an_order(config: PaperConfig) -> None:
    """Contrast against one bad instruction each; calibration makes probabilities of it."""
    config = replace(
        config, bce_weight=0.0, contrast_rivals=1, candidate_contrast_weight=0.0, epochs=10
    )
    config = replace(config, instruction_contrast_weight=1.0)
    report = paper.train(config)["datasets"]["data"]
    assert report["pooled_auc"] > 0.6
    assert report["ece"] < 0.25


def test_the_first_stage_takes_the_first_folder_alone(config: PaperConfig, tmp_path: Path) -> None:
    second = str(datasets.write(tmp_path / "second", seed=5))
    config = replace(config, data=(*config.data, second), connector_warmup_data="first")
    run = prepare(config, paper.MODELS[config.layout], paper.builder_of(config))
    steps = [batch.dataset for batch in schedule_of(run)]
    assert steps[: config.connector_warmup_steps] == [0] * config.connector_warmup_steps
    assert 1 in steps[config.connector_warmup_steps :]
    mixed = schedule_of(replace(run, config=replace(config, connector_warmup_data="all")))
    assert sorted(steps) == sorted(batch.dataset for batch in mixed)
    before = {n: p.clone() for n, p in run.model.backbone.named_parameters()}
    connector = run.model.connector.weight.clone()
    one_step(run, schedule_of(run)[0], len(steps))
    assert all(torch.equal(before[n], p) for n, p in run.model.backbone.named_parameters())
    assert not torch.equal(connector, run.model.connector.weight)


def test_ablations_train_both_layouts_and_representations(
    config: PaperConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = {
        k: getattr(config, k) for k in ("backbone", "encoder", "layers", "batch_size", "precision")
    }
    monkeypatch.setattr(
        ablations, "BASE_SETTINGS", common | {"exclude_candidates": "c0", "validate_every": 1000}
    )
    elsewhere = datasets.write(tmp_path / "elsewhere", seed=3)
    names = ["base", "layout: capability first, 4 sampled", "c: text in pieces"]
    for name in names:
        ablations.run_variant(name, config.data[0], [elsewhere], tmp_path, instructions=24)
    rows = ablations.table(tmp_path).splitlines()
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows[2:]] == names
    assert "AUC, elsewhere" in rows[0]
    result = np.load(tmp_path / "base" / "result.npz")
    assert result["p"].shape == result["outcomes"].shape
    assert list(result["seen"]) == [False, True, True, True]
