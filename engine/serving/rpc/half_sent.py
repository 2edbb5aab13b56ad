"""End streams whose next messages were sent in part, once those take too much memory.

gRPC buffers a message that something waits for, and does not say how much of it has come. A stream
always waits for its next message, so that a caller who sends many but for their last bytes would
fill the memory. What a connection has received is known to the kernel, and what came of it in whole
messages to the server: the rest was sent in part.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from engine.serving.rpc.connections import DESCRIPTORS, received_bytes

QUOTA_BYTES = 64 * 1024 * 1024  # sent in part, on all connections that have streams
CALL_BYTES, MESSAGE_BYTES = 1024, 512  # of headers and frames, besides a message's own bytes
FRAME_SHARE = 64  # frames and TLS take less than 1/64 of a large message
BUSY_CHECK_S, CHECK_S = 0.05, 1.0  # while streams wait for messages; otherwise
log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Peer:
    """calls: in flight. whole: bytes that are known not to be of a message sent in part. waits:
    limit on each wait of a stream -> its caller, the longest wait first."""

    calls: int = 0
    whole: int = 0
    waits: dict[asyncio.Timeout, str] = field(default_factory=dict)


class HalfSentMessages:
    """What the calls of a server wait for. For one event loop.

    ended: streams that were ended, for the memory of their messages or for another caller.
    """

    def __init__(self, quota_bytes: int = QUOTA_BYTES) -> None:
        self._quota_bytes = quota_bytes
        self._peers: dict[str, _Peer] = {}
        self._first_wait = asyncio.Event()
        self.ended = 0

    async def begin(self, at_most_s: float) -> None:
        """Return once a stream waits for a message, or after `at_most_s` seconds."""
        self._first_wait.clear()
        if not any(peer.waits for peer in self._peers.values()):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._first_wait.wait(), at_most_s)

    @contextmanager
    def calling(self, name: str) -> Iterator[None]:
        """Know of a call. name: of the peer, by grpc.aio.ServicerContext.peer()."""
        peer = self._peers.setdefault(name, _Peer())
        peer.calls += 1
        peer.whole += CALL_BYTES
        try:
            yield
        finally:
            peer.calls -= 1

    def arrived(self, name: str, size: int) -> None:
        """Know of a whole message of a call in flight. size: in bytes."""
        self._peers[name].whole += size + size // FRAME_SHARE + MESSAGE_BYTES

    @contextmanager
    def waiting(self, name: str, caller: str, limit: asyncio.Timeout) -> Iterator[None]:
        """Know of a stream that waits. limit: is made to expire if the stream is to end."""
        peer = self._peers[name]
        peer.waits[limit] = caller
        self._first_wait.set()
        try:
            yield
        finally:
            del peer.waits[limit]

    def whole(self) -> Mapping[str, int]:
        """Return what weigh() compares with what is received from now on."""
        return {name: peer.whole for name, peer in self._peers.items()}

    def weigh(self, whole: Mapping[str, int], received: Mapping[str, int]) -> int:
        """End the streams of the peers with most in part, down to the quota; return how many.

        whole: by whole(), before `received` was measured. received: peer -> bytes on its open
        connections. A peer without calls has sent nothing in part.
        """
        parts: dict[str, int] = {}
        for name, known in whole.items():
            peer, size = self._peers[name], received.get(name)
            if size is None:
                if not peer.calls:
                    del self._peers[name]
            elif size < known or not peer.calls:
                peer.whole += size - known
            elif peer.waits:
                parts[name] = size - known
        excess, before = sum(parts.values()) - self._quota_bytes, self.ended
        for name in sorted(parts, key=lambda each: parts[each], reverse=True):
            if excess <= 0:
                break
            excess -= parts[name]
            peer = self._peers[name]
            peer.whole += parts[name]
            for limit in tuple(peer.waits):
                self._end(limit)
        if count := self.ended - before:
            log.warning("ended %d streams whose messages took too much memory", count)
        return self.ended - before

    def end_one_for(self, caller: str, count_of: Counter[str]) -> bool:
        """End the longest wait of the caller with most streams, if that is above `caller`'s by two
        or more; return whether there is one. count_of: caller -> streams."""
        for most, count in count_of.most_common():
            if count < count_of[caller] + 2:
                return False
            for peer in self._peers.values():
                for limit, other in peer.waits.items():
                    if other == most and self._end(limit):
                        return True
        return False

    def _end(self, limit: asyncio.Timeout) -> bool:
        if limit.expired() or limit.when() is not None:
            return False
        limit.reschedule(asyncio.get_running_loop().time())
        self.ended += 1
        return True


async def watch_half_sent(messages: HalfSentMessages, ports: Sequence[int]) -> None:
    """Weigh what the connections of `ports` have received, as long as the task runs."""
    while DESCRIPTORS.is_dir():
        begun = time.monotonic()
        whole = messages.whole()
        try:
            received = await asyncio.to_thread(received_bytes, ports)
            messages.weigh(whole, received)
        except OSError as error:
            log.warning("connections cannot be listed (%s)", error)
        await asyncio.sleep(max(BUSY_CHECK_S, 10 * (time.monotonic() - begun)))
        await messages.begin(CHECK_S)
