"""What goes wrong around a server, one case each: what was seen, and whether it is documented so.

Every case runs the whole server, routes while the fault lasts, and checks at the end that every
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

from bench.kill_rounds import ZOO
from bench.postgres import postgres
from bench.process import BUNDLE, ROOT, Server, await_ready, launch, serving
from engine.client import Client, ModelsatClientError
from engine.contract.candidate import Candidate
from engine.pb import router_service_pb2, router_service_pb2_grpc
from engine.registry.backup import back_up, restore
from engine.registry.sqlite_store import SqliteStore
from engine.registry.store import Change
from engine.serving import assembly
from engine.serving.server import Guard, start_server
from engine.serving.settings import Settings
from engine.serving.telemetry import Telemetry


@dataclass(frozen=True)
class Case:
    """good: whether what was seen is what docs/operations.md says."""

    fault: str
    seen: str
    good: bool


def new(identifier: str) -> Candidate:
    """A candidate to register."""
    return replace(ZOO[0], id=identifier)


def refusal(client: Client, identifier: str) -> tuple[str, str]:
    """(status, message) of an attempt to register; empty where it went well."""
    try:
        client.add(new(identifier))
    except ModelsatClientError as error:
        return error.code, str(error)
    return "", ""


def routes(client: Client) -> bool:
    """Whether an instruction is routed."""
    return bool(client.route("Is it still there?").selected)


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
            client.add(new("before"))
            filler = disk / "filler"
            _fill(filler)
            codes = [refusal(client, f"during-{i}") for i in range(40)]
            failed = {code for code, _ in codes if code}
            told = any("disk is full" in message for _, message in codes)
            routed = routes(client)
            filler.unlink()
            after = refusal(client, "after")[0]
            expected = {c.id for c in client.candidates()}
            made = {f"during-{i}" for i, (code, _) in enumerate(codes) if not code}
            server.kill()
        with serving(disk / "s.sqlite") as server, Client(server.address) as client:
            kept = {c.id for c in client.candidates()}
    whole = kept == expected == {*(c.id for c in ZOO), "before", "after", *made}
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
        server = launch(folder / "x.sqlite", "--store", str(disk / "s.sqlite"))
        status = server.process.wait(60)
        lines = [x for x in server.printed().splitlines() if x.startswith("error:")]
        same = (disk / "s.sqlite").read_bytes() == before
    seen = f"start ends with status {status}: {_short(lines)}; file unchanged: {same}"
    return Case("read-only store", seen, status == 1 and len(lines) == 1 and same)


def deleted(folder: Path) -> Case:
    """The store's file is removed under the server, then a backup restored."""
    store, copy = folder / "s.sqlite", folder / "copy.sqlite"
    with serving(store) as server, Client(server.address) as client:
        client.add(new("before"))
        back_up(str(store), copy)
        store.unlink()
        code, message = refusal(client, "during")
        routed = routes(client)
    revision = restore(str(store), copy)
    with serving(store) as server, Client(server.address) as client:
        ids = {c.id for c in client.candidates()}
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


def database_restarts(folder: Path) -> Case:
    """PostgreSQL is killed for two seconds while one thread routes and one registers."""
    with postgres() as database:
        url = ["--store", database.url()]
        server = await_ready(launch(folder / "x.sqlite", *url))
        failed_routes: list[str] = []
        made, refused, back = [], set(), [0.0]
        stop = threading.Event()

        def route() -> None:
            with Client(server.address, timeout_s=30) as client:
                while not stop.is_set():
                    try:
                        routes(client)
                    except ModelsatClientError as error:
                        failed_routes.append(error.code)

        def register() -> None:
            with Client(server.address, timeout_s=30) as client:
                for i in range(900):
                    code, _ = refusal(client, f"c{i}")
                    refused.update({code} - {""})
                    made.extend([f"c{i}"] * (not code))
                    if not code and refused and not back[0]:
                        back[0] = time.monotonic()
                    if stop.wait(0.02):
                        return

        threads = [threading.Thread(target=work) for work in (route, register)]
        for thread in threads:
            thread.start()
        time.sleep(2)
        database.kill()
        time.sleep(2)
        database.start()
        up = time.monotonic()
        time.sleep(2)
        stop.set()
        for thread in threads:
            thread.join()
        server.kill()
        kept = _ids(await_ready(launch(folder / "x.sqlite", *url)))
    lost = set(made) - kept
    delay = back[0] - up
    seen = (
        f"{len(failed_routes)} routes failed, changes {sorted(refused)}, accepted again"
        f" {max(delay, 0):.1f} s after it was back; {len(made)} acknowledged, {len(lost)} lost"
    )
    good = not failed_routes and refused == {"UNAVAILABLE"} and back[0] > 0 and not lost
    return Case("PostgreSQL killed and restarted", seen, good)


def _ids(server: Server) -> set[str]:
    with Client(server.address) as client:
        found = {c.id for c in client.candidates()}
    server.kill()
    return found


def clock_jumps(folder: Path) -> Case:
    """The clock goes back ten years between two changes."""
    store = SqliteStore(folder / "s.sqlite", "encoder", (1, 1))
    now, orders = time.time_ns(), []
    for number, jump in enumerate((0, -10, 5, -20)):
        with mock.patch("time.time_ns", return_value=now + jump * 365 * 86400 * 10**9):
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
    seen = f"revisions stay in order: {ordered}; the wall clock is read at {', '.join(uses)} only"
    return Case("clock jumps", seen, ordered)


class Failing:
    """A backend that raises while `broken`."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self.broken = False

    def probabilities(self, *arguments: Any) -> Any:
        """As the backend's, or an error."""
        if self.broken:
            raise RuntimeError("the device is gone")
        return self._backend.probabilities(*arguments)

    def prepare(self, embeddings: Any) -> None:
        """As the backend's."""
        self._backend.prepare(embeddings)

    def describe(self) -> str:
        """As the backend's."""
        return str(self._backend.describe())


def backend_raises(folder: Path) -> Case:
    """The forward pass raises for some requests."""
    return asyncio.run(_backend_raises(folder))


async def _backend_raises(folder: Path) -> Case:
    backends: list[Failing] = []
    real = assembly.open_backend

    def opened(*arguments: Any) -> Any:
        backends.append(Failing(real(*arguments)))
        return backends[-1]

    settings = Settings(
        bundle=BUNDLE,
        address="127.0.0.1:0",
        store=str(folder / "s.sqlite"),
        outcomes=folder / "outcomes.sqlite",
        cache_mb=0,
    )
    with mock.patch.object(assembly, "open_backend", opened):
        parts = assembly.load(settings, Telemetry())
    running = await start_server(parts, Guard(None, None))
    codes: list[str] = []
    async with grpc.aio.insecure_channel(running.listeners[0].address) as channel:
        stub = router_service_pb2_grpc.RouterServiceStub(channel)
        for number in range(9):
            backends[0].broken = number % 3 == 1
            try:
                await stub.Route(router_service_pb2.RouteRequest(text=f"What is {number}?"))
                codes.append("OK")
            except grpc.aio.AioRpcError as error:
                codes.append(error.code().name)
    await running.stop(1)
    good = codes == ["OK", "UNAVAILABLE", "OK"] * 3
    return Case("backend raises", f"every second of three requests: {' '.join(codes)}", good)


def _short(lines: list[str]) -> str:
    return f"{lines[0][:90]}..." if lines else "nothing said"


CASES = (
    disk_full,
    read_only,
    deleted,
    corrupt,
    database_restarts,
    clock_jumps,
    backend_raises,
)
