"""The audit of changes: complete, for dry runs and failures too, and altered nowhere unseen."""

from __future__ import annotations

import asyncio
import errno
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.api.errors import ModelsatError
from engine.cli.main import main as cli
from engine.pb import candidate_service_pb2 as cpb
from engine.registry.stores.base import Revision, RevisionId
from engine.serving.auth.tokens import new_token
from engine.serving.rpc.candidate_service import CandidateService
from engine.serving.telemetry.change_log import (
    RECOVERED,
    START,
    ChangeLog,
    ChangeRecord,
    hash_of,
    verify,
)
from modelsat import Client, Credentials, ModelsatClientError
from tools.processes import serving

RECORDS = st.lists(
    st.builds(
        ChangeRecord,
        action=st.text(max_size=9),
        target=st.text(max_size=9),
        result=st.sampled_from(["OK", "NOT_FOUND"]),
        revision=st.integers(0, 2**60),
        dry_run=st.booleans(),
        principal=st.text(max_size=9),
    ),
    min_size=1,
    max_size=5,
)


def write(path: Path, records: list[ChangeRecord]) -> list[bytes]:
    async def add() -> None:
        log = ChangeLog(path)
        for record in records:
            await log.add(record)
        log.close()

    asyncio.run(add())
    return path.read_bytes().splitlines(keepends=True)


def entry(number: int = 1, **changes: Any) -> ChangeRecord:
    values: dict[str, Any] = {"action": "deleted", "target": f"candidates/{number}", "result": "OK"}
    return ChangeRecord(**{**values, "revision": number, "dry_run": False, **changes})


@settings(max_examples=30)
@given(RECORDS, RECORDS, st.data())
def test_the_chain_holds_and_no_line_changes_unseen(
    first: list[ChangeRecord], then: list[ChangeRecord], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "changes.jsonl"
        write(path, first)
        lines = write(path, then)  # a server that was started again
        count, last = verify([path])
        assert count == len(lines) == len(first) + len(then)
        assert json.loads(lines[-1])["hash"] == last
        at = data.draw(st.integers(0, len(lines) - 1))
        parsed = json.loads(lines[at])
        key = data.draw(st.sampled_from(sorted(parsed)))
        changed = parsed[key] + 1 if isinstance(parsed[key], int) else f"{parsed[key]}x"
        altered = json.dumps({**parsed, key: changed}).encode() + b"\n"
        variants = [[*lines[:at], altered, *lines[at + 1 :]], [*lines[:at], lines[at], *lines[at:]]]
        if 0 < at < len(lines) - 1:
            variants += [[*lines[:at], *lines[at + 1 :]], [*lines[:at], b"{}\n", *lines[at + 1 :]]]
        for variant in variants:
            path.write_bytes(b"".join(variant))
            with pytest.raises(ModelsatError, match=r"changes\.jsonl"):
                verify([path])


@pytest.mark.parametrize("kept", [1, 40, -2])
def test_a_line_that_a_crash_cut_off_is_noted_and_not_removed(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "changes.jsonl"
    lines = write(path, [entry(1), entry(2)])
    path.write_bytes(lines[0] + lines[1][:kept])
    with pytest.raises(ModelsatError, match="ends within a line"):
        verify([path])
    after = write(path, [entry(3)])
    assert after[:2] == [lines[0], lines[1][:kept] + b"\n"]
    assert [json.loads(line)["action"] for line in after[2:]] == [RECOVERED, "deleted"]
    assert verify([path])[0] == 3
    path.write_bytes(b"".join([after[0], b'{"half\n', *after[2:]]))
    with pytest.raises(ModelsatError, match="follows a line that is not a record"):
        verify([path])


def test_a_full_disk_while_a_torn_line_is_noted_can_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "changes.jsonl"
    lines = write(path, [entry(1), entry(2)])
    path.write_bytes(lines[0] + lines[1][:40])

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(ModelsatError, match="No space left"):
            ChangeLog(path)
    assert path.read_bytes() == lines[0] + lines[1][:40]
    write(path, [entry(3)])
    assert verify([path])[0] == 3


async def test_a_file_of_another_program_in_its_place_fails_no_change(tmp_path: Path) -> None:
    path = tmp_path / "changes.jsonl"
    log = ChangeLog(path)
    await log.add(entry(1))
    path.rename(tmp_path / "changes.jsonl.1")
    path.write_text('{"level": "info"}\n')
    await log.add(entry(2))
    assert log.failed == 1
    log.close()


def test_a_line_that_only_lacks_its_end_is_a_record(tmp_path: Path) -> None:
    path = tmp_path / "changes.jsonl"
    lines = write(path, [entry(1), entry(2)])
    path.write_bytes(b"".join(lines)[:-1])
    assert write(path, [entry(3)])[:2] == lines
    assert verify([path])[0] == 3


async def test_a_renamed_file_is_continued_by_a_new_one(tmp_path: Path) -> None:
    path, old = tmp_path / "changes.jsonl", tmp_path / "changes.jsonl.1"
    log = ChangeLog(path)
    await log.add(entry(1))
    path.rename(old)
    await log.add(entry(2))
    await log.add(entry(3))
    log.close()
    assert verify([old, path])[0] == 3
    assert verify([path])[0] == 2
    assert verify([old])[0] == 1
    with pytest.raises(ModelsatError, match="does not follow number"):
        verify([path, old])


async def test_only_one_server_writes_a_file(tmp_path: Path) -> None:
    log = ChangeLog(tmp_path / "c")
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ModelsatError, match="--changes-log"):
        ChangeLog(tmp_path / "c")
    log.close()
    for text in ("no record\n", "{}\n", "[]\n"):
        (tmp_path / "other").write_text(text)
        with pytest.raises(ModelsatError, match="--changes-log"):
            ChangeLog(tmp_path / "other")
        assert (tmp_path / "other").read_text() == text
    with pytest.raises(ModelsatError, match="--changes-log"):
        ChangeLog(tmp_path / "no-such-folder" / "c")


def test_every_attempt_is_audited_with_its_caller(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Changes, dry runs and failures; also in the log, and never with a token."""
    made = {name: new_token("admin", name) for name in ("alice", "bob")}
    tokens, path = tmp_path / "tokens.json", tmp_path / "changes.jsonl"
    tokens.write_text(json.dumps({"tokens": [vars(entry) for _, entry in made.values()]}))
    flags = ["--auth-tokens-file", str(tokens), "--changes-log", str(path)]
    with serving(tmp_path / "c.sqlite", *flags) as server:
        alice, bob = (
            Client(server.address, 30, Credentials(token=text)) for text, _ in made.values()
        )
        with alice, bob:
            first, second, *rest = alice.list_candidates()
            alice.delete_candidate(first.id)
            bob.delete_candidate(second.id, validate_only=True)
            with pytest.raises(ModelsatClientError):
                bob.delete_candidate(first.id)
            with pytest.raises(ModelsatClientError):
                alice.rollback(999)
            bob.create_candidate(first)
            alice.replace_candidates([*rest, second], validate_only=True)
            revision = bob.rollback(1).number
            by = {r.number: r.principal for r in alice.list_revisions()}
        printed = server.printed()
    entries = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [(e["action"], e["principal"], e["result"], e["dry_run"]) for e in entries] == [
        ("deleted", "alice", "OK", False),
        ("deleted", "bob", "OK", True),
        ("deleted", "bob", "NOT_FOUND", False),
        ("rolled back to", "alice", "NOT_FOUND", False),
        ("created", "bob", "OK", False),
        ("replaced all by", "alice", "OK", True),
        ("rolled back to", "bob", "OK", False),
    ]
    assert entries[-1]["revision"] == revision
    assert all(e["peer"].startswith("ipv4:127.0.0.1:") and e["role"] == "admin" for e in entries)
    assert f"deleted {first.name}, revision 2, by 'alice' from ipv4:127.0.0.1:" in printed
    assert not [text for text, _ in made.values() if text in printed + path.read_text()]
    assert by == {1: "", 2: "alice", 3: "bob", 4: "bob"}
    assert cli(["store", "verify-changes", str(path)]) == 0
    assert entries[-1]["hash"] in capsys.readouterr().out
    assert entries[0]["previous"] == START
    path.write_bytes(path.read_bytes().replace(b'"alice"', b'"carol"', 1))
    assert cli(["store", "verify-changes", str(path)]) == 1
    assert "changes.jsonl:1: was altered" in capsys.readouterr().err


class SlowRegistry:
    """Changes that complete once `answered` is set, whether or not their callers wait."""

    def __init__(self) -> None:
        self.begun, self.answered = asyncio.Event(), asyncio.Event()

    def table(self) -> Any:
        return SimpleNamespace(revision=7, id=SimpleNamespace(token=""), candidates=())

    async def _change(self, *_: Any, **__: Any) -> Any:
        self.begun.set()
        await asyncio.shield(asyncio.create_task(self.answered.wait()))
        return Revision(7, 0, "", 0, RevisionId())

    delete = rollback = update = create = _change

    async def replace(self, *_: Any, **__: Any) -> Any:
        await self._change()
        return self.table()


@pytest.mark.parametrize(
    ("method", "request_", "action"),
    [
        ("DeleteCandidate", cpb.DeleteCandidateRequest(name="candidates/a"), "deleted"),
        ("RollbackRevision", cpb.RollbackRevisionRequest(revision=3), "rolled back to"),
        ("BatchReplaceCandidates", cpb.BatchReplaceCandidatesRequest(), "replaced all by"),
    ],
)
async def test_the_audit_says_what_came_of_a_change_whose_caller_gave_up(
    tmp_path: Path, method: str, request_: Any, action: str
) -> None:
    """Kind: nothing says who changed the table. The store completes such a change, too."""
    registry, changes = SlowRegistry(), ChangeLog(tmp_path / "changes.jsonl")
    service: Any = CandidateService(cast(Any, registry), changes)
    context = SimpleNamespace(set_trailing_metadata=lambda _: None)
    call = asyncio.create_task(getattr(service, method)(request_, context))
    await registry.begun.wait()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    registry.answered.set()
    path = tmp_path / "changes.jsonl"
    async with asyncio.timeout(5):
        while not path.read_bytes().endswith(b"\n"):
            await asyncio.sleep(0.01)
    (line,) = map(json.loads, path.read_bytes().splitlines())
    assert (line["action"], line["result"]) == (action, "OK")
    changes.close()


@pytest.mark.parametrize("number", ['"x"', "null", "[1]", "{}", '"' + "9" * 5000 + '"'])
def test_a_number_of_another_kind_is_named_and_ends_no_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: str
) -> None:
    lines = write(tmp_path / "c", [entry(1), entry(2)])
    forged = json.loads(lines[0]) | {"number": json.loads(number)}
    forged["hash"] = hash_of(forged)
    (tmp_path / "c").write_bytes(json.dumps(forged).encode() + b"\n" + lines[1])
    assert cli(["store", "verify-changes", str(tmp_path / "c")]) == 1
    assert "not intact" in capsys.readouterr().err
