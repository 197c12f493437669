"""A PostgreSQL server of one's own, on a free port of the loopback interface."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

PROGRAMS = Path("/usr/lib/postgresql")  # where Debian puts them
OWNER, SECRET = "owner", "pa55word"


def why_not() -> str:
    """Why no server can be started here; empty if one can."""
    if _initdb() is None:
        return "PostgreSQL is not installed"
    if os.getuid() == 0 and shutil.which("runuser") is None:
        return "PostgreSQL does not run as root, and there is no runuser"
    return ""


class Server:
    """A server with a new cluster of databases, gone with it; a context.

    Args:
        name: Of its folder; of one process it has to differ.
        sync: Whether a commit is on the disk before it is answered, so that it outlives an
            immediate stop for certain.
    """

    def __init__(self, name: str = "", *, sync: bool = False) -> None:
        found = _initdb()
        assert found is not None, why_not()
        self._home = Path("/tmp") / f"fusetune-postgresql-{os.getpid()}{name}"  # for sockets
        self._as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        self._initdb = found
        self._sync = sync
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])

    @property
    def url(self) -> str:
        """With user and password, without a database."""
        return f"postgresql://{OWNER}:{SECRET}@127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._home.mkdir()
        secret = self._home / "secret"
        secret.write_text(SECRET)
        secret.chmod(0o644)
        if self._as_user:
            shutil.chown(self._home, "postgres")
        try:
            self._call(
                self._initdb, "-D", str(self._home / "data"), "-U", OWNER, "-N",
                "-A", "scram-sha-256", f"--pwfile={secret}",
            )  # fmt: skip
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop(check=False)
        shutil.rmtree(self._home, ignore_errors=True)

    def start(self) -> None:
        """Start, and wait until it answers."""
        options = f"-p {self.port} -k {self._home} -c listen_addresses=127.0.0.1"
        options += "" if self._sync else " -c fsync=off"
        self._control("-l", str(self._home / "log"), "-o", options, "start")

    def stop(self, mode: str = "immediate", *, check: bool = True) -> None:
        """Stop.

        Args:
            mode: "immediate", as if the power were cut; "fast" ends all sessions in order.
            check: Whether it has to be running.
        """
        self._control("-m", mode, "stop", check=check)

    def database(self, name: str) -> str:
        """Create a database; its URL."""
        import psycopg

        with psycopg.connect(f"{self.url}/postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"{self.url}/{name}"

    def _control(self, *command: str, check: bool = True) -> None:
        program = str(Path(self._initdb).with_name("pg_ctl"))
        self._call(program, "-D", str(self._home / "data"), "-w", *command, check=check)

    def _call(self, *command: str, check: bool = True) -> None:
        # To files, not pipes: the server keeps what it inherits open.
        subprocess.run(
            [*self._as_user, *command], check=check, cwd="/", stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip


def _initdb() -> str | None:
    programs = sorted(PROGRAMS.glob("*/bin/initdb"))
    return str(programs[-1]) if programs else shutil.which("initdb")
