"""The web console over a real socket."""

from __future__ import annotations

import http.client
import math
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any

import grpc
import pytest

from engine.api.policy import Policy
from engine.pb import router_service_pb2 as rpb
from engine.pb import router_service_pb2_grpc
from engine.registry.catalog import read_catalog
from engine.serving.console.app import FILES, MAX_STREAMS
from engine.serving.console.feed import SIZE
from engine.serving.console.http_server import HttpLimits, HttpServer, Response
from modelsat import Client
from tests.support.browser import PATIENCE_S, Console, showing, showing_guarded
from tools.processes import BUNDLE

CATALOG = read_catalog(BUNDLE / "zoo.json")
QUESTION = "If 3x + 7 = 22, what is x?"
SECRET = "zanzibar-quokka"


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    hosts = ("--console-hosts", "other.example, routing.example")
    with showing(tmp_path_factory.mktemp("console"), *hosts) as found:
        yield found


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    with showing_guarded(tmp_path_factory.mktemp("guarded")) as found:
        yield found


# --- what it shows ---------------------------------------------------------------------------


def test_every_file_is_served_and_names_no_other_host(console: Console) -> None:
    policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    for file in FILES.iterdir():
        path = "/" if file.name == "index.html" else f"/{file.name}"
        with closing(console.connect()) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            assert answer.status == 200
            assert answer.headers["Content-Security-Policy"].startswith(policy)
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert "Access-Control-Allow-Origin" not in answer.headers
            text = answer.read().decode()
        assert text == file.read_text("utf-8")
        named = set(re.findall(r"https?://[^\"'\s]+", text))
        assert named <= {"http://www.w3.org/2000/svg"}, "a namespace is no request"
    assert not re.search(r"<script(?![^>]*\ssrc=)|\son\w+=|style=", console.get("/"))


def test_it_shows_the_candidates_and_revisions_that_are_served(console: Console) -> None:
    with Client(console.server.address) as client:
        client.create_candidate(replace(CATALOG[0], id="newcomer", features=("tools",)))
        shown = console.get("/api/candidates")
        client.delete_candidate("newcomer")
    by_id = {c["id"]: c for c in shown["candidates"]}
    assert set(by_id) == {"newcomer", *(c.id for c in CATALOG)}
    assert by_id["newcomer"]["features"] == ["tools"]
    for candidate in CATALOG:
        accuracies = {shown["tasks"][i]: a for i, a in by_id[candidate.id]["aptitude"]}
        assert accuracies == {r.task: r.accuracy for r in candidate.aptitude}
    newest, added, *_ = console.get("/api/revisions")["revisions"]
    assert (added["number"], newest["number"]) == (shown["revision"], shown["revision"] + 1)
    assert added["description"] == "created candidates/newcomer"
    assert time.time() - PATIENCE_S < added["time"] < newest["time"] <= time.time()
    info = console.get("/api/info")
    assert (info["revision"], info["candidates"]) == (str(newest["number"]), len(CATALOG))


def test_it_shows_what_was_learned_and_how_each_fit_did(console: Console) -> None:
    assert console.get("/api/adaptation")["served"]["reason"].startswith("No outcomes")
    strong, weak = CATALOG[0].id, CATALOG[1].id
    with Client(console.server.address) as client:
        for i in range(12):
            text = f"Name {i} rivers of Asia, longest first."
            client.record_comparison({strong: 0.0, weak: 1.0}, text=text, category="rivers")
        deadline = time.monotonic() + PATIENCE_S
        while client.adaptation().instructions < 12:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        for i in range(12, 24):
            client.route(f"Name {i} rivers of Asia, longest first.")
        shown = console.get("/api/adaptation")
        client.reset_adaptation()
    assert shown["served"]["outcomes"] == {"comparison": "24", "explored": "0", "chosen": "0"}
    assert shown["curve"][-1]["instructions"] == 12
    assert sum(region["decisions"] for region in shown["regions"]) >= 12
    assert shown["regions"][0]["categories"] == ["rivers"]
    assert strong in {each["candidate"] for each in shown["regions"][0]["candidates"]}


def test_a_text_is_ranked_as_route_ranks_it(console: Console) -> None:
    policy = {"willingness_to_pay_usd": 0.1, "denied_candidates": [CATALOG[0].name]}
    answer = console.route(text=QUESTION, policy=policy)
    with Client(console.server.address) as client:
        routed = client.route(
            QUESTION, Policy("willingness_to_pay_usd", 0.1, denied_candidates=(CATALOG[0].id,))
        )
        decision = answer["decision"]
        assert decision["selected"] == f"candidates/{routed.selected}"
        assert decision["reason"] == routed.reason
        assert [r["candidate"] for r in decision["ranking"]] == [
            f"candidates/{r.candidate}" for r in routed.ranking
        ]
        assert [e["candidate"] for e in decision["excluded"]] == [CATALOG[0].name]
        assert len(answer["curve"]) > 1
        for step in answer["curve"]:
            usd = step["willingness_to_pay_usd"] or math.inf
            at = Policy("willingness_to_pay_usd", usd, denied_candidates=(CATALOG[0].id,))
            assert f"candidates/{client.route(QUESTION, at).selected}" == step["candidate"]


def test_errors_of_a_text_are_those_of_route(console: Console) -> None:
    everyone = [c.name for c in CATALOG]
    asked: list[tuple[dict[str, Any], int]] = [
        ({"text": " "}, 400),
        ({}, 400),
        ({"text": "x" * 600_000}, 400),
        ({"text": QUESTION, "policy": {"denied_candidates": everyone}}, 400),
        ({"text": QUESTION, "policy": {"budget_usd": -1}}, 400),
    ]
    with grpc.insecure_channel(console.server.address) as channel:
        stub = router_service_pb2_grpc.RouterServiceStub(channel)
        for body, expected in asked:
            status, answer = console.ask("POST", "/api/route", body)
            request = rpb.RouteRequest(
                text=body.get("text", ""), policy=rpb.Policy(**body.get("policy", {}))
            )
            with pytest.raises(grpc.RpcError) as caught:
                stub.Route(request)
            assert (status, answer["error"]["message"]) == (expected, caught.value.details())


# --- who is refused --------------------------------------------------------------------------


def test_a_name_that_was_made_to_point_here_is_refused(console: Console) -> None:
    port = console.port
    names = (f"evil.example:{port}", f"127.0.0.1.evil.example:{port}", "sub.routing.example", "")
    for host in ("evil.example", *names):
        for path in ("/", "/api/info"):
            assert console.ask("GET", path, Host=host)[0] == 403, host
    for host in (f"localhost:{port}", f"[::1]:{port}", "10.0.0.1", "Routing.example:8443"):
        assert console.ask("GET", "/api/info", Host=host)[0] == 200, host


def test_what_is_no_request_of_the_page_is_refused(console: Console) -> None:
    def status(method: str, path: str, body: Any = None, **headers: str) -> int:
        return console.ask(method, path, body, **headers)[0]

    assert status("GET", "/../console_server.py") == status("GET", "/api/nothing") == 404
    assert status("POST", "/", {}) == status("GET", "/api/route") == 404
    for method in ("PUT", "DELETE", "OPTIONS"):
        assert status(method, "/api/route") == 501
    assert status("POST", "/api/route", b"text=x", Content_Type="text/plain") == 415
    assert status("POST", "/api/route", b"{}", Content_Length="2000000") == 413
    assert status("POST", "/api/route", b"{}", Content_Length="-1") == 411
    bad = (
        b"{",
        b"\xff",
        b"[]",
        b'"text"',
        b'{"session": {}}',
        b'{"text": 1}',
        b'{"text": "\\ud800"}',
    )
    bad += (b'{"text": ' + b"[" * 100_000, b'{"policy": ' + b'{"a":' * 900 + b"1" + b"}" * 901)
    bad += (b'{"text": "x", "policy": {"bogus": 1}}', b'{"text": "x", "policy": [1]}')
    for body in bad:
        assert status("POST", "/api/route", body, Content_Type="application/json") == 400, body
    assert "Traceback" not in console.server.printed()


@pytest.mark.parametrize(
    "begun", [b"", b"GET / HTTP/1.0\r\n", b"POST / HTTP/1.0\r\nContent-Length: 9999\r\n\r\n"]
)
def test_a_request_that_comes_byte_by_byte_is_let_go(begun: bytes) -> None:
    served = HttpServer(
        "127.0.0.1:0",
        "--console-address",
        lambda _: Response(200, "", b""),
        HttpLimits(9999, 1, 0.5),
    )
    served.start()
    try:
        with socket.create_connection(("127.0.0.1", served.port)) as dripping:
            dripping.sendall(begun)
            dripping.settimeout(0.05)
            deadline = time.monotonic() + PATIENCE_S
            while True:
                assert time.monotonic() < deadline
                try:
                    dripping.sendall(b"x")
                    if not dripping.recv(1):
                        break
                except TimeoutError:
                    continue
                except OSError:
                    break
    finally:
        served.stop()


def test_with_tokens_the_pages_are_open_and_the_figures_are_not(guarded: Console) -> None:
    assert guarded.tokens is not None
    assert guarded.ask("GET", "/")[0] == 200
    paths = ("/api/info", "/api/candidates", "/api/revisions", "/api/decisions", "/api/outcomes")
    bearer = {role: f"Bearer {token}" for role, token in guarded.tokens.items()}
    for path in paths:
        assert guarded.ask("GET", path)[0] == 401
        assert guarded.ask("GET", path, Authorization="Bearer unknown")[0] == 401
        assert guarded.ask("GET", path, Authorization=bearer["route"])[0] == 403
    assert guarded.ask("POST", "/api/route", {"text": QUESTION})[0] == 401
    for role in ("read", "admin"):
        assert guarded.ask("GET", "/api/info", Authorization=bearer[role])[0] == 200
    for role, expected in (("read", 403), ("route", 200), ("admin", 200)):
        asked = guarded.ask("POST", "/api/route", {"text": QUESTION}, Authorization=bearer[role])
        assert asked[0] == expected
    assert not any(token in guarded.server.printed() for token in guarded.tokens.values())
    plain = replace(guarded, tls=None)
    with pytest.raises((http.client.HTTPException, OSError)):
        plain.ask("GET", "/")


# --- live ------------------------------------------------------------------------------------


def test_a_decision_of_route_is_seen_and_its_text_is_not(console: Console) -> None:
    with console.watching() as live, Client(console.server.address) as client:
        client.route("A dry run is not shown.", dry_run=True)
        console.route(text="Nor is one of the console.")
        answer = client.route(f"What is {SECRET}?")
        seen = next(d for d in live if d["decision_id"] == answer.decision_id)
    assert (seen["selected"], seen["reason"]) == (answer.selected, answer.reason)
    assert seen["probability"] == pytest.approx(answer.ranking[0].probability, abs=1e-6)
    assert seen["text"] is None
    with console.watching(after=seen["number"]) as live, Client(console.server.address) as client:
        answer = client.route(QUESTION)
        assert next(live)["decision_id"] == answer.decision_id, "what was seen comes no more"


def test_the_text_is_shown_where_the_audit_may_hold_it(guarded: Console) -> None:
    assert guarded.tokens is not None
    read = f"Bearer {guarded.tokens['read']}"
    with Client(guarded.server.address, credentials=guarded.access) as client:
        answer = client.route(f"What is {SECRET}? " + "x" * 1000)
    with guarded.watching(Authorization=read) as live:
        seen = next(d for d in live if d["decision_id"] == answer.decision_id)
    assert seen["text"].startswith(f"What is {SECRET}?")
    assert len(seen["text"]) == 500
    assert SECRET not in guarded.server.printed()


def test_readers_who_stall_cost_no_request_and_no_memory(console: Console) -> None:
    """They are bounded in number, let go in the end; a fast reader next to them gets all,
    a late one what is held and how much is not."""
    stalled = [_stalled(console) for _ in range(MAX_STREAMS - 1)]
    request = rpb.RouteRequest(text=QUESTION)
    with console.watching() as live, grpc.insecure_channel(console.server.address) as channel:
        assert console.ask("GET", "/api/decisions")[0] == 503
        route = router_service_pb2_grpc.RouterServiceStub(channel).Route
        before = int(next(live)["number"])
        for _ in range(500):
            route(request, timeout=PATIENCE_S)
        resident = console.server.resident_mb()
        for _ in range(4 * SIZE):
            route(request, timeout=PATIENCE_S)
        assert console.server.resident_mb() < resident + 5
        last = route(request, timeout=PATIENCE_S).decision_id
        seen = next(d["number"] for d in live if d["decision_id"] == last)
        assert seen > before + 4 * SIZE
        with closing(console.stream(after=before)) as late:
            events = [late.readline().decode().strip() for _ in range(4)]
        assert events == [
            "event: missed",
            f"data: {seen - SIZE - before}",
            "",
            f"id: {seen - SIZE + 1}",
        ]
        for _ in range(2000):  # more than the kernel keeps for those who do not read
            route(request, timeout=PATIENCE_S)
    with ExitStack() as stack:
        for _ in range(MAX_STREAMS):  # while those that do not read are still connected
            stack.enter_context(closing(console.stream()))
    for connection in stalled:
        connection.close()


def _stalled(console: Console) -> socket.socket:
    """A reader that asks for everything and takes nothing."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        connection = socket.socket()
        connection.settimeout(PATIENCE_S)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((console.host, console.port))
        connection.sendall(b"GET /api/decisions HTTP/1.0\r\nHost: localhost\r\n\r\n")
        if connection.recv(12, socket.MSG_PEEK) == b"HTTP/1.0 200":
            return connection
        connection.close()
    raise AssertionError("no place for a reader")
