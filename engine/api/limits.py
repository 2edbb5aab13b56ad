"""Size limits that gRPC, HTTP and ext_proc share."""

from __future__ import annotations

# A table of 1,000 candidates with 50 tasks of 300 characters is 16 MB, and one with 50 tasks of 60
# characters and places of 264 bytes is 18 MB.
MIB = 1024 * 1024
MAX_MESSAGE_BYTES = 20 * MIB
# What RouterService accepts at least, on an address of its own.
ROUTER_MESSAGE_BYTES = 4 * MIB
MAX_BATCH_REQUESTS = 256  # of one BatchRoute


def is_utf8(text: str) -> bool:
    """Return True if `text` can be encoded; text from command lines or JSON may hold surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
