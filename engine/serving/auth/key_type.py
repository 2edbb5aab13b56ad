"""Whether gRPC clients can use the key of a certificate.

The server checks its certificate with OpenSSL, which takes keys that gRPC's library, BoringSSL,
does not: Ed25519, Ed448, P-521 and others. With those no client could connect.
"""

from __future__ import annotations

VERSION = 0xA0  # tag of the optional first field
RSA = bytes.fromhex("2a864886f70d010101")
ELLIPTIC_CURVE = bytes.fromhex("2a8648ce3d0201")
CURVES = (bytes.fromhex("2a8648ce3d030107"), bytes.fromhex("2b81040022"))  # P-256, P-384
MIN_RSA_BITS = 2048


def usable_key(certificate: bytes) -> bool:
    """Return False for a key that clients cannot use, and for what is no certificate.

    certificate: DER of an X.509 certificate (RFC 5280, section 4.1).
    """
    try:
        ((_, signed),) = _items(certificate)
        fields = _items(_items(signed)[0][1])
        if fields[0][0] == VERSION:
            fields = fields[1:]
        algorithm, (_, key) = _items(fields[5][1])  # subjectPublicKeyInfo
        kind, *parameters = [value for _, value in _items(algorithm[1])]
        if kind == ELLIPTIC_CURVE:
            return parameters[0] in CURVES
        if kind != RSA:
            return False
        ((_, numbers),) = _items(key[1:])  # a bit string begins with its number of unused bits
        return int.from_bytes(_items(numbers)[0][1]).bit_length() >= MIN_RSA_BITS
    except (IndexError, ValueError):
        return False


def _items(der: bytes) -> list[tuple[int, bytes]]:
    """Return (tag, content) of each element; raises IndexError for what is cut off."""
    items, at = [], 0
    while at < len(der):
        tag, size, at = der[at], der[at + 1], at + 2
        if size >= 0x80:  # the length of the length
            width = size & 0x7F
            size, at = int.from_bytes(der[at : at + width]), at + width
        if at + size > len(der):
            raise IndexError
        items.append((tag, der[at : at + size]))
        at += size
    return items
