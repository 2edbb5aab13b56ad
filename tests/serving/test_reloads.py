"""Secrets that change while the server runs, and secrets that must not be taken at all."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from engine.api.errors import InvalidInputError, Violation
from engine.serving.auth.file_watch import ReloadedFiles
from engine.serving.auth.interceptor import AccessInterceptor
from engine.serving.auth.key_type import usable_key
from engine.serving.auth.tls import Certificates, TlsFiles
from engine.serving.auth.tokens import ROLES, TokenFile, new_token, read_tokens
from engine.serving.telemetry.metrics import reload_samples
from tests.support import certificates


@pytest.fixture(autouse=True)
def immediate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.serving.auth.file_watch.RETRY_S", 0.0)
    monkeypatch.setattr("engine.serving.auth.tokens.CHECK_INTERVAL_S", 0.0)


# --- what failed is tried again ---------------------------------------------------------------


class Readable:
    """A loader that fails while it has a problem."""

    def __init__(self, path: Path) -> None:
        self.path, self.problem = path, ""

    def __call__(self) -> str:
        if self.problem:
            raise InvalidInputError(Violation("file", self.problem))
        return self.path.read_text()


def watched(path: Path) -> tuple[Readable, ReloadedFiles[str]]:
    path.write_text("first")
    readable = Readable(path)
    return readable, ReloadedFiles("file", [path], readable, str)


@pytest.mark.parametrize("problem", ["no permission", "too many open files", "input/output error"])
def test_a_file_that_failed_once_is_read_when_it_can_be(problem: str, tmp_path: Path) -> None:
    readable, files = watched(tmp_path / "f")
    before = files.last_success
    (tmp_path / "f").write_text("second")
    readable.problem = problem
    assert [files.refresh(), files.refresh()] == ["first", "first"]
    assert (files.failures, files.last_success) == (2, before)
    readable.problem = ""  # nothing about the file changes
    assert files.refresh() == "second"
    assert files.last_success > before
    samples = {name: read() for name, read in reload_samples({"tokens": files}).items()}
    assert samples["modelsat_reload_failures_total"] == {("tokens",): 2}
    assert samples["modelsat_reload_success_timestamp_seconds"] == {("tokens",): files.last_success}


def _in_place(path: Path) -> None:
    path.write_text("other")


def _same_times(path: Path) -> None:
    """As `cp -p` and `rsync -t` leave it."""
    stat = path.stat()
    path.write_text("other")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _renamed_over(path: Path) -> None:
    fresh = path.with_name("fresh")
    fresh.write_text("other")
    stat = path.stat()
    os.utime(fresh, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    fresh.replace(path)


def _folder_swapped(path: Path) -> None:
    """As Kubernetes updates a mounted secret: a link to a folder is replaced."""
    folder = path.parent.parent / "2"
    folder.mkdir()
    (folder / path.name).write_text("other")
    link = path.parent.parent / "new"
    link.symlink_to(folder.name)
    link.replace(path.parent)


@pytest.mark.parametrize("change", [_in_place, _same_times, _renamed_over, _folder_swapped])
def test_every_way_to_replace_a_file_is_seen(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "live").symlink_to("1")
    _, files = watched(tmp_path / "live" / "f")
    assert (files.refresh(), files.version) == ("first", 0)
    change(tmp_path / "live" / "f")
    assert (files.refresh(), files.version) == ("other", 1)


def test_a_file_that_is_written_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("one")

    def load() -> str:
        read = path.read_text()
        path.write_text("two")
        return read

    files = ReloadedFiles("file", [path], load, str)
    assert (files.value, files.refresh()) == ("one", "two")


# --- tokens ---------------------------------------------------------------------------------


def entry(**changes: Any) -> dict[str, Any]:
    return {**vars(new_token("route", "gateway")[1]), **changes}


def text_of(*entries: Any, **more: Any) -> str:
    return json.dumps({"tokens": list(entries), **more})


BAD_TOKEN_FILES = {
    "nothing": "",
    "no tokens": text_of(),
    "byte order mark": "\ufeff" + text_of(entry()),
    "another key": text_of(entry(), token=[]),
    "capital role": text_of(entry(role="Admin")),
    "role with a blank": text_of(entry(role="route ")),
    "roles as a list": text_of(entry(role=["route"])),
    "hash in capitals": text_of(entry(sha256="A" * 64)),
    "hash with a line break": text_of(entry(sha256="a" * 64 + "\n")),
    "hash as a number": text_of(entry(sha256=int("1" * 64))),
    "hash of an unset variable": text_of(entry(sha256=hashlib.sha256(b"\n").hexdigest())),
    "name with a line break": text_of(entry(name="a\nb")),
    "name with blanks": text_of(entry(name=" a")),
    "no name": text_of(entry(name="")),
    "two roles": text_of(entry()).replace('"role"', '"role": "admin", "role"'),
    "two lists": text_of(entry()).replace('"tokens"', '"tokens": [], "tokens"'),
    "a list": json.dumps([entry()]),
    "deeply nested": "[" * 100_000,
}


@pytest.mark.parametrize("text", BAD_TOKEN_FILES.values(), ids=BAD_TOKEN_FILES)
def test_a_tokens_file_with_a_slip_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    file.write_text(text)
    with pytest.raises(InvalidInputError, match=r"tokens\.json"):
        TokenFile(file)


def test_an_empty_list_revokes_every_token_of_a_running_server(tmp_path: Path) -> None:
    text, made = new_token("admin", "root")
    file = tmp_path / "tokens.json"
    file.write_text(text_of(vars(made)))
    tokens = TokenFile(file)
    assert tokens.find(text) == made
    file.write_text(text_of())
    assert tokens.find(text) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.sampled_from(["a" * 64, *ROLES]),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["role", "name"]), inner),
)


@given(
    st.dictionaries(st.sampled_from(["tokens", "x"]), JSON)
    | st.builds(
        lambda entries: {"tokens": entries},
        st.lists(st.fixed_dictionaries({"sha256": JSON, "role": JSON, "name": JSON})),
    )
)
def test_any_json_is_tokens_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_text(json.dumps(content))
    try:
        tokens = read_tokens(file)
    except InvalidInputError:
        return
    assert [vars(t) for t in tokens] == content["tokens"]
    assert all(t.role in ROLES and t.name.strip() for t in tokens)


async def test_a_revoked_token_ends_its_open_streams(tmp_path: Path) -> None:
    """A watch, a stream of requests, and one of a token that only lost its role."""
    made = {name: new_token("admin", name) for name in ("leaked", "demoted", "kept")}
    file = tmp_path / "tokens.json"

    def write(*entries: Any) -> None:
        file.write_text(text_of(*entries))

    write(*(vars(t) for _, t in made.values()))
    tokens = TokenFile(file)
    access = AccessInterceptor(tokens, client_certificates=False)
    server = grpc.aio.server(interceptors=[access])

    async def watch(_: bytes, __: Any) -> AsyncIterator[bytes]:
        yield b"table"
        await asyncio.Event().wait()

    async def echo(requests: AsyncIterator[bytes], _: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    for service, method, handler in (
        ("CandidateService", "WatchCandidates", grpc.unary_stream_rpc_method_handler(watch)),
        ("RouterService", "StreamRoute", grpc.stream_stream_rpc_method_handler(echo)),
    ):
        handlers = grpc.method_handlers_generic_handler(f"modelsat.v1.{service}", {method: handler})
        server.add_generic_rpc_handlers((handlers,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        open_streams = {}
        for name, (text, _) in made.items():
            metadata = (("authorization", f"Bearer {text}"),)
            table = channel.unary_stream("/modelsat.v1.CandidateService/WatchCandidates")(
                b"", metadata=metadata
            )
            assert await table.read() == b"table"
            routing = channel.stream_stream("/modelsat.v1.RouterService/StreamRoute")(
                metadata=metadata
            )
            await routing.write(b"x")
            assert await routing.read() == b"x"
            open_streams[name] = (table, routing)
        write(vars(made["kept"][1]), {**vars(made["demoted"][1]), "role": "route"})
        tokens.files.refresh()
        access.end_revoked()
        for stream in (*open_streams["leaked"], open_streams["demoted"][0]):
            assert await stream.code() == grpc.StatusCode.UNAUTHENTICATED
            assert "revoked" in await stream.details()
        for stream in (open_streams["demoted"][1], *open_streams["kept"]):
            assert not stream.done()
        await open_streams["kept"][1].write(b"still")
        assert await open_streams["kept"][1].read() == b"still"
    await server.stop(0)


# --- keys ---------------------------------------------------------------------------------------

KEYS: dict[str, tuple[Callable[[], Any], bool]] = {
    "ed25519": (ed25519.Ed25519PrivateKey.generate, False),
    "ed448": (ed448.Ed448PrivateKey.generate, False),
    "p521": (lambda: ec.generate_private_key(ec.SECP521R1()), False),
    "k1": (lambda: ec.generate_private_key(ec.SECP256K1()), False),
    "rsa1024": (lambda: rsa.generate_private_key(65537, 1024), False),
    "rsa2048": (lambda: rsa.generate_private_key(65537, 2048), True),
    "p256": (lambda: ec.generate_private_key(ec.SECP256R1()), True),
    "p384": (lambda: ec.generate_private_key(ec.SECP384R1()), True),
}


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_that_clients_cannot_use_is_refused(kind: str, tmp_path: Path) -> None:
    make, usable = KEYS[kind]
    key = make()
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, kind)])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, None if kind.startswith("ed") else hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    files = TlsFiles(tmp_path / "crt", tmp_path / "key", Path())
    files.certificate.write_bytes(certificate.public_bytes(pem))
    files.key.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    if usable:
        assert Certificates(files).files.value.key == files.key.read_bytes()
    else:
        with pytest.raises(InvalidInputError, match="gRPC clients cannot use"):
            Certificates(files)


@pytest.mark.parametrize("damage", ["A", "*", "\u00e9", ""])
def test_a_damaged_certificate_is_refused(damage: str, tmp_path: Path) -> None:
    """Its base64 cannot be decoded, is of nothing, or has letters that no PEM has."""
    ours = certificates.make(tmp_path, "server")
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    ours.cert.write_text(f"{begin}\n{damage}\n{end}\n", encoding="utf-8")
    with pytest.raises(InvalidInputError, match="--tls-certificate"):
        Certificates(TlsFiles(ours.cert, ours.key, Path()))


def test_an_authority_may_have_comments_in_any_script(tmp_path: Path) -> None:
    authority = certificates.make(tmp_path, "authority")
    ours = certificates.make(tmp_path, "server", authority)
    text = authority.cert.read_text()
    authority.cert.write_text("# F\u0151tan\u00fas\u00edtv\u00e1ny\n" + text, encoding="utf-8")
    assert Certificates(TlsFiles(ours.cert, ours.key, authority.cert)).context()


@given(st.binary())
def test_what_is_no_certificate_has_no_usable_key(der: bytes) -> None:
    assert not usable_key(der)
