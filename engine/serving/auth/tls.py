"""The server's TLS certificate: checked at start, reloaded when its files change.

gRPC asks for it at every handshake, which costs a stat of each file. Connections keep the
certificate they began with, so a new one breaks no request.
"""

from __future__ import annotations

import logging
import re
import ssl
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from engine.api.errors import InvalidInputError, Violation
from engine.serving.auth.file_watch import ReloadedFiles, file_fingerprint
from engine.serving.auth.key_type import usable_key

CERTIFICATE, KEY, CLIENT_CA = "--tls-certificate", "--tls-key", "--tls-client-ca"
PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
MAX_ROUND_TRIPS = 10  # of a handshake; TLS 1.3 takes three
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TlsFiles:
    """PEM files. client_ca: the authority that client certificates must come from; an empty
    path requires none."""

    certificate: Path
    key: Path
    client_ca: Path

    def paths(self) -> tuple[Path, ...]:
        """Return the paths that are set."""
        return tuple(p for p in (self.certificate, self.key, self.client_ca) if p.name)


@dataclass(frozen=True)
class Pem:
    """Checked content of TlsFiles. roots: of client_ca, None if it is not set."""

    key: bytes = field(repr=False)
    chain: bytes
    roots: bytes | None


class Certificates:
    """The latest usable certificate of the files, for any number of ports. Thread-safe.

    Raises InvalidInputError if the files are unusable at start. If they become unusable later, that
    is logged and counted, the previous certificate stays in use, and the files are tried again.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._paths = files
        self._lock = threading.Lock()  # gRPC asks from threads of its own
        self.files = ReloadedFiles(
            "the TLS certificate",
            files.paths(),
            lambda: _load(files),
            lambda _: "a new TLS certificate",
        )
        self._context, self._context_version = _context(files), self.files.version

    def credentials(self) -> grpc.ServerCredentials:
        """Return gRPC credentials for one port."""
        pem_in_use = self.files.value

        def fetch() -> Any:  # None means unchanged; gRPC's stubs do not know it
            nonlocal pem_in_use
            newest = self.files.refresh()
            if newest is pem_in_use:
                return None
            pem_in_use = newest
            return _configuration(newest)

        required = bool(self._paths.client_ca.name)
        return grpc.dynamic_ssl_server_credentials(_configuration(pem_in_use), fetch, required)

    def context(self) -> ssl.SSLContext:
        """Return the context for one connection of the console."""
        self.files.refresh()
        with self._lock:
            version = self.files.version
            if version != self._context_version:
                try:
                    self._context, self._context_version = _context(self._paths), version
                except (OSError, ssl.SSLError) as error:  # changed again since it was checked
                    log.warning(
                        "the TLS certificate changed while it was loaded: %s", type(error).__name__
                    )
            return self._context


def _configuration(pem: Pem) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.chain)], pem.roots)


def _load(files: TlsFiles) -> Pem:
    """Load and check what gRPC needs; raises InvalidInputError."""
    before = file_fingerprint(files.paths())
    chain, key = _read(CERTIFICATE, files.certificate), _read(KEY, files.key)
    _check_pair(files, chain, key)
    roots = None
    if files.client_ca.name:
        roots = _read(CLIENT_CA, files.client_ca)
        _check_authority(files.client_ca, roots)
    if file_fingerprint(files.paths()) != before:
        raise InvalidInputError(
            Violation(CERTIFICATE, "files changed while they were read; try again.")
        )
    return Pem(key, chain, roots)


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key, password="")
    if files.client_ca.name:
        context.load_verify_locations(files.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _read(flag: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _invalid(
            flag, path, f"cannot be read ({error.strerror})", "give a file that this user may read"
        ) from error


def _check_pair(files: TlsFiles, chain: bytes, key: bytes) -> None:
    """Check key and certificate by a handshake in memory, as a client that trusts it would do."""
    leaf = PEM.search(chain.decode("ascii", errors="replace"))
    try:
        certificate = b"" if leaf is None else ssl.PEM_cert_to_DER_cert(leaf[0])
    except ValueError:  # no base64
        certificate = b""
    if leaf is None or not certificate:
        raise _invalid(
            CERTIFICATE,
            files.certificate,
            "holds no PEM certificate",
            "give the chain as PEM, the server's own certificate first",
        )
    if not usable_key(certificate):
        raise _invalid(
            CERTIFICATE,
            files.certificate,
            "has a key of a type that gRPC clients cannot use",
            "make one with a key of RSA (2,048 bits or more), P-256 or P-384",
        )
    if b"ENCRYPTED" in key:
        raise _invalid(KEY, files.key, "is encrypted", "give a key without a passphrase")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        server.load_cert_chain(files.certificate, files.key, password="")
    except (OSError, ssl.SSLError) as error:
        reason = str(getattr(error, "reason", None) or type(error).__name__)
        mismatch = "MISMATCH" in reason
        problem = (
            "does not match the certificate" if mismatch else f"is not a usable key ({reason})"
        )
        raise _invalid(
            KEY, files.key, problem, f"give the PEM key that {files.certificate} was made for"
        ) from error
    try:
        _shake_hands(server, leaf[0])
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", None) or error.reason
        raise _invalid(
            CERTIFICATE, files.certificate, f"clients would refuse: {reason}", "renew it"
        ) from error


def _shake_hands(server: ssl.SSLContext, leaf: str) -> None:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(cadata=leaf)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    for _ in range(MAX_ROUND_TRIPS):
        waiting = [end for end in ends if not _step(end)]
        if not waiting:
            return
    raise ssl.SSLError("the handshake does not finish")


def _step(end: ssl.SSLObject) -> bool:
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _check_authority(path: Path, roots: bytes) -> None:
    store = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        store.load_verify_locations(cadata=roots.decode("ascii", errors="ignore"))  # in comments
    except ssl.SSLError as error:
        raise _invalid(
            CLIENT_CA, path, "holds no PEM certificate", "give the authority's"
        ) from error
    ends = [ssl.cert_time_to_seconds(str(c["notAfter"])) for c in store.get_ca_certs()]
    if not ends:
        raise _invalid(CLIENT_CA, path, "holds no authority", "give the certificate of one")
    if max(ends) < time.time():
        raise _invalid(CLIENT_CA, path, "has expired", "give a current one")


def _invalid(flag: str, path: Path, problem: str, remedy: str) -> InvalidInputError:
    return InvalidInputError(Violation(flag, f"is {path}, which {problem}; {remedy}."))
