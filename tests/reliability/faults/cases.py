"""What goes wrong around a server, one case each: what was seen, and whether it is documented so.

Every case runs the whole server, routes while the fault lasts, and checks at the end that every
acknowledged change is there.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import grpc

from engine.pb import router_service_pb2, router_service_pb2_grpc
from engine.registry.stores.base import Change
from engine.registry.stores.sqlite import SqliteStore
from engine.serving import components
from engine.serving.server import AuthConfig, start_server
from engine.serving.settings import Settings
from engine.serving.telemetry import Telemetry
from modelsat import Client, ModelsatClientError
from tests.reliability.faults.case import Case, refusal, routes
from tests.reliability.faults.files import corrupt, deleted, disk_full, read_only
from tests.support.postgres import postgres
from tools.processes import BUNDLE, ROOT, Server, await_ready, launch


def database_restarts(folder: Path) -> Case:
    """PostgreSQL is killed for two seconds while one thread routes and one registers."""
    with postgres() as database:
        url = ["--candidates-db", database.url()]
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
        found = {c.id for c in client.list_candidates()}
    server.kill()
    return found


def clock_jumps(folder: Path) -> Case:
    """The clock goes back ten years between two changes."""
    store = SqliteStore(folder / "s.sqlite", "encoder", 1)
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

    def prefetch_table(self, embeddings: Any) -> None:
        """As the backend's."""
        self._backend.prefetch_table(embeddings)

    def describe(self) -> str:
        """As the backend's."""
        return str(self._backend.describe())


def backend_raises(folder: Path) -> Case:
    """The forward pass raises for some requests."""
    return asyncio.run(_backend_raises(folder))


async def _backend_raises(folder: Path) -> Case:
    backends: list[Failing] = []
    real = components.open_backend

    def opened(*arguments: Any) -> Any:
        backends.append(Failing(real(*arguments)))
        return backends[-1]

    settings = Settings(
        bundle=BUNDLE,
        address="127.0.0.1:0",
        candidates_db=str(folder / "s.sqlite"),
        outcomes_db=folder / "outcomes.sqlite",
        score_cache_mb=0,
    )
    with mock.patch.object(components, "open_backend", opened):
        parts = components.build(settings, Telemetry())
    running = await start_server(parts, AuthConfig(None, None))
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


CASES = (
    disk_full,
    read_only,
    deleted,
    corrupt,
    database_restarts,
    clock_jumps,
    backend_raises,
)
