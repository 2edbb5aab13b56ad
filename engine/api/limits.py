"""Size limits that gRPC, HTTP and ext_proc share, and the validation of texts against them."""

from __future__ import annotations

from engine.api.errors import InvalidInputError, Violation

# A table of 1,000 candidates with 50 tasks of 300 characters is 16 MB.
MIB = 1024 * 1024
MAX_MESSAGE_BYTES = 20 * MIB
MAX_BATCH_REQUESTS = 256  # of one BatchRoute


def is_utf8(text: str) -> bool:
    """Return True if `text` can be encoded; text from command lines or JSON may hold surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_text(text: str, limit_bytes: int, field: str = "text") -> None:
    """Raise InvalidInputError if `text` is blank, not valid UTF-8, or over `limit_bytes`."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidInputError(
            Violation(field, "is not valid UTF-8; send text as UTF-8.")
        ) from None
    if not text.strip():
        raise InvalidInputError(
            Violation(field, "is empty or white space; send the instruction to route.")
        )
    if size > limit_bytes:
        raise InvalidInputError(
            Violation(
                field,
                f"is {size} bytes, the limit is {limit_bytes}; send only the part that holds the"
                " instruction, or start the server with a larger --max-text-bytes.",
            )
        )
