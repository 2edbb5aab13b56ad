"""Faults around a server, one function each: what happened, and whether it was as documented.

Each case runs the whole server, routes during the fault, and checks at the end that every
acknowledged change is there.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import grpc

from engine.api.candidate import Candidate
from engine.pb import router_service_pb2, router_service_pb2_grpc
from engine.registry.stores.backup import back_up, restore
from engine.registry.stores.base import Change
from engine.registry.stores.sqlite import SqliteStore
from engine.serving import components
from engine.serving.server import AuthConfig, start_server
from engine.serving.settings import Settings
from engine.serving.telemetry import Telemetry
from modelsat import Client, ModelsatClientError
from tests.reliability.crash_recovery import CATALOG
from tests.support.postgres import postgres
from tools.processes import BUNDLE, ROOT, await_ready, launch, serving

NEEDS_ROOT = "not run: mounting a tmpfs needs root"


@dataclass(frozen=True)
class Case:
    """The result of one fault. passed: observed is what docs/how-to/operate.md says."""

    fault: str
    observed: str
    passed: bool


def disk_full(folder: Path) -> Case:
    """Fill the store's file system while changes arrive, then free it."""
    with small_disk(folder) as disk:
        if disk is None:
            return Case("disk full", NEEDS_ROOT, passed=False)
        with serving(disk / "s.sqlite") as server, Client(server.address, timeout_s=30) as client:
            client.create_candidate(new("before"))
            filler = disk / "filler"
            fill(filler)
            attempts = [try_create(client, f"during-{i}") for i in range(40)]
            codes = {code for code, _ in attempts if code}
            explained = any("disk is full" in message for _, message in attempts)
            routed = routes(client)
            filler.unlink()
            after, _ = try_create(client, "after")
            listed = {c.id for c in client.list_candidates()}
            created = {f"during-{i}" for i, (code, _) in enumerate(attempts) if not code}
            server.kill()
        with serving(disk / "s.sqlite") as server, Client(server.address) as client:
            restarted = {c.id for c in client.list_candidates()}
    complete = restarted == listed == {*(c.id for c in CATALOG), "before", "after", *created}
    observed = (
        f"changes {sorted(codes)} ({'names the full disk' if explained else 'not explained'}),"
        f" routing {'continues' if routed else 'fails'}, after freeing {after or 'OK'};"
        f" acknowledged changes kept: {complete}"
    )
    passed = codes == {"UNAVAILABLE"} and explained and routed and not after and complete
    return Case("disk full", observed, passed)


def read_only(folder: Path) -> Case:
    """Start on a store whose file system is mounted read-only."""
    with small_disk(folder) as disk:
        if disk is None:
            return Case("read-only store", NEEDS_ROOT, passed=False)
        store = disk / "s.sqlite"
        with serving(store):
            pass
        before = store.read_bytes()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        return start_fails("read-only store", folder, store, before)


def deleted(folder: Path) -> Case:
    """Delete the store's file under the server, then restore a backup."""
    store, copy = folder / "s.sqlite", folder / "copy.sqlite"
    with serving(store) as server, Client(server.address) as client:
        client.create_candidate(new("before"))
        back_up(str(store), copy)
        store.unlink()
        code, message = try_create(client, "during")
        routed = routes(client)
    revision = restore(str(store), copy)
    with serving(store) as server, Client(server.address) as client:
        ids = {c.id for c in client.list_candidates()}
        after, _ = try_create(client, "after")
    complete = "before" in ids and "during" not in ids
    explained = "was removed" in message
    observed = (
        f"changes {code} ({'says removed' if explained else message}), routing"
        f" {'continues' if routed else 'fails'}; restored at revision {revision}, acknowledged"
        f" changes kept: {complete}"
    )
    passed = code == "UNAVAILABLE" and explained and routed and complete and not after
    return Case("store file deleted", observed, passed)


def corrupt(folder: Path) -> Case:
    """Overwrite pages of the store's file while no server uses it."""
    store = folder / "s.sqlite"
    with serving(store):
        pass
    raw = bytearray(store.read_bytes())
    raw[4096 : len(raw) // 2] = b"\xa5" * (len(raw) // 2 - 4096)
    store.write_bytes(raw)
    return start_fails("corrupt store", folder, store, bytes(raw))


def database_restarts(folder: Path) -> Case:
    """Kill PostgreSQL for two seconds while one thread routes and one creates candidates."""
    with postgres() as database:
        url = ["--candidates-db", database.url()]
        server = await_ready(launch(folder / "x.sqlite", *url))
        failed_routes: list[str] = []
        created: set[str] = set()
        codes: set[str] = set()
        recovered_at = 0.0
        stop = threading.Event()

        def route() -> None:
            with Client(server.address, timeout_s=30) as client:
                while not stop.is_set():
                    try:
                        routes(client)
                    except ModelsatClientError as error:
                        failed_routes.append(error.code)

        def create() -> None:
            nonlocal recovered_at
            with Client(server.address, timeout_s=30) as client:
                for i in range(900):
                    code, _ = try_create(client, f"c{i}")
                    if code:
                        codes.add(code)
                    else:
                        created.add(f"c{i}")
                        if codes and not recovered_at:
                            recovered_at = time.monotonic()
                    if stop.wait(0.02):
                        return

        threads = [threading.Thread(target=work) for work in (route, create)]
        for thread in threads:
            thread.start()
        time.sleep(2)
        database.kill()
        time.sleep(2)
        database.start()
        started_at = time.monotonic()
        time.sleep(2)
        stop.set()
        for thread in threads:
            thread.join()
        server.kill()
        server = await_ready(launch(folder / "x.sqlite", *url))
        with Client(server.address) as client:
            lost = created - {c.id for c in client.list_candidates()}
        server.kill()
    observed = (
        f"{len(failed_routes)} routes failed, changes {sorted(codes)}, accepted again"
        f" {max(recovered_at - started_at, 0):.1f} s after the database; {len(created)}"
        f" acknowledged, {len(lost)} lost"
    )
    passed = not failed_routes and codes == {"UNAVAILABLE"} and recovered_at > 0 and not lost
    return Case("PostgreSQL killed and restarted", observed, passed)


def clock_jumps(folder: Path) -> Case:
    """Set the clock back ten years between two changes."""
    store = SqliteStore(folder / "s.sqlite", "encoder", 1)
    now, orders = time.time_ns(), []
    for number, years in enumerate((0, -10, 5, -20)):
        with mock.patch("time.time_ns", return_value=now + years * 365 * 86400 * 10**9):
            store.apply(Change(), number, "nothing")
        orders.append([r.number for r in store.revisions(None, 9)])
    store.close()
    uses = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / "engine").rglob("*.py"))
        for line, text in enumerate(path.read_text("utf-8").splitlines(), 1)
        if re.search(r"\btime\.time(_ns)?\(|datetime\.now|utcnow", text)
    ]
    ordered = orders[-1] == [4, 3, 2, 1]
    observed = f"revisions stay in order: {ordered}; wall clock read at {', '.join(uses)} only"
    return Case("clock jumps", observed, ordered)


def backend_raises(folder: Path) -> Case:
    """Let the forward pass raise for one of three requests."""
    return asyncio.run(_backend_raises(folder))


async def _backend_raises(folder: Path) -> Case:
    settings = Settings(
        bundle=BUNDLE,
        address="127.0.0.1:0",
        candidates_db=str(folder / "s.sqlite"),
        outcomes_db=str(folder / "outcomes.sqlite"),
        score_cache_mb=0,
    )
    built = components.build(settings, Telemetry())
    backend = built.backend
    score, broken = backend.probabilities, False

    def probabilities(*arguments: Any) -> Any:
        if broken:
            raise RuntimeError("the device is gone")
        return score(*arguments)

    codes: list[str] = []
    with mock.patch.object(backend, "probabilities", probabilities):
        running = await start_server(built, AuthConfig(None, None))
        async with grpc.aio.insecure_channel(running.listeners[0].address) as channel:
            stub = router_service_pb2_grpc.RouterServiceStub(channel)
            for number in range(9):
                broken = number % 3 == 1
                try:
                    await stub.Route(router_service_pb2.RouteRequest(text=f"What is {number}?"))
                    codes.append("OK")
                except grpc.aio.AioRpcError as error:
                    codes.append(error.code().name)
        await running.stop(1)
    passed = codes == ["OK", "UNAVAILABLE", "OK"] * 3
    return Case("backend raises", f"for every second of three requests: {' '.join(codes)}", passed)


CASES = (
    disk_full,
    read_only,
    deleted,
    corrupt,
    database_restarts,
    clock_jumps,
    backend_raises,
)


def new(identifier: str) -> Candidate:
    """Return a candidate to create."""
    return replace(CATALOG[0], id=identifier)


def try_create(client: Client, identifier: str) -> tuple[str, str]:
    """Create a candidate; return the status code and message of the error, both empty without."""
    try:
        client.create_candidate(new(identifier))
    except ModelsatClientError as error:
        return error.code, str(error)
    return "", ""


def routes(client: Client) -> bool:
    """Return whether an instruction is routed to a candidate."""
    return bool(client.route("Is it still there?").selected)


def start_fails(fault: str, folder: Path, store: Path, content: bytes) -> Case:
    """Start on a broken store: one error line, status 1, and the file (`content`) as it was."""
    server = launch(folder / "x.sqlite", "--candidates-db", str(store))
    status = server.process.wait(60)
    printed = server.printed()
    errors = [line for line in printed.splitlines() if line.startswith("error:")]
    unchanged = store.read_bytes() == content
    reason = f"{errors[0][:90]}..." if errors else "no error line"
    observed = f"start ends with status {status}: {reason}; file unchanged: {unchanged}"
    clean = len(errors) == 1 and "Traceback" not in printed
    return Case(fault, observed, status == 1 and clean and unchanged)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """Mount a file system of 4 MB; None without the right to mount."""
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


def fill(filler: Path) -> None:
    """Write until the file system has no byte left."""
    with filler.open("wb", buffering=0) as file:
        for size in (65536, 4096):
            try:
                while file.write(b"x" * size) == size:
                    pass
            except OSError:
                pass
