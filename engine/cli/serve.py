"""`modelsat serve`: start the routing server."""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

# Before NumPy is loaded. Its products are small here, and OpenBLAS's other threads would wait for
# the next one by spinning, on the cores of the forward pass: 120 requests a second at 8
# connections instead of 192.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from engine.serving.settings import Settings, flag, resolve

M_ARENA_MAX, ARENAS = -8, 2
MOST_IN_USAGE = 5  # names of a setting
log = logging.getLogger(__name__)
METAVARS = {int: "N", float: "X", str: "TEXT"}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add a flag for every setting."""
    command.add_argument(
        "--config",
        metavar="FILE",
        help="TOML file of settings; flags and MODELSAT_* variables override it",
    )
    for f in fields(Settings):
        default = f.default
        options: dict[str, Any] = (
            {"action": "store_const", "const": "true"} if default is False else {}
        )
        text = f.metadata["about"]
        if among := f.metadata["among"]:
            short = len(among) <= MOST_IN_USAGE  # more would make a line of the usage too long
            options["metavar"] = "{" + ",".join(among) + "}" if short else "NAME"
            text += "" if short else f" One of {', '.join(among)}."
        elif default is not False:
            options["metavar"] = METAVARS.get(type(default), "PATH")
        text += f" (default {default})" if default and str(default) != "." else ""
        command.add_argument(flag(f.name), dest=f.name, help=text, **options)
    command.set_defaults(run=_run)


def _limit_arenas() -> None:
    """Let glibc's malloc keep freed memory in few places: gRPC's threads free what they received,
    and every arena would keep its own."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)


def _run(parsed: argparse.Namespace) -> None:
    from engine.serving import shutdown
    from engine.serving.event_loop import OverloadSelector
    from engine.serving.server import serve
    from engine.serving.telemetry import logs

    _limit_arenas()
    config = Path(parsed.config or os.environ.get("MODELSAT_CONFIG", ""))
    flags = {f.name: getattr(parsed, f.name) for f in fields(Settings)}
    resolved = resolve(flags, os.environ, config)
    logs.configure(resolved.settings.log_format, resolved.settings.log_level)
    print(f"Non-default settings:\n{resolved.table()}", flush=True)
    given = [name for name, source in resolved.sources.items() if source != "default"]
    idle = [flag(name) for name in given if name.startswith("extproc_")]
    if idle and not resolved.settings.extproc_address:
        log.warning("without --extproc-address, %s have no effect", ", ".join(idle))
    selector = OverloadSelector()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        executor = ThreadPoolExecutor(thread_name_prefix="worker")
        runner.get_loop().set_default_executor(executor)
        runner.run(serve(resolved.settings, selector))
        shutdown.leave_hung_threads(executor)
