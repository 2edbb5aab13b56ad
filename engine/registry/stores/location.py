"""Where a store is: the path of a file or a postgresql:// URL, and nothing that resembles one.

A mistyped URL that was taken for a path would give each server of a fleet a store of its own, in a
folder that is named with the password. Messages never quote the value.
"""

from __future__ import annotations

import re

from engine.registry.stores.base import POSTGRES

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30})://")
# Before the first slash a path has no colon, unless it is a URL or a host with a port.
_URL_LIKE = re.compile(r"[^/]*:|.*:[^/]*@|//")
_KEYWORDS = re.compile(
    r"(?![./]).*\b(host|hostaddr|port|dbname|user|password|service)\s*=", re.IGNORECASE
)
_QUOTES = "\"'`“”‘’«»"
KNOWN = "expected the path of an SQLite file or a URL that begins with postgresql:// or postgres://"


def location_problem(text: str) -> str:
    """Say what is wrong with a store's location, without quoting it; "" if nothing is."""
    if not text:
        return f"is empty; {KNOWN}."
    if text[0] in _QUOTES or text[-1] in _QUOTES:
        return f"has quotes around it, which belong to a shell; {KNOWN}."
    if not text.isprintable() or text != text.strip():
        return f"has a blank at an end, a line break or a control character; {KNOWN}."
    if text.startswith(POSTGRES):
        return ""
    if scheme := SCHEME.match(text):
        return f"has the unknown scheme {scheme[1]}://; {KNOWN}."
    if _KEYWORDS.match(text) or _URL_LIKE.match(text) or "://" in text:
        return f"is neither a path nor a known URL; {KNOWN}. Write a path with a colon as ./PATH."
    return ""


def path_problem(text: str) -> str:
    """Say what is wrong with the path of a file, without quoting it; "" if nothing is."""
    if not text.strip():
        return "is empty; unset it, or give the path of a file."
    if "://" in text or text[:1] in _QUOTES or not text.isprintable():
        return "is a URL, has quotes around it or a control character; expected the path of a file."
    return ""
