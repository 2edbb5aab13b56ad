"""Count the project's own files and functions that one request goes through on a running server.

    python -m tools.count_calls [--list]

A server runs in this process, on loopback. For Route, an ext_proc request and CreateCandidate, one
request warms it up and the next one is observed in every thread. Printed are a table and, as the
last line, the same figures as JSON. Of each request:

- files: distinct files of engine/ and cpp_ext/ in which at least one function was called.
- functions: distinct functions (code objects) that were called. Properties, generators and lambdas
  count, and so does a comprehension where the interpreter calls it (before Python 3.12).
- changes of file: in the order in which the functions were first called, how often one stands in
  another file than the one before it.
- calls: all of them; a coroutine or generator that is resumed counts again.

What an idle server calls too (the event loop's selector, the watch over stalls) and the code that
is generated from the protos are left out.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import grpc

from engine.pb import (
    candidate_service_pb2,
    candidate_service_pb2_grpc,
    router_service_pb2,
    router_service_pb2_grpc,
)
from engine.pb import external_processor_pb2 as extproc_pb
from engine.pb import external_processor_pb2_grpc as extproc_grpc

ROOT = Path(router_service_pb2.__file__).resolve().parents[2]
OWN = tuple(f"{ROOT}/{folder}/" for folder in ("engine", "cpp_ext"))
GENERATED = f"{ROOT}/engine/pb/"
LOOPBACK = "127.0.0.1:0"
TIMEOUT_S = 60.0
IDLE_S = 6.0  # longer than the period of whatever an idle server does
SETTLED_S = 0.4  # counters and spans are written when the answer is gone
Action = Callable[[], object]
FIGURES = ("files", "functions", "changes_of_file", "calls")


@dataclass
class Observer:
    """Notes every call of the project's own functions while it is on, in every thread but those in
    `left_out` (identifiers)."""

    on: bool = False
    left_out: set[int] = field(default_factory=set)
    called: list[CodeType] = field(default_factory=list)

    def install(self) -> None:
        """Observe this thread and all that are started from now on."""
        threading.setprofile(self._event)
        sys.setprofile(self._event)

    def during(self, action: Action) -> list[CodeType]:
        """Return the functions that are called while `action` runs and shortly after, in order."""
        self.called, self.on = [], True
        action()
        time.sleep(SETTLED_S)
        self.on = False
        return self.called

    def _event(self, frame: FrameType, event: str, _: Any) -> None:
        if not self.on or event != "call" or threading.get_ident() in self.left_out:
            return
        file = frame.f_code.co_filename
        if file.startswith(OWN) and not file.startswith(GENERATED):
            self.called.append(frame.f_code)


class Output(io.TextIOBase):
    """The server's standard output, searched for what its ready line tells."""

    def __init__(self) -> None:
        self._text = ""
        self.ready = threading.Event()

    def write(self, text: str) -> int:
        """Keep `text`."""
        self._text += text
        if re.search(r"^ready on .*\n", self._text, re.MULTILINE):
            self.ready.set()
        return len(text)

    def addresses(self) -> tuple[str, str]:
        """Return HOST:PORT of RouterService and of ext_proc; raises RuntimeError if none comes."""
        self.ready.wait(TIMEOUT_S)
        found = re.search(r"^ready on (\S+):.*ext_proc on (\S+)", self._text, re.MULTILINE)
        if found is None:
            raise RuntimeError(f"the server was not ready:\n{self._text}")
        return found[1], found[2]


def figures(called: list[CodeType]) -> dict[str, int]:
    """Return FIGURES of one request's calls."""
    files = [function.co_filename for function in dict.fromkeys(called)]
    changes = sum(before != after for before, after in pairwise(files))
    return dict(zip(FIGURES, (len(set(files)), len(files), changes, len(called)), strict=True))


def requests(address: str, extproc_address: str) -> dict[str, Callable[[int], Action]]:
    """Return what prepares a request of each kind; its argument makes it another one each time, so
    that it is not answered from what is known of the one before."""
    router = router_service_pb2_grpc.RouterServiceStub(grpc.insecure_channel(address))
    candidates = candidate_service_pb2_grpc.CandidateServiceStub(grpc.insecure_channel(address))
    gateway = extproc_grpc.ExternalProcessorStub(grpc.insecure_channel(extproc_address))

    def route(i: int) -> Action:
        request = router_service_pb2.RouteRequest(text=f"What is {i} plus {i}?")
        return lambda: router.Route(request, timeout=TIMEOUT_S)

    def ext_proc(i: int) -> Action:
        content = {"model": "auto", "messages": [{"role": "user", "content": f"Double {i}."}]}
        headers, body = extproc_pb.ProcessingRequest(), extproc_pb.ProcessingRequest()
        headers.protocol_config.request_body_mode = extproc_pb.BUFFERED
        for key, value in ((":path", "/v1/chat/completions"), ("content-type", "application/json")):
            headers.request_headers.headers.headers.add(key=key, raw_value=value.encode())
        body.request_body.body = json.dumps(content).encode()
        body.request_body.end_of_stream = True
        return lambda: list(gateway.Process(iter([headers, body]), timeout=TIMEOUT_S))

    def create(i: int) -> Action:
        first = candidate_service_pb2.ListCandidatesRequest(page_size=1)
        known = candidates.ListCandidates(first, timeout=TIMEOUT_S).candidates[0]
        request = candidate_service_pb2.CreateCandidateRequest(candidate_id=f"counted-{i}")
        request.candidate.CopyFrom(known)
        request.candidate.name = request.candidate.etag = ""
        return lambda: candidates.CreateCandidate(request, timeout=TIMEOUT_S)

    return {"Route": route, "ext_proc": ext_proc, "CreateCandidate": create}


def observe(observer: Observer, output: Output, found: dict[str, list[CodeType]]) -> None:
    """Fill `found` with the calls that each kind of request sets off, then end the server."""
    observer.left_out.add(threading.get_ident())
    try:
        kinds = requests(*output.addresses())
        for prepare in kinds.values():
            prepare(1)()
        time.sleep(SETTLED_S)
        idle = set(observer.during(lambda: time.sleep(IDLE_S)))
        for name, prepare in kinds.items():
            action = prepare(2)
            time.sleep(SETTLED_S)
            found[name] = [each for each in observer.during(action) if each not in idle]
    finally:
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Run the server in this thread, which must be the main one, and the requests in another."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    bundle = ROOT / "artifacts" / "bundle"
    parser.add_argument("--bundle", default=str(bundle), help="the bundle to serve (%(default)s)")
    parser.add_argument("--list", action="store_true", help="list the functions, too")
    parsed = parser.parse_args()
    observer, output = Observer(), Output()
    found: dict[str, list[CodeType]] = {}
    observer.install()
    command = importlib.import_module("engine.cli.main")  # after install(), to observe its threads
    threading.Thread(target=observe, args=(observer, output, found), daemon=True).start()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(output):
        flags = {"--bundle": parsed.bundle, "--address": LOOPBACK, "--extproc-address": LOOPBACK}
        flags["--candidates-db"] = f"{folder}/store.sqlite"
        flags["--outcomes-db"] = f"{folder}/outcomes.sqlite"
        flags["--log-level"] = "warning"
        command.main(["serve", *(part for pair in flags.items() for part in pair)])
    _print(found, parsed.list)


def _print(found: dict[str, list[CodeType]], listed: bool) -> None:
    print(f"{'':18}" + "".join(f"{name.replace('_', ' '):>17}" for name in FIGURES))
    for name, called in found.items():
        print(f"{name:18}" + "".join(f"{value:17}" for value in figures(called).values()))
        for each in dict.fromkeys(called) if listed else ():
            place = f"{Path(each.co_filename).relative_to(ROOT)}:{each.co_firstlineno}"
            print(f"    {place:55} {each.co_qualname}")
    print(json.dumps({name: figures(called) for name, called in found.items()}))


if __name__ == "__main__":
    main()
