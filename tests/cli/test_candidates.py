"""`modelsat candidates`: files, single fields, the whole table, as a user types it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.cli.main import main
from engine.cli.output import Column, print_table
from modelsat import Client
from tools.processes import Server

Run = Callable[..., str]


@pytest.fixture
def run(
    shared_server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Runs an action, checks its exit status, and returns what it printed. The table is restored
    afterwards."""
    monkeypatch.setenv("MODELSAT_SERVER", shared_server.address)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: Any, status: int = 0, stdin: str = "") -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        assert main(["candidates", *map(str, arguments)]) == status
        captured = capsys.readouterr()
        return captured.err if status else captured.out

    with Client(shared_server.address) as client:
        before = client.list_candidates()
        yield call
        client.replace_candidates(before)


def test_from_the_template_to_a_choice_and_back(run: Run, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    assert run("template", "--out", file) == f"wrote {file}\n"
    assert "add --force" in run("template", "--out", file, status=1)
    assert run("template", "--format", "json").startswith("{")
    for name in ("mine.yaml", "mine.json", "mine.txt"):
        assert "ends with .toml" in run(
            "template", "--out", tmp_path / name, "--format", "toml", status=1
        )
    ids = {"my-model", "published-model"}
    assert "would be created my-model" in run("create", file, "--validate-only")
    assert not ids & {c.id for c in client.list_candidates()}
    created = run("create", file)
    assert "created my-model: level 0.697" in created
    assert created.count("tasks of your own: invoices and receipts") == 1
    assert ids <= {c.id for c in client.list_candidates()}
    assert "add --force" in run("create", file, status=1)
    assert "replaced my-model" in run("create", "-", "--force", stdin=file.read_text("utf-8"))
    third = json.dumps([{"id": "third", "aptitude": {"philosophy": 1.5}}])
    assert "expected a share" in run("create", "-", stdin=third, status=1)


def test_a_file_is_registered_as_a_whole_or_not_at_all(run: Run, client: Client) -> None:
    taken = client.list_candidates()[0].id
    both = [{"id": i, "aptitude": {"philosophy": 0.5}} for i in ("newcomer", taken)]
    assert taken in run("create", "-", stdin=json.dumps(both), status=1)
    assert "newcomer" not in {c.id for c in client.list_candidates()}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "it is empty"),
        ("[]", "lists no candidate"),
        ('{"candidates": []}', "lists no candidate"),
        ('[{"id": "a", "aptitude": {"philosophy": 7}}]', "candidates[0] (a).aptitude[0].accuracy"),
        ("- id: a\n  aptitude: {philosophy: 70%}", "candidates[0] (a): has a value"),
        ("just words", "is not a readable JSON file"),
    ],
)
def test_what_is_wrong_with_a_file_is_named_with_the_candidate(
    run: Run, text: str, named: str
) -> None:
    assert named in run("create", "-", "--validate-only", stdin=text, status=1)


@pytest.mark.parametrize(
    "text",
    [
        '[[candidates]]\nid = "a"\naptitude = {philosophy = 0.5}',
        "candidates:\n  - id: a\n    aptitude: {philosophy: 0.5}",
        '{"id": "a", "aptitude": {"philosophy": 0.5}}',
    ],
    ids=["toml", "yaml", "json"],
)
def test_the_standard_input_takes_every_form(run: Run, text: str) -> None:
    assert "would be created a" in run("create", "-", "--validate-only", stdin=text)


def test_update_changes_what_is_named_and_says_what(run: Run, client: Client) -> None:
    before = client.list_candidates()[0]
    flags = ["--context-window", "4321", "--tags", "b,a", "--features", "tools", "--regions", "eu"]
    flags += ["--input-usd-per-million", "0.0000005", "--price-unit", "token"]
    flags += ["--modalities", "image", "--price-source", "here"]
    would = run("update", before.id, *flags, "--validate-only")
    assert "would be updated" in would
    assert client.get_candidate(before.id) == before
    said = run("update", before.id, *flags)
    assert "-> 4,321" in said
    assert "-> a, b" in said
    after = client.get_candidate(before.id)
    assert (after.context_window, after.tags, after.features) == (4321, ("a", "b"), ("tools",))
    assert (after.regions, after.modalities, after.price_source) == (("eu",), ("image",), "here")
    assert after.input_usd_per_million == 0.5
    assert after.output_usd_per_million == before.output_usd_per_million
    assert after.aptitude == before.aptitude
    assert "nothing was changed" in run("update", before.id, *flags)
    run("update", before.id, "--context-window", "unknown", "--tags", "")
    cleared = client.get_candidate(before.id)
    assert (cleared.context_window, cleared.tags) == (None, ())
    assert "names no field" in run("update", before.id, status=1)
    assert "price per token" in run("update", before.id, "--input-usd", "5e-7", status=1)
    assert "not registered" in run("update", "missing", "--tags", "a", status=1)


def test_results_of_a_new_test_replace_the_old_ones(
    run: Run, client: Client, tmp_path: Path
) -> None:
    before = client.list_candidates()[0]
    file = tmp_path / "again.json"
    file.write_text(json.dumps({"id": before.id, "aptitude": {"invoices": [0.4, 30]}}), "utf-8")
    full = run("update", before.id, "--results", file, "--keep-results", status=1)
    assert "would leave 51 tasks with a result, at most 50 fit" in full
    said = run("update", before.id, "--results", file, "--validate-only")
    assert "50 measured results were dropped\n" in said
    file.write_text(json.dumps({"id": before.id, "aptitude": {"philosophy": [0.9, 50]}}), "utf-8")
    assert "aptitude: level" in run("update", before.id, "--results", file)
    after = client.get_candidate(before.id)
    assert after.aptitude[0].accuracy == 0.9
    assert after.input_usd_per_million == before.input_usd_per_million
    own: dict[str, Any] = {"id": before.id, "mean_output_tokens": 6}
    own |= {"aptitude": {"invoices": [0.4, 30], "philosophy": [0.7, 50]}}
    file.write_text(json.dumps(own), "utf-8")
    run("update", before.id, "--results", file, "--mean-output-tokens", "77")
    assert client.get_candidate(before.id).mean_output_tokens == 77, "the flag comes first"
    file.write_text(json.dumps({**own, "aptitude": {"invoices": [0.6, 30]}}), "utf-8")
    would = run("update", before.id, "--results", file, "--keep-results", "--validate-only")
    assert "mean_output_tokens" not in would
    assert "dropped" not in would
    assert "tasks of your own: invoices" in would
    file.write_text(json.dumps({"id": before.id, "aptitude": {"invoices": [0.4, 30]}}), "utf-8")
    said = run("update", before.id, "--results", file)
    assert "1 measured results were dropped; --keep-results keeps them" in said
    other = client.list_candidates()[1].id
    assert f"has no candidate {other}" in run("update", other, "--results", file, status=1)


def test_the_whole_table_is_exported_in_the_form_that_replace_takes(
    run: Run, client: Client, tmp_path: Path
) -> None:
    run("create", "-", stdin=json.dumps({"id": "own-task", "aptitude": {"sql joins": [0.7, 9]}}))
    before = client.list_candidates()
    file = tmp_path / "all.json"
    assert run("export", "--out", file) == f"wrote {file}\n"
    exported = run("export")
    assert exported == file.read_text("utf-8")
    run("delete", "own-task")
    assert f"would replace all candidates by {len(before)}" in run(
        "replace", file, "--validate-only"
    )
    run("replace", "-", stdin=exported)
    assert client.list_candidates() == before


def test_listings_have_stable_fields_in_json(run: Run, client: Client) -> None:
    listed = json.loads(run("list", "--json"))
    assert [each["id"] for each in listed] == [c.id for c in client.list_candidates()]
    assert list(listed[0]) == [
        *("id", "display_name", "context_window", "input_usd_per_million"),
        *("output_usd_per_million", "price_source", "mean_output_tokens"),
        *("time_to_first_token_ms", "output_tokens_per_s"),
        *("cached_input_usd_per_million", "modalities"),
        *("features", "tags", "regions", "mean_accuracy", "level_standard_error", "etag"),
        "set_aside",
    ]
    revisions = json.loads(run("revisions", "--json"))
    names = ["number", "create_time", "candidates", "description", "principal"]
    assert list(revisions[0]) == names
    assert revisions[0]["candidates"] == len(listed)


@pytest.mark.parametrize("width", [80, 60, 40, 25])
@pytest.mark.parametrize("name", ["a", "a-name-of-some-length", "x" * 63])
def test_tables_have_a_line_for_each_row_and_fit(
    width: int, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_table(
        [Column("id", text=True), Column("n"), Column("change", text=True)],
        [[name, "1,234", f"updated candidates/{name}"]] * 3,
    )
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert sum("1,234" in line for line in lines) == 3, "numbers are never shortened"
