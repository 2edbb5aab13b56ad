"""Read text files that people write by hand, in the forms that editors give them."""

from __future__ import annotations

import codecs
from pathlib import Path

_OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_utf8(path: Path, *, refuse_mark: bool = False) -> str:
    """Return the text of a UTF-8 file without its byte order mark (BOM), which some editors write.

    Args:
        path: Path of the file.
        refuse_mark: Refuse a file with a mark, because other programs read it too.

    Raises:
        ValueError: the text is in another encoding. The message is a clause such as "it begins
            with the byte order mark (BOM) of UTF-16; save it as UTF-8", and never quotes the file.
        OSError: as `open`.
    """
    data = path.read_bytes()
    if refuse_mark and data.startswith(codecs.BOM_UTF8):
        raise ValueError("it begins with the byte order mark (BOM) of UTF-8; save it without one")
    for mark, name in _OTHER_MARKS.items():
        if data.startswith(mark):
            raise ValueError(
                f"it begins with the byte order mark (BOM) of {name}; save it as UTF-8"
            )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8; save the file as UTF-8") from None
