"""Files for their owner alone, because they hold instructions or say who did what."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

OWNER_ONLY = 0o600
SQLITE_SUFFIXES = ("", "-wal", "-shm", "-journal")


def create_private(path: Path) -> None:
    """Create an empty file for its owner alone, whatever the umask is; keep one that exists.

    SQLite takes an empty file for a new database, and gives its logs the mode of the database.
    A database that exists is not opened: to close it would release every lock that SQLite holds on
    it in this process (POSIX), and the next reader to leave would take the log for unused.
    """
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    with suppress(FileExistsError):
        os.close(os.open(path.resolve(), flags, OWNER_ONLY))


def make_private(path: Path) -> None:
    """Take the permissions of group and others from a database that exists, and from its logs.

    What belongs to another user, or lies on a file system without modes, stays as it is.
    """
    for suffix in SQLITE_SUFFIXES:
        with suppress(OSError):
            file = path.with_name(path.name + suffix)
            if file.stat().st_mode & 0o077:
                file.chmod(OWNER_ONLY)
