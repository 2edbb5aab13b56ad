"""Chunks on the cores of this machine: a process for each, since a forward on one thread wastes
nothing and equals itself whatever the number of processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager

from engine.contract.errors import UnavailableError
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
