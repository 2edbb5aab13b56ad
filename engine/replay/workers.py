"""Run chunks on worker processes of this machine, or on a Ray cluster.

Each process scores on one thread: that wastes nothing, and gives the same numbers whatever the
number of processes.
"""

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
from engine.replay.scoring import ChunkResult, ChunkTask, ReplayJob, Worker

# Results come as they are ready, in any order. At most a few tasks are taken ahead of them.
Execute = Callable[[Iterable[ChunkTask]], Iterator[ChunkResult]]
AHEAD = 2  # tasks per worker, so that none waits for the reader
_worker: Worker | None = None


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def local_pool(job: ReplayJob, workers: int) -> AbstractContextManager[Execute]:
    """Run tasks on `workers` processes of this machine; 0 means one per core."""
    return _processes(job, workers or cores())


@contextmanager
def _processes(job: ReplayJob, workers: int) -> Iterator[Execute]:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, _begin, (job,)) as pool:

        def execute(tasks: Iterable[ChunkTask]) -> Iterator[ChunkResult]:
            running: set[Future[ChunkResult]] = set()
            try:
                for task in tasks:
                    running.add(pool.submit(_process, task))
                    if len(running) >= AHEAD * workers:
                        finished, running = wait(running, return_when=FIRST_COMPLETED)
                        yield from (f.result() for f in finished)
                while running:
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (f.result() for f in finished)
            except BrokenProcessPool as error:
                raise UnavailableError(
                    "A worker process ended before its chunk was done (see above; a process killed"
                    " for lack of memory prints nothing). Run the same command again to continue."
                ) from error
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

        yield execute


def _begin(job: ReplayJob) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the pool
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = Worker(job)


def _end_with_parent() -> None:
    """Exit with the parent: killed with -9 it cannot stop its workers, which would wait forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _process(task: ChunkTask) -> ChunkResult:
    assert _worker is not None
    return _worker.process(task)


RETRIES = 3  # of a chunk, and restarts of an actor
STORE_BYTES = 128 << 20  # of a cluster started here: chunks are small
LOCAL = "local"
CONNECT_S = 5.0


class RayWorker(Worker):
    """A Worker whose job is in Ray's object store: large arguments of an actor are lost with it."""

    def __init__(self, held: list[Any]) -> None:
        """held: the reference of the job alone; Ray resolves those outside of lists itself."""
        import ray

        super().__init__(ray.get(held[0]))


@contextmanager
def ray_cluster(job: ReplayJob, address: str, workers: int) -> Iterator[Execute]:
    """Run tasks on the Ray cluster at `address`; LOCAL starts one on this machine meanwhile.

    workers: actors; 0 means one for each core of the cluster. Every node needs this package, and
    the bundle under the same path.

    Raises:
        InvalidInputError: Ray is not installed, or there is no cluster at the address.
    """
    ray = _connected(address, workers)
    try:
        count = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        kind = ray.remote(num_cpus=1, max_restarts=RETRIES, max_task_retries=RETRIES)(RayWorker)
        held = ray.put(job)  # until the end, so that an actor that starts again still finds it
        actors = [kind.remote([held]) for _ in range(count)]
        yield lambda tasks: _execute(ray, actors, tasks)
    finally:
        ray.shutdown()


def _connected(address: str, workers: int) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # do not report usage to anyone
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
            Violation("--ray", f"cannot reach a cluster at {address!r} ({error}).")
        ) from error
    return ray


def _require_listener(address: str) -> None:
    """Raise OSError if nothing listens at the address; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdecimal():
        socket.create_connection((host, int(port)), CONNECT_S).close()


def _execute(ray: Any, actors: list[Any], tasks: Iterable[ChunkTask]) -> Iterator[ChunkResult]:
    free = deque(actor for _ in range(AHEAD) for actor in actors)
    running: dict[Any, Any] = {}

    def next_result() -> ChunkResult:
        (ready, *_), _ = ray.wait(list(running), num_returns=1)
        free.append(running.pop(ready))
        try:
            result: ChunkResult = ray.get(ready)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, ModelsatError):
                raise cause from error
            raise UnavailableError(
                f"Ray failed on a chunk after {RETRIES} retries ({error}). Run the same command"
                " again to continue."
            ) from error
        return result

    for task in tasks:
        if not free:
            yield next_result()
        actor = free.popleft()
        running[actor.process.remote(task)] = actor
    while running:
        yield next_result()
