"""What goes wrong with the store's file: a full or read-only disk, the file gone or damaged."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.registry.stores.backup import back_up, restore
from modelsat import Client
from tests.reliability.crash_recovery import CATALOG
from tests.reliability.faults.case import Case, new, refusal, routes
from tools.processes import launch, serving


def start_fails(store: Path) -> tuple[int, list[str]]:
    """(exit status, lines that say why) of a server that should not start."""
    server = launch(store)
    status = server.process.wait(60)
    lines = [line for line in server.printed().splitlines() if line.startswith("error:")]
    return status, lines if "Traceback" not in server.printed() else ["Traceback"]


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A folder of 4 MB of its own; None where nothing may be mounted."""
    disk = folder / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def disk_full(folder: Path) -> Case:
    """The file system of the store has no byte left, then some again."""
    with small_disk(folder) as disk:
        if disk is None:
            return Case("disk full", "not run: mounting a tmpfs needs root", good=False)
        with serving(disk / "s.sqlite") as server, Client(server.address, timeout_s=30) as client:
            client.create_candidate(new("before"))
            filler = disk / "filler"
            _fill(filler)
            codes = [refusal(client, f"during-{i}") for i in range(40)]
            failed = {code for code, _ in codes if code}
            told = any("disk is full" in message for _, message in codes)
            routed = routes(client)
            filler.unlink()
            after = refusal(client, "after")[0]
            expected = {c.id for c in client.list_candidates()}
            made = {f"during-{i}" for i, (code, _) in enumerate(codes) if not code}
            server.kill()
        with serving(disk / "s.sqlite") as server, Client(server.address) as client:
            kept = {c.id for c in client.list_candidates()}
    whole = kept == expected == {*(c.id for c in CATALOG), "before", "after", *made}
    seen = (
        f"changes {sorted(failed)} ({'names the full disk' if told else 'unnamed'}), routing"
        f" {'goes on' if routed else 'fails'}, after freeing {after or 'OK'}; acknowledged kept:"
        f" {whole}"
    )
    good = failed == {"UNAVAILABLE"} and told and routed and not after and whole
    return Case("disk full", seen, good)


def _fill(filler: Path) -> None:
    with filler.open("wb", buffering=0) as file:
        for size in (65536, 4096):
            try:
                while file.write(b"x" * size) == size:
                    pass
            except OSError:
                pass


def read_only(folder: Path) -> Case:
    """A store on a file system that may not be written."""
    with small_disk(folder) as disk:
        if disk is None:
            return Case("read-only store", "not run: mounting a tmpfs needs root", good=False)
        with serving(disk / "s.sqlite"):
            pass
        before = (disk / "s.sqlite").read_bytes()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        server = launch(folder / "x.sqlite", "--candidates-db", str(disk / "s.sqlite"))
        status = server.process.wait(60)
        lines = [x for x in server.printed().splitlines() if x.startswith("error:")]
        same = (disk / "s.sqlite").read_bytes() == before
    seen = f"start ends with status {status}: {_short(lines)}; file unchanged: {same}"
    return Case("read-only store", seen, status == 1 and len(lines) == 1 and same)


def deleted(folder: Path) -> Case:
    """The store's file is removed under the server, then a backup restored."""
    store, copy = folder / "s.sqlite", folder / "copy.sqlite"
    with serving(store) as server, Client(server.address) as client:
        client.create_candidate(new("before"))
        back_up(str(store), copy)
        store.unlink()
        code, message = refusal(client, "during")
        routed = routes(client)
    revision = restore(str(store), copy)
    with serving(store) as server, Client(server.address) as client:
        ids = {c.id for c in client.list_candidates()}
        after = refusal(client, "after")[0]
    whole = "before" in ids and "during" not in ids
    seen = (
        f"changes {code} ({'says removed' if 'was removed' in message else message}), routing"
        f" {'goes on' if routed else 'fails'}; restored at revision {revision}, acknowledged kept:"
        f" {whole}"
    )
    good = code == "UNAVAILABLE" and "was removed" in message and routed and whole and not after
    return Case("store file deleted", seen, good)


def corrupt(folder: Path) -> Case:
    """Pages of the store's file are overwritten while nobody serves it."""
    store = folder / "s.sqlite"
    with serving(store):
        pass
    raw = bytearray(store.read_bytes())
    raw[4096 : len(raw) // 2] = b"\xa5" * (len(raw) // 2 - 4096)
    store.write_bytes(raw)
    status, lines = start_fails(store)
    same = store.read_bytes() == bytes(raw)
    seen = f"start ends with status {status}: {_short(lines)}; file unchanged: {same}"
    return Case("corrupt store", seen, status == 1 and len(lines) == 1 and same)


def _short(lines: list[str]) -> str:
    return f"{lines[0][:90]}..." if lines else "nothing said"
