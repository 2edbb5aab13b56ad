"""TLS, client certificates, tokens, roles and limits over real sockets, with own certificates."""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from engine.api.errors import InvalidInputError
from engine.cli.main import main as cli
from engine.client.channel import Credentials, open_channel
from engine.pb import access_log_pb2 as alpb
from engine.pb import adaptation_service_pb2 as apb
from engine.pb import candidate_service_pb2 as cpb
from engine.pb import external_processor_pb2 as epb
from engine.pb import router_service_pb2 as rpb
from engine.serving.auth.interceptor import NEEDED
from engine.serving.auth.tokens import ROLES, new_token
from engine.serving.rpc.listener import insecure_listener_warnings
from engine.serving.server import read_auth
from engine.serving.settings import Settings, resolve
from modelsat import AsyncClient, Client, ModelsatClientError
from tests.serving.test_server import status_of
from tests.support.certificates import Pair, make, private_bytes
from tools.processes import Server, serving

SERVING = health_pb2.HealthCheckResponse.SERVING
LONG = 30.0  # seconds that nothing here takes


def write_tokens(path: Path, *roles: str) -> dict[str, str]:
    """A file with a token of each role; role -> token."""
    made = {role: new_token(role, f"the {role} one") for role in roles}
    entries = [{"sha256": t.sha256, "role": t.role, "name": t.name} for _, t in made.values()]
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"tokens": entries}))
    fresh.replace(path)
    return {role: text for role, (text, _) in made.items()}


@dataclass(frozen=True)
class Secured:
    """A server with mutual TLS, tokens and an admin address."""

    server: Server
    admin: str
    folder: Path
    authority: Pair
    tokens: dict[str, str]
    access: Credentials

    def with_role(self, role: str) -> Credentials:
        return replace(self.access, token=self.tokens[role])


def tls(authority: Pair, pair: Pair) -> Credentials:
    return Credentials(authority.cert, pair.cert, pair.key)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    authority = make(folder, "authority")
    ours, client = make(folder, "server", authority), make(folder, "client", authority)
    tokens = write_tokens(folder / "tokens.json", *ROLES)
    flags = ["--tls-certificate", str(ours.cert), "--tls-key", str(ours.key)]
    flags += [
        "--tls-client-ca",
        str(authority.cert),
        "--auth-tokens-file",
        str(folder / "tokens.json"),
    ]
    with serving(folder / "s.sqlite", *flags, "--admin-address", "127.0.0.1:0") as server:
        admin = re.search(r"admin on (\S+)", server.printed())
        assert admin is not None
        yield Secured(server, admin[1], folder, authority, tokens, tls(authority, client))
        printed = server.printed()
    assert "refused /modelsat.v1.RouterService/Route from ipv4:127.0.0.1:" in printed
    assert "token 'the read one' (read)" in printed
    key = ours.key.read_text().splitlines()[1]
    assert not [s for s in (*tokens.values(), UNKNOWN, key) if s in printed]


UNKNOWN = new_token("route", "no-one")[0]
ROUTER, CANDIDATES = "/modelsat.v1.RouterService/", "/modelsat.v1.CandidateService/"


def code_of(
    address: str, access: Credentials, method: str, **call: Any
) -> tuple[str, dict[str, Any]]:
    """(status, its details by type) of one call with no message in it."""
    metadata = (*access.metadata(), *call.pop("metadata", ()))
    with open_channel(address, access) as channel:
        raw: Callable[..., Any] = channel.unary_unary(method)
        try:
            raw(call.pop("message", b""), timeout=LONG, metadata=metadata, **call)
        except grpc.RpcError as error:
            code, _, details = status_of(error)
            return code, details
    return "OK", {}


@pytest.mark.parametrize(
    ("role", "method", "expected"),
    [
        ("route", ROUTER + "Route", "INVALID_ARGUMENT"),  # let in: an empty request
        ("route", ROUTER + "GetServerInfo", "OK"),
        ("route", CANDIDATES + "ListCandidates", "PERMISSION_DENIED"),
        ("route", CANDIDATES + "WatchCandidates", "PERMISSION_DENIED"),
        ("read", ROUTER + "Route", "PERMISSION_DENIED"),
        ("read", ROUTER + "StreamRoute", "PERMISSION_DENIED"),
        ("read", CANDIDATES + "ListCandidates", "OK"),
        ("read", CANDIDATES + "DeleteCandidate", "PERMISSION_DENIED"),
        ("admin", ROUTER + "GetServerInfo", "OK"),
        ("admin", CANDIDATES + "DeleteCandidate", "INVALID_ARGUMENT"),
    ],
)
def test_a_role_may_call_what_it_needs(
    secured: Secured, role: str, method: str, expected: str
) -> None:
    address = secured.server.address if method.startswith(ROUTER) else secured.admin
    code, details = code_of(address, secured.with_role(role), method)
    assert code == expected
    assert code == "OK" or details["ErrorInfo"].domain == "modelsat"


@pytest.mark.parametrize("method", ["Route", "StreamRoute", "GetServerInfo"])
@pytest.mark.parametrize(
    "sent",
    [
        (),
        (("authorization", f"Bearer {UNKNOWN}"),),
        (("authorization", "Basic bW9kZWxzYXQ="),),
        (("authorization", "Bearer "),),
    ],
    ids=["none", "unknown", "basic", "empty"],
)
def test_calls_without_a_known_token_are_refused(secured: Secured, method: str, sent: Any) -> None:
    address = secured.server.address
    code, details = code_of(address, secured.access, ROUTER + method, metadata=sent)
    assert code == "UNAUTHENTICATED"
    assert details["ErrorInfo"].reason == "UNAUTHENTICATED"
    doubled = (*sent, ("authorization", f"Bearer {UNKNOWN}"))
    known = secured.with_role("route")
    assert code_of(address, known, ROUTER + method, metadata=doubled)[0] == "UNAUTHENTICATED"


def test_each_address_serves_its_own(secured: Secured) -> None:
    admin, router = secured.with_role("admin"), secured.server.address
    assert code_of(secured.admin, admin, ROUTER + "GetServerInfo")[0] == "UNIMPLEMENTED"
    assert code_of(router, admin, CANDIDATES + "ListCandidates")[0] == "UNIMPLEMENTED"
    administration = ("CandidateService", "AdaptationService")
    for address, own in ((router, ("RouterService",)), (secured.admin, administration)):
        with open_channel(address, secured.access) as channel:  # health needs no token
            health = health_pb2_grpc.HealthStub(channel)
            for name in ("", "readiness", "liveness", *(f"modelsat.v1.{each}" for each in own)):
                request = health_pb2.HealthCheckRequest(service=name)
                assert health.Check(request, timeout=LONG).status == SERVING
        role = secured.with_role("read")
        with open_channel(address, role) as channel:
            listed = {name for name in reflected(channel, role) if name.startswith("modelsat.")}
            assert listed == {f"modelsat.v1.{each}" for each in own}
        with (
            open_channel(address, secured.access) as channel,
            pytest.raises(grpc.RpcError, match="call has no token"),
        ):
            reflected(channel, secured.access)


def reflected(channel: grpc.Channel, access: Credentials) -> set[str]:
    reflect: Callable[..., Any] = channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = reflect(iter([request]), metadata=access.metadata())
    return {s.name for s in answer.list_services_response.service}


def test_who_has_no_certificate_of_the_authority_cannot_connect(secured: Secured) -> None:
    folder, ours = secured.folder, secured.authority
    foreign = make(folder, "foreign")
    stranger = make(folder, "stranger", foreign)
    strangers = {
        "none": Credentials(ours.cert),
        "foreign": tls(ours, stranger),
        "expired": tls(ours, make(folder, "expired", ours, days=-1)),
        "plain": Credentials(),
        "server not trusted": replace(secured.access, tls_ca=foreign.cert),
    }
    for address in (secured.server.address, secured.admin):
        for case, access in strangers.items():
            with (
                Client(address, LONG, replace(access, token=secured.tokens["admin"])) as client,
                pytest.raises(ModelsatClientError, match=r"TLS with .* failed") as refused,
            ):
                client.server_info()
            assert refused.value.code == "UNAVAILABLE", case


def test_too_much_is_refused_and_the_server_goes_on(secured: Secured) -> None:
    address, access = secured.server.address, secured.with_role("route")
    flood = tuple((f"x-{i}", "y" * 1000) for i in range(100))
    for method in (ROUTER + "Route", ROUTER + "GetServerInfo"):
        assert code_of(address, access, method, metadata=flood)[0] == "RESOURCE_EXHAUSTED"
        assert code_of(address, access, method, message=b"\n" * 21_000_000)[0] == (
            "RESOURCE_EXHAUSTED"
        )
    with Client(address, LONG, access) as client:
        assert client.route("If 3x + 7 = 22, what is x?").selected


async def test_the_asyncio_client_brings_certificate_and_token(secured: Secured) -> None:
    async with AsyncClient(secured.server.address, LONG, secured.with_role("route")) as client:
        assert (await client.route("Hi")).selected
        with pytest.raises(ModelsatClientError) as refused:
            async for _ in client.watch_candidates():
                pass
    assert refused.value.code == "UNIMPLEMENTED"  # on the admin address alone
    async with AsyncClient(secured.admin, LONG, secured.with_role("read")) as client:
        assert (await anext(client.watch_candidates())).revision


def test_the_command_line_brings_certificate_and_token(
    secured: Secured, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    access = secured.access
    files = ["--tls-ca", str(access.tls_ca), "--tls-cert", str(access.tls_cert)]
    files += ["--tls-key", str(access.tls_key)]
    monkeypatch.setenv("MODELSAT_TOKEN", secured.tokens["route"])
    assert cli(["route", "Hi", "--json", "--server", secured.server.address, *files]) == 0
    listing = ["candidates", "list", "--server", secured.admin, *files]
    assert cli(listing) == 1
    assert "needs 'admin' or 'read'" in capsys.readouterr().err
    file = secured.folder / "token"
    file.write_text(secured.tokens["read"] + "\n")
    assert cli([*listing, "--token-file", str(file)]) == 0
    assert resolve({}, {"MODELSAT_TOKEN": "x"}, Path()).settings == Settings()
    capsys.readouterr()
    assert cli(["token", "--role", "route", "--name", "gateway-1"]) == 0
    token, entry = capsys.readouterr().out.splitlines()
    assert set(json.loads(entry)) == {"sha256", "role", "name"}
    assert token not in entry


# --- change of files ------------------------------------------------------------------------


def served_name(address: str, authority: Pair) -> str:
    """The common name in the certificate that a new connection is shown."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cafile=str(authority.cert))
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), timeout=LONG) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        subject: Any = (wrapped.getpeercert() or {})["subject"]
    return str(subject[0][0][1])


class Callers(threading.Thread):
    """Calls without pause, on one connection and on ever new ones; keeps what failed."""

    def __init__(self, address: str, access: Credentials) -> None:
        super().__init__(daemon=True)
        self._address, self._access = address, access
        self.done = threading.Event()
        self.calls = 0
        self.failed: list[Exception] = []

    def run(self) -> None:
        with Client(self._address, LONG, self._access) as kept:
            while not self.done.is_set():
                try:
                    kept.server_info()
                    with Client(self._address, LONG, self._access) as fresh:
                        fresh.server_info()
                    self.calls += 2
                except ModelsatClientError as error:
                    self.failed.append(error)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_new_certificates_and_tokens_are_taken_without_a_failed_call(tmp_path: Path) -> None:
    authority = make(tmp_path, "authority")
    first, second = make(tmp_path, "first", authority), make(tmp_path, "second", authority)
    cert, key, file = tmp_path / "tls.crt", tmp_path / "tls.key", tmp_path / "tokens.json"
    cert.write_bytes(first.cert.read_bytes())
    key.write_bytes(first.key.read_bytes())
    old = write_tokens(file, "route")["route"]
    flags = ["--tls-certificate", str(cert), "--tls-key", str(key), "--auth-tokens-file", str(file)]
    flags += ["--max-connection-age-s", "1"]  # the kept connection moves on, too
    with serving(tmp_path / "s.sqlite", *flags) as server:
        address, access = server.address, Credentials(authority.cert, token=old)
        callers = Callers(address, access)
        callers.start()
        assert served_name(address, authority) == "first"
        cert.write_bytes(second.cert.read_bytes())
        assert [served_name(address, authority) for _ in range(3)] == ["first"] * 3
        assert server.printed().count("could not reload the TLS certificate") == 1
        key.write_bytes(second.key.read_bytes())
        assert served_name(address, authority) == "second"

        file.write_text('{"tokens": [')
        until(lambda: "could not reload tokens file" in server.printed())
        before = callers.calls
        until(lambda: callers.calls > before + 4)
        callers.done.set()
        callers.join()
        assert callers.failed == []
        new = write_tokens(file, "route")["route"]
        revoked, fresh = access, Credentials(authority.cert, token=new)
        until(lambda: code_of(address, fresh, ROUTER + "GetServerInfo")[0] == "OK")
        assert code_of(address, revoked, ROUTER + "GetServerInfo")[0] == "UNAUTHENTICATED"
        assert not [s for s in (old, new) if s in server.printed()]


# --- at the start ---------------------------------------------------------------------------


def test_files_that_cannot_serve_are_named_at_the_start(tmp_path: Path) -> None:
    authority = make(tmp_path, "authority")
    good, other = make(tmp_path, "good", authority), make(tmp_path, "other", authority)
    old = make(tmp_path, "old", authority, days=-1)
    old_authority = make(tmp_path, "gone", days=-1)
    locked = tmp_path / "locked.key"
    locked.write_bytes(private_bytes(good.private, b"secret"))
    token = tmp_path / "tokens.json"
    token.write_text(json.dumps({"tokens": [{"sha256": UNKNOWN, "role": "boss", "name": "x"}]}))
    given = Settings(tls_certificate=good.cert, tls_key=good.key, tls_client_ca=authority.cert)
    read_auth(given)
    cases = {
        "cannot be read": replace(given, tls_certificate=tmp_path / "absent.pem"),
        "holds no PEM certificate": replace(given, tls_certificate=good.key),
        "does not match the certificate": replace(given, tls_key=other.key),
        "is not a usable key": replace(given, tls_key=good.cert),
        "is encrypted": replace(given, tls_key=locked),
        "certificate has expired": replace(given, tls_certificate=old.cert, tls_key=old.key),
        "holds no authority": replace(given, tls_client_ca=good.cert),
        "which has expired": replace(given, tls_client_ca=old_authority.cert),
        "must be 64 of": replace(given, auth_tokens_file=token),
    }
    for words, settings in cases.items():
        with pytest.raises(InvalidInputError, match=words) as refused:
            read_auth(settings)
        assert str(tmp_path) in str(refused.value)
        assert UNKNOWN not in str(refused.value)


def test_every_method_has_its_roles() -> None:
    services = (
        rpb.DESCRIPTOR.services_by_name["RouterService"],
        cpb.DESCRIPTOR.services_by_name["CandidateService"],
        apb.DESCRIPTOR.services_by_name["AdaptationService"],
        epb.DESCRIPTOR.services_by_name["ExternalProcessor"],
        alpb.DESCRIPTOR.services_by_name["AccessLogService"],
    )
    methods = {f"/{s.full_name}/{m.name}" for s in services for m in s.methods}
    assert methods == set(NEEDED)


def test_an_address_open_to_others_is_warned_of(tmp_path: Path) -> None:
    assert (
        insecure_listener_warnings(Settings(address="127.0.0.1:1", admin_address="[::1]:1")) == []
    )
    (warning,) = insecure_listener_warnings(
        Settings(address="localhost:1", admin_address="0.0.0.0:1")
    )
    assert warning.startswith("0.0.0.0:1")
    assert "--tls-certificate and --auth-tokens-file" in warning
    safe = Settings(
        address="0.0.0.0:1", tls_certificate=tmp_path / "c", auth_tokens_file=tmp_path / "t"
    )
    assert insecure_listener_warnings(safe) == []


def test_the_health_command_speaks_tls_and_says_what_is_wrong(
    secured: Secured, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a container's HEALTHCHECK and an exec probe call it."""
    access = secured.access
    flags = ["--tls-ca", str(access.tls_ca), "--tls-cert", str(access.tls_cert)]
    flags += ["--tls-key", str(access.tls_key), "--tls-server-name", "localhost"]
    ask = ["health", "--server", secured.server.address]
    assert cli([*ask, *flags]) == 0
    assert capsys.readouterr().out == "SERVING\n"
    assert cli([*ask, *flags, "--service", "digestion"]) == 1
    assert "has no service 'digestion' to check" in capsys.readouterr().err
    flags[-1] = "elsewhere.example"
    assert cli([*ask, *flags]) == 1
    assert "failed: UNAVAILABLE" in capsys.readouterr().err
    assert cli(ask) == 1  # plain text to a TLS port
