"""Chunks on the cores of this machine: a process for each, since a forward on one thread wastes
nothing and equals itself whatever the number of processes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from engine.api.errors import InvalidInputError, ModelsatError, UnavailableError, Violation
from engine.replay.scoring import Done, Plan, Work, Worker

# Answers come as they are ready, in any order. At most a few chunks are taken ahead of them.
Execute = Callable[[Iterable[Work]], Iterator[Done]]
AHEAD = 2  # chunks a worker, so that none waits for the reader
_worker: Worker | None = None


def cores() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0))


def on_this_machine(plan: Plan, workers: int) -> AbstractContextManager[Execute]:
    """An Execute on `workers` processes, 0 = one per core."""
    return _processes(plan, workers or cores())


@contextmanager
def _processes(plan: Plan, workers: int) -> Iterator[Execute]:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, _begin, (plan,)) as pool:

        def execute(works: Iterable[Work]) -> Iterator[Done]:
            running: set[Future[Done]] = set()
            try:
                for work in works:
                    running.add(pool.submit(_do, work))
                    if len(running) >= AHEAD * workers:
                        finished, running = wait(running, return_when=FIRST_COMPLETED)
                        yield from (f.result() for f in finished)
                while running:
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (f.result() for f in finished)
            except BrokenProcessPool as error:
                raise UnavailableError(
                    "A worker process ended before its chunk was done (see above; a process killed"
                    " for memory says nothing). Run the same command again: it goes on from there."
                ) from error
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

        yield execute


def _begin(plan: Plan) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the pool
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = Worker(plan)


def _end_with_parent() -> None:
    """A parent killed with -9 cannot end its workers, and they would wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do(work: Work) -> Done:
    assert _worker is not None
    return _worker.do(work)


RETRIES = 3  # of a chunk, and restarts of an actor
STORE_BYTES = 128 << 20  # of a cluster started here: chunks are small
LOCAL = "local"
CONNECT_S = 5.0


@contextmanager
def on_ray(plan: Plan, address: str, workers: int) -> Iterator[Execute]:
    """An Execute on the cluster at `address`; LOCAL starts one here for as long as it is needed.

    workers: actors, 0 = one for each core of the cluster. Every node needs this package and the
    bundle under the same path. Raises InvalidInputError where there is no such cluster.
    """
    ray = _connected(address, workers)
    try:
        count = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        kind = ray.remote(num_cpus=1, max_restarts=RETRIES, max_task_retries=RETRIES)(Worker)
        actors = [kind.remote(plan) for _ in range(count)]
        yield lambda works: _execute(ray, actors, works)
    finally:
        ray.shutdown()


def _connected(address: str, workers: int) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is to be sent anywhere
    try:
        import ray
    except ImportError as error:
        raise InvalidInputError(
            Violation("--ray", "needs ray, which is not installed; pip install '.[ray]'.")
        ) from error
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address == LOCAL:
            ray.init(
                address=LOCAL,
                num_cpus=workers or cores(),
                num_gpus=0,
                include_dashboard=False,
                object_store_memory=STORE_BYTES,
                _node_ip_address="127.0.0.1",
                **quiet,
            )
        else:
            _require_listener(address)
            ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidInputError(
            Violation("--ray", f"reaches no cluster at {address!r} ({error}).")
        ) from error
    return ray


def _require_listener(address: str) -> None:
    """Ray itself tries for minutes where nobody listens. Raises OSError."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdecimal():
        socket.create_connection((host, int(port)), CONNECT_S).close()


def _execute(ray: Any, actors: list[Any], works: Iterable[Work]) -> Iterator[Done]:
    free = deque(actor for _ in range(AHEAD) for actor in actors)
    running: dict[Any, Any] = {}

    def next_done() -> Done:
        (ready, *_), _ = ray.wait(list(running), num_returns=1)
        free.append(running.pop(ready))
        try:
            done: Done = ray.get(ready)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, ModelsatError):
                raise cause from error
            raise UnavailableError(
                f"Ray gave up a chunk after {RETRIES} retries ({error}). Run the same command"
                " again: it goes on from there."
            ) from error
        return done

    for work in works:
        if not free:
            yield next_done()
        actor = free.popleft()
        running[actor.do.remote(work)] = actor
    while running:
        yield next_done()
