"""Files that version 0.1 (commit 25b5ec3) wrote are read by today's code.

They were made through the commands of that version: a store of four candidates and three kept
revisions, four recorded outcomes, the journal of a whole aptitude test with one question a task,
the scores of a replay of six requests, and a bundle of four numbers. If a format changes on purpose
then the file must be refused in one sentence that says what to do, and its test here says so.
"""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.api.candidate import Candidate
from engine.bundle.arrays import load_arrays
from engine.bundle.manifest import read_manifest
from engine.cli.main import main as cli
from engine.client.errors import ModelsatClientError
from engine.registry.catalog import read_catalog
from engine.registry.stores.outcomes import read_recorded
from engine.replay.run import Checkpoint
from modelsat import Client
from tools.processes import serving

FILES = Path(__file__).parent / "fixtures_0_1"
JOURNAL = "aptitude.journal.jsonl"
ENDPOINT = "http://127.0.0.1:18473/v1"  # of the journal; nothing listens there


def test_a_store_and_outcomes_are_served(tmp_path: Path) -> None:
    store = tmp_path / "candidates.sqlite"
    store.write_bytes(gzip.decompress((FILES / "candidates.sqlite.gz").read_bytes()))
    shutil.copy(FILES / "outcomes.sqlite", tmp_path)
    # Without effect unless the bundle brings another encoder than that of version 0.1.
    with (
        serving(store, "--reencode-candidates") as server,
        Client(server.address, timeout_s=30) as client,
    ):
        known = {candidate.id: candidate for candidate in client.list_candidates()}
        assert set(known) == {"extra", "fourth", "llama-3.1-8b-instruct", "yi-6b-chat"}
        extra = known["extra"]
        assert (extra.modalities, extra.features) == (("image",), ("tools",))
        assert (extra.tags, extra.regions) == (("tier-2",), ("eu",))
        assert (extra.input_usd_per_million, extra.mean_output_tokens) == (0.1, 123.0)
        kept = [(r.number, r.candidates) for r in client.list_revisions()]
        assert kept == [(5, 4), (4, 3), (3, 2)]
        ranked = {r.candidate for r in client.route("Hi").ranking}
        assert ranked == set(known)
        client.rollback(3)
        assert len(client.list_candidates()) == 2
        recorded = read_recorded(tmp_path / "outcomes.sqlite")
        first = next(r for r in recorded if r.decision_id == f"{1:032x}")
        again = {"text": first.text, "category": first.category}
        assert not client.record_outcome(first.decision_id, first.candidate, 0.0, **again)
        with pytest.raises(ModelsatClientError, match=first.decision_id):
            client.record_outcome(first.decision_id, first.candidate, 1.0, **again)


def test_outcomes_keep_their_text_and_category() -> None:
    found = list(read_recorded(FILES / "outcomes.sqlite"))
    assert [r.score for r in found] == [0.0, 0.5, 1.0, 0.0]
    assert [r.category for r in found] == ["chat", "chat", "chat", ""]
    assert found[1].text == "Write a limerick about a tram."
    assert found[0].text == ""


def test_a_journal_is_resumed(tmp_path: Path) -> None:
    """Nothing listens at its endpoint, so the run ends well only if no question is left."""
    shutil.copy(FILES / JOURNAL, tmp_path)
    out = tmp_path / "aptitude.json"
    run = ["aptitude", "run", "--base-url", ENDPOINT, "--model", "fake", "--yes"]
    run += ["--questions", str(FILES / "questions.jsonl"), "--questions-per-task", "1"]
    assert cli([*run, "--out", str(out)]) == 0
    (tested,) = read_catalog(out)
    assert [r.accuracy for r in tested.aptitude].count(1.0) == 28
    assert len(tested.aptitude) == 50


def test_replay_scores_of_0_1_are_ignored_and_recomputed() -> None:
    """They cost a forward pass each and hold nothing that the log does not give again, so no code
    is kept to read the names in them."""
    plan: Any = SimpleNamespace(
        manifest_hash="",
        table=SimpleNamespace(candidates=[Candidate("a", ())] * 15, embeddings=np.zeros((15, 1))),
    )
    kept = Checkpoint(FILES / "scores", plan)
    names = [file.stem for file in (FILES / "scores").glob("*.npz")]
    assert [kept.load(name, 3) for name in names] == [None, None]


def test_a_bundle_is_read() -> None:
    manifest = read_manifest(FILES / "bundle", "bundle")
    assert (manifest.encoder_id, manifest.width) == ("9847ee463b9c2f2d", 4)
    assert manifest.made_by["version"] == "0.1.0"
    assert load_arrays(FILES / "bundle").connector.weight.shape == (4, 3)
