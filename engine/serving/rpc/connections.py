"""Limits on connections, so that idle ones keep out neither other callers nor the server's files.

gRPC refuses a connection above the limit at once, and nothing makes room again until a peer leaves.
ConnectionWatch makes room before that: it closes the connections that have gone longest without a
call. Descriptors above the limit stay free for the stores, reloads of certificates and tokens, the
console and /metrics.
"""

from __future__ import annotations

import ipaddress
import logging
import resource
import socket
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

RESERVED_DESCRIPTORS = 256  # two HTTP servers of 64 connections, stores, event loop, reloads
MAX_DESCRIPTORS = 65_536  # to which the soft limit is raised
MAX_CONNECTIONS, MIN_CONNECTIONS = 4096, 16  # of one address, unless the settings say otherwise
KEPT_SHARE = 0.6  # of the limit, which ConnectionWatch keeps; the rest is for those that come
SWEEP_S = 0.05
MAX_PEERS_KNOWN = 16_384
DESCRIPTORS = Path("/proc/self/fd")
TCP_INFO_BYTES, BYTES_RECEIVED_AT = 192, 128  # of struct tcp_info, linux/tcp.h
log = logging.getLogger(__name__)


def raise_descriptor_limit() -> int:
    """Raise the soft limit on open files as far as allowed; return the limit in effect."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = hard == resource.RLIM_INFINITY
    wanted = MAX_DESCRIPTORS if unlimited else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def connection_limit(configured: int, descriptors: int, addresses: int) -> int:
    """Return the limit on the connections of one address.

    Args:
        configured: --max-connections, 0 for as many as the descriptors allow.
        descriptors: the limit on open files of the process.
        addresses: on how many addresses the server listens.
    """
    share = max(MIN_CONNECTIONS, (descriptors - RESERVED_DESCRIPTORS) // addresses)
    return min(configured or MAX_CONNECTIONS, share)


@dataclass
class _Use:
    """calls: in flight. at: time.monotonic() of the last change. caller: of the last call."""

    calls: int = 0
    at: float = 0.0
    caller: str = ""


@dataclass(frozen=True)
class _Open:
    """An open connection. peer: as gRPC names it."""

    descriptor: int
    peer: str


class ConnectionWatch:
    """Close idle connections of a port that comes near its limit; if there are too few, those of a
    caller who has most of them, so that no caller keeps the others out by calls that never end.

    calling() is for the event loop. A thread of its own looks at the connections, so that a busy
    event loop does not delay it. closed: connections that were closed to make room.
    """

    def __init__(self) -> None:
        self._limits: dict[int, int] = {}  # port -> limit
        self._uses: OrderedDict[str, _Use] = OrderedDict()  # peer -> its calls
        self._first_seen: dict[str, float] = {}
        self._stopping = threading.Event()
        self.closed = 0

    def add_port(self, port: int, limit: int) -> None:
        """Watch the connections of a port before start(). limit: gRPC's."""
        self._limits[port] = limit

    def start(self) -> None:
        """Begin to watch, on systems that list a process's descriptors."""
        if DESCRIPTORS.is_dir():
            threading.Thread(target=self._run, name="connections", daemon=True).start()

    def stop(self) -> None:
        """Watch no longer."""
        self._stopping.set()

    @contextmanager
    def calling(self, peer: str, caller: str = "") -> Iterator[None]:
        """Keep the connection of a call open. peer: of grpc.aio.ServicerContext.peer(). caller:
        the principal, "" if it is unknown."""
        use = self._uses.get(peer)
        if use is None:
            use = self._uses[peer] = _Use()
            if len(self._uses) > MAX_PEERS_KNOWN:
                self._forget_one()
        use.calls, use.caller = use.calls + 1, caller
        try:
            yield
        finally:
            use.calls -= 1
            use.at = time.monotonic()

    def _forget_one(self) -> None:
        peer, use = self._uses.popitem(last=False)
        if use.calls:
            self._uses[peer] = use  # at the other end

    def _run(self) -> None:
        while not self._stopping.wait(SWEEP_S):
            try:
                self.sweep()
            except OSError as error:
                log.warning("connections cannot be listed (%s)", error)

    def sweep(self) -> int:
        """Close connections of ports near their limits; return how many."""
        kept = {port: int(KEPT_SHARE * limit) for port, limit in self._limits.items()}
        if not kept or len(list(DESCRIPTORS.iterdir())) <= min(kept.values()):
            return 0
        open_now, now = connections_of(tuple(kept)), time.monotonic()
        peers = {each.peer for group in open_now.values() for each in group}
        self._first_seen = {peer: self._first_seen.get(peer, now) for peer in peers}
        closed = 0
        for port, group in open_now.items():
            idle = sorted(
                (each for each in group if not self._calls(each.peer)),
                key=lambda each: self._last_used(each.peer),
            )
            excess = max(0, len(group) - kept[port])
            chosen = idle[:excess]
            if excess > len(idle):
                chosen += self._busy_of_one(group, kept[port] // 2)
            closed += sum(_shut_down(port, each) for each in chosen)
        if closed:
            self.closed += closed
            log.warning("closed %d connections to stay below the limit", closed)
        return closed

    def _busy_of_one(self, group: Sequence[_Open], allowed: int) -> list[_Open]:
        """Return busy connections of the caller with most of them, but for `allowed`: so many that
        the next ones that come are not closed before their first call."""
        of: dict[str, list[_Open]] = {}
        for each in group:
            use = self._uses.get(each.peer)
            if use is not None and use.calls and use.caller:
                of.setdefault(use.caller, []).append(each)
        most = max(of.values(), key=len, default=[])
        return most[: max(0, len(most) - allowed)]

    def _calls(self, peer: str) -> int:
        use = self._uses.get(peer)
        return 0 if use is None else use.calls

    def _last_used(self, peer: str) -> tuple[bool, float]:
        """Order idle connections: first those that never made a call, then by the last one."""
        use = self._uses.get(peer)
        return (False, self._first_seen[peer]) if use is None else (True, use.at)


def connections_of(ports: Sequence[int]) -> dict[int, list[_Open]]:
    """Return port -> the established connections of this process on it."""
    found: dict[int, list[_Open]] = {port: [] for port in ports}
    for entry in DESCRIPTORS.iterdir():
        descriptor = int(entry.name)
        known = _connection(descriptor)
        if known is not None and known[0] in found:
            found[known[0]].append(_Open(descriptor, known[1]))
    return found


def received_bytes(ports: Sequence[int]) -> dict[str, int]:
    """Return peer -> bytes that its connections to `ports` have received, as the kernel counts."""
    received: dict[str, int] = {}
    for group in connections_of(ports).values():
        for each in group:
            try:
                borrowed = socket.socket(fileno=each.descriptor)
            except OSError:
                continue
            with suppress(OSError, struct.error):
                info = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
                (size,) = struct.unpack_from("Q", info, BYTES_RECEIVED_AT)
                received[each.peer] = received.get(each.peer, 0) + size
            borrowed.detach()
    return received


def _connection(descriptor: int) -> tuple[int, str] | None:
    """Return (local port, peer) of a connected socket, None for anything else."""
    try:
        borrowed = socket.socket(fileno=descriptor)
    except OSError:
        return None
    try:
        if borrowed.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        return borrowed.getsockname()[1], peer_name(*borrowed.getpeername()[:2])
    except OSError:  # it listens, or has just been closed
        return None
    finally:
        borrowed.detach()


def _shut_down(port: int, each: _Open) -> bool:
    """Shut a connection down; gRPC then closes the descriptor. False if it has gone meanwhile."""
    if _connection(each.descriptor) != (port, each.peer):
        return False
    borrowed = socket.socket(fileno=each.descriptor)
    try:
        borrowed.shutdown(socket.SHUT_RDWR)
    except OSError:
        return False
    finally:
        borrowed.detach()
    return True


def peer_name(host: str, port: int) -> str:
    """Return a peer's name in gRPC's form, such as ipv4:127.0.0.1:50051."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.version == 4:
        return f"ipv4:{address}:{port}"
    return f"ipv6:%5B{host}%5D:{port}"
