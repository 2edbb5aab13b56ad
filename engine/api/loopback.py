"""Tell addresses of this machine, which no proxy may be asked for."""

from __future__ import annotations

import ipaddress


def is_this_machine(host: str) -> bool:
    """Return True if a client that dials `host` reaches this machine: localhost, the loopback's
    addresses, and 0.0.0.0. A server that listens on 0.0.0.0 is open to others, though."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_loopback or bool(mapped and mapped.is_loopback) or address.is_unspecified
