"""The web console: pages from the package, and what they show as JSON under /api/. Reads only.

Every request is answered in its connection's thread; what needs the event loop is sent to it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import math
import re
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from http import HTTPStatus
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any, TypeVar
from urllib.parse import parse_qs

import numpy as np
from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import code_pb2

from engine.api.candidate import to_json
from engine.api.conversation.body import from_body
from engine.api.errors import InvalidInputError, UnavailableError, Violation
from engine.api.proto import conversation_to, policy_from, policy_to
from engine.api.request_context import PRINCIPAL, ROLE
from engine.bundle.manifest import weights_id
from engine.pb import router_service_pb2 as pb
from engine.registry.outcome_changes import read_position, read_recent_reports
from engine.registry.stores.base import Revision
from engine.registry.table import Table
from engine.routing.health import EVERYBODY
from engine.routing.tradeoff import curve, finite
from engine.serving.auth.interceptor import READING, ROUTING, RefusalLog, access_error, bearer_token
from engine.serving.auth.tls import Certificates
from engine.serving.auth.tokens import TokenFile
from engine.serving.components import Components, server_info
from engine.serving.console.feed import Feed
from engine.serving.console.http_server import PLAIN, HttpLimits, HttpServer, Request, Response
from engine.serving.console.learning import (
    MAX_DECISIONS,
    Region,
    curve_view,
    region_view,
    regions,
)
from engine.serving.console.outcomes import MAX_REPORTS, outcomes_view
from engine.serving.rpc.adaptation_service import served
from engine.serving.rpc.router_service import route
from engine.serving.rpc.status import HTTP_STATUS, failure_status

FILES = Path(__file__).parent / "static"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
JSON, EVENTS = "application/json", "text/event-stream"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
        " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
MAX_STREAMS = 16
MAX_REVISIONS = 100
MAX_FITS, NEIGHBORS = 100, 5  # of the learning curve; of the middle of a region
ROUTE_S, LOOP_S = 10.0, 15.0  # for a dry run; for anything of the event loop
NAME = "the web console"
Result = TypeVar("Result")
log = logging.getLogger(__name__)


class Console:
    """Listens from the start, answers from start() on. address: HOST:PORT with the port it took.

    Raises ModelsatError where it cannot listen.
    """

    def __init__(
        self,
        components: Components,
        feed: Feed,
        tokens: TokenFile | None,
        certificates: Certificates | None,
    ) -> None:
        self._components, self._feed, self._tokens = components, feed, tokens
        self._refused = RefusalLog()
        self._streams = BoundedSemaphore(MAX_STREAMS)
        self._judged: tuple[Any, dict[str, Any]] | None = None  # state of the outcomes, their view
        self._files = {f"/{file.name}": file for file in FILES.iterdir() if file.suffix in TYPES}
        self._files["/"] = self._files.pop("/index.html")
        self._api: dict[str, Callable[[Request], Response]] = {
            "GET /api/info": lambda _: _json(self._info()),
            "GET /api/candidates": lambda _: _json(candidates_view(components.registry.table())),
            "GET /api/revisions": lambda _: _json(self._revisions()),
            "GET /api/adaptation": lambda _: _json(self._on_loop(self._learned())),
            "GET /api/outcomes": lambda _: _json(self._on_loop(self._outcomes())),
            "GET /api/decisions": self._decisions,
            "POST /api/route": self._route,
        }
        settings = components.settings
        self._host, _, _ = settings.console_address.rpartition(":")
        self._names = {"localhost", self._host.lower(), *settings.console_host_names()}
        # Text in JSON may take two bytes for one: line breaks, quotes.
        limits = HttpLimits(max_body=2 * settings.max_text_bytes + 65536)
        tls = None if certificates is None else certificates.context
        self._http = HttpServer(
            settings.console_address, "--console-address", self._answer, limits, tls
        )
        self.address = f"{self._host}:{self._http.port}"
        self._scheme = "http" if tls is None else "https"

    def start(self) -> None:
        """Answer; needs the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._http.start()
        log.info("console on %s://%s/", self._scheme, self.address)

    async def stop(self) -> None:
        """Close the port and end the streams."""
        self._feed.end()
        await asyncio.to_thread(self._http.stop)

    def _answer(self, request: Request) -> Response:
        try:
            found = self._found(request)
        except Exception as error:  # noqa: BLE001 - whatever fails, the server goes on
            found = _failed(failure_status(error, NAME))
        return Response(found.status, found.content_type, found.body, {**HEADERS, **found.headers})

    def _found(self, request: Request) -> Response:
        if not self._is_ours(request.headers.get_all("Host") or []):
            return _text(HTTPStatus.FORBIDDEN, "Unexpected Host header; set --console-hosts")
        if request.method == "GET" and request.path in self._files:
            file = self._files[request.path]
            return Response(HTTPStatus.OK, TYPES[file.suffix], file.read_bytes())
        answer = self._api.get(f"{request.method} {request.path}")
        if answer is None:
            return _text(HTTPStatus.NOT_FOUND, "Not found")
        # A dry run costs a forward pass, as Route does.
        needed = ROUTING if answer == self._route else READING
        self._check_token(request, needed)
        return answer(request)

    def _is_ours(self, hosts: list[str]) -> bool:
        """A page of another site whose name was made to resolve to this address names itself in
        Host. A literal address resolves to nothing, so it may be any; other names are set."""
        if len(hosts) != 1:
            return False
        host = re.sub(r":\d*$", "", hosts[0]).strip("[]").lower()
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return host in self._names
        return True

    def _check_token(self, request: Request, needed: frozenset[str]) -> None:
        """Raises UnauthenticatedError, PermissionDeniedError."""
        PRINCIPAL.set("")  # the thread of a connection answers several requests
        ROLE.set("")
        if self._tokens is None:
            return
        headers = request.headers.get_all("Authorization") or ()
        text = bearer_token([("authorization", value) for value in headers])
        token = None if text is None else self._tokens.find(text)
        name = f"{request.path} of {NAME}"
        error = access_error(name, needed, text, token)
        if error is not None:
            self._refused.add(name, request.peer, token)
            raise error
        if token is not None:
            PRINCIPAL.set(token.name)
            ROLE.set(token.role)

    def _info(self) -> dict[str, Any]:
        components = self._components
        return message_view(server_info(components)) | {
            "waiting": components.batcher.queue_size,
            "max_queue_size": components.settings.max_queue_size,
            "shows_text": components.settings.audit_include_text,
            "willingness_to_pay_usd": finite(components.settings.willingness_to_pay_usd),
            "store_connected": components.registry.store_state.connected,
            "set_aside": components.router.health.set_aside(EVERYBODY),
        }

    def _revisions(self) -> dict[str, Any]:
        return revisions_view(
            self._on_loop(self._components.registry.revisions(None, MAX_REVISIONS))
        )

    async def _learned(self) -> dict[str, Any]:
        components = self._components
        source = components.memory.refresher
        adaptation = source.current()
        found: list[Region] = []
        if adaptation is not None:
            decisions = components.memory.recent.latest(MAX_DECISIONS)
            table = components.registry.table()
            found = await asyncio.to_thread(regions, decisions, adaptation, table)
        return {
            "served": message_view(served(source)),
            "curve": curve_view(await source.history(MAX_FITS)),
            "regions": [
                region_view(region, await source.nearest(region.center, NEIGHBORS))
                for region in found
            ],
        }

    async def _outcomes(self) -> dict[str, Any]:
        """Answer from the last view while neither outcomes nor candidates change."""
        store, table = self._components.memory.store, self._components.registry.table()
        state = await store.read(read_position), table.id
        if self._judged is None or self._judged[0] != state:
            recent = await store.read(lambda db: read_recent_reports(db, MAX_REPORTS))
            bundle = weights_id(self._components.manifest)
            self._judged = state, await asyncio.to_thread(outcomes_view, recent, table, bundle)
        return self._judged[1]

    def _route(self, request: Request) -> Response:
        # What a form of another site can send is no JSON; what is JSON, a browser asks about first.
        if request.headers.get_content_type() != JSON:
            return _text(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Unsupported Media Type: send {JSON}")
        asked = route_request(request.body)
        limit, deadline = self._components.settings.max_text_bytes, time.monotonic() + ROUTE_S
        return _json(
            route_view(self._on_loop(route(self._components.router, asked, limit, deadline)))
        )

    def _decisions(self, request: Request) -> Response:
        if not self._streams.acquire(blocking=False):
            words = f"Too many live viewers (limit {MAX_STREAMS})"
            return _text(HTTPStatus.SERVICE_UNAVAILABLE, words)
        after = parse_qs(request.query).get("after", [""])[0]
        known = int(after) if after.isascii() and after.isdigit() and len(after) < 16 else 0
        return Response(HTTPStatus.OK, EVENTS, _Stream(self._feed.events(known), self._streams))

    def _on_loop(self, work: Coroutine[Any, Any, Result]) -> Result:
        running: Future[Result] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return running.result(LOOP_S)
        except TimeoutError:
            running.cancel()
            raise UnavailableError(f"no answer within {LOOP_S:.0f} s; try again.") from None


class _Stream:
    """Gives the place back when it is closed, begun or not."""

    def __init__(self, events: Iterator[bytes], places: BoundedSemaphore) -> None:
        self._events, self._places = events, places

    def __iter__(self) -> Iterator[bytes]:
        return self._events

    def close(self) -> None:
        self._places.release()


def open_console(
    components: Components, tokens: TokenFile | None, certificates: Certificates | None
) -> Console | None:
    """None where the settings leave it off. Raises ModelsatError where it cannot listen."""
    feed = components.telemetry.feed
    if not components.settings.console_address or feed is None:
        return None
    return Console(components, feed, tokens, certificates)


def _json(value: Any, status: int = HTTPStatus.OK) -> Response:
    return Response(status, JSON, json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))


def _text(status: int, words: str) -> Response:
    return Response(status, PLAIN, f"{words}\n".encode())


def _failed(status: Message) -> Response:
    """google.rpc.Status as JSON."""
    code = getattr(status, "code", code_pb2.UNKNOWN)
    http = HTTP_STATUS.get(code, HTTPStatus.INTERNAL_SERVER_ERROR)
    return _json({"error": message_view(status)}, http)


REQUEST_KEYS = {"text", "body", "path", "policy"}


def message_view(message: Message) -> dict[str, Any]:
    """Proto's JSON form with the names of the .proto file; what is 0 or empty is there too."""
    found: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found


def candidates_view(table: Table) -> dict[str, Any]:
    """tasks: every task once; aptitude of a candidate: [position in tasks, accuracy] of each."""
    numbers: dict[str, int] = {}
    shown = []
    for candidate in table.candidates:
        entry = to_json(candidate) | {"mean_accuracy": candidate.mean_accuracy()}
        entry["aptitude"] = [
            [numbers.setdefault(r.task, len(numbers)), r.accuracy] for r in candidate.aptitude
        ]
        shown.append(entry)
    return {"revision": table.revision, "tasks": list(numbers), "candidates": shown}


def revisions_view(revisions: Iterable[Revision]) -> dict[str, Any]:
    """Newest first. time: Unix, seconds; None for a revision that was not made."""
    return {
        "revisions": [
            {
                "number": r.number,
                "time": r.created_us / 1e6 if r.created_us else None,
                "description": r.description,
                "candidates": r.candidates,
            }
            for r in revisions
        ]
    }


def route_request(body: bytes) -> pb.RouteRequest:
    """A dry run from JSON `{"text": ..., "policy": {...}}`, policy as modelsat.v1.Policy.

    In place of the text it takes a request in any provider's format: `{"body": {...}}`, and the
    path that it is sent to as `path`.

    Raises InvalidInputError; values are not checked beyond their types.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise _wrong("body", "is not valid JSON in UTF-8, or is nested too deeply.") from None
    if not isinstance(asked, dict) or not asked.keys() <= REQUEST_KEYS:
        raise _wrong("body", f"must be an object with the keys {sorted(REQUEST_KEYS)} only.")
    text = asked.get("text", "")
    if not isinstance(text, str):
        raise _wrong("text", "must be a string: the instruction to route.")
    request = pb.RouteRequest(dry_run=True)
    try:
        json_format.ParseDict(asked.get("policy", {}), request.policy)
    except (json_format.ParseError, TypeError, ValueError, AttributeError) as error:
        raise _wrong("policy", f"is not a valid modelsat.v1.Policy: {str(error)[:200]}") from None
    if "body" in asked:
        _put_body(request, asked)
        return request
    try:
        request.text = text
    except ValueError:  # half of a surrogate pair
        raise _wrong("text", "is not valid UTF-8.") from None
    return request


def _put_body(request: pb.RouteRequest, asked: Mapping[str, Any]) -> None:
    """Read a request body, and add what it needs to the policy."""
    body, path = asked["body"], asked.get("path", "")
    if not isinstance(body, dict) or not isinstance(path, str) or "text" in asked:
        raise _wrong("body", "must be an object, with a path as text, and without `text`.")
    conversation = from_body(body, path)
    request.conversation.CopyFrom(conversation_to(conversation))
    policy = conversation.needs.constrain(policy_from(request.policy))
    request.policy.CopyFrom(policy_to(policy))


def route_view(response: pb.RouteResponse) -> dict[str, Any]:
    """decision: the answer of Route; curve: see _curve."""
    return {"decision": message_view(response), "curve": _curve(response.ranking)}


def _curve(ranking: Sequence[pb.RankedCandidate]) -> list[dict[str, Any]]:
    """Who is taken as the willingness to pay falls, one entry from each value on at which the
    choice changes; its first is None, for quality alone. expected_cost_usd is None where
    unknown."""
    # Cheapest first, then by id: the first of equals is what ranking.rank selects.
    ordered = sorted(ranking, key=lambda r: (_cost(r, math.inf), r.candidate))
    p = np.array([[r.probability for r in ordered]])
    costs = np.array([[_cost(r, math.nan) for r in ordered]])
    steps: list[dict[str, Any]] = []
    for point in curve(p, p, costs):
        taken = ordered[int(point.shares.argmax())]
        if steps and steps[-1]["candidate"] == taken.candidate:
            continue
        steps.append(
            {
                "willingness_to_pay_usd": finite(point.willingness_to_pay_usd),
                "candidate": taken.candidate,
                "probability": taken.probability,
                "expected_cost_usd": _cost(taken, None),
            }
        )
    return steps


def _cost(ranked: pb.RankedCandidate, unknown: Any) -> Any:
    return ranked.expected_cost_usd if ranked.HasField("expected_cost_usd") else unknown


def _wrong(field: str, description: str) -> InvalidInputError:
    return InvalidInputError(Violation(field, description))
