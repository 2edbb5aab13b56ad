"""Create certificates for tests."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as objects and as files."""

    certificate: x509.Certificate
    private: ec.EllipticCurvePrivateKey
    cert: Path
    key: Path


def make(
    folder: Path,
    name: str,
    issuer: Pair | None = None,
    *,
    days: float = 1,
    host: str = "localhost",
) -> Pair:
    """Create a certificate for `host`. Without an issuer it is a self-signed authority.

    days: how long it is valid from now; negative for an expired one.
    """
    private = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    names: list[x509.GeneralName] = [
        x509.DNSName(host),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=9))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(issuer.private if issuer else private, hashes.SHA256())
    )
    return Pair(
        certificate,
        private,
        _write(folder / f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM)),
        _write(folder / f"{name}.key", private_bytes(private)),
    )


def private_bytes(private: ec.EllipticCurvePrivateKey, password: bytes = b"") -> bytes:
    """Return the key as PEM, encrypted if there is a password."""
    encryption: Any = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
