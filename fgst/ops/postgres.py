"""A private PostgreSQL inside the tracking server's folder, reachable only through a socket there."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fgst.errors import InputError

START_TIMEOUT = 180  # seconds
STOP_TIMEOUT = 30
# A socket's path may have 107 bytes; PostgreSQL appends the socket's name to the folder's.
_MAX_SOCKET_FOLDER = 80


def find_postgres() -> Path:
    """Return the folder that contains PostgreSQL's programs.

    Raises:
        InputError: if PostgreSQL is not installed.
    """
    initdb = shutil.which("initdb")
    folders = [Path(initdb).resolve().parent] if initdb else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)  # Debian does not put them on the PATH
    for folder in folders:
        if all((folder / name).is_file() for name in ("initdb", "pg_ctl", "postgres")):
            return folder
    raise InputError("PostgreSQL is not installed: run apt-get install postgresql, or start with --sqlite")


@contextmanager
def running_postgres(folder: Path, programs: Path) -> Iterator[tuple[str, str]]:
    """Run PostgreSQL within the context, creating its data on the first start.

    It does not listen on a port, only on a socket in a folder that other users cannot access.

    Args:
        folder: the tracking server's folder.
        programs: what :func:`find_postgres` returned.

    Yields:
        The SQLAlchemy URIs of the databases for runs and for users.

    Raises:
        InputError: if PostgreSQL fails to start; the message has its reason.
    """
    data, log = folder / "postgres", folder / "postgres.log"
    as_user = _unprivileged_user(folder)
    data.mkdir(exist_ok=True)
    sockets = folder / "socket"
    if len(str(sockets)) > _MAX_SOCKET_FOLDER:
        sockets = Path(tempfile.gettempdir()) / f"fgst-postgres-{os.stat(data).st_ino}"
    sockets.mkdir(exist_ok=True)
    log.touch()
    for path in (data, sockets, log):
        if as_user:
            os.chown(path, as_user["user"], as_user["group"])
        path.chmod(0o600 if path == log else 0o700)

    def call(*command: str | Path, check: bool = True) -> None:
        done = subprocess.run(
            [programs / command[0], *command[1:]], capture_output=True, text=True, check=False, cwd="/", **as_user
        )
        if check and done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise InputError(f"PostgreSQL's {command[0]} failed in {folder}: {reason}")

    if not (data / "PG_VERSION").exists():
        call("initdb", "-D", data, "-U", "fgst", "--auth=trust", "--encoding=UTF8", "--locale=C")
    # After a crash of the tracking server, its PostgreSQL may still be running.
    call("pg_ctl", "-D", data, "stop", "-m", "fast", check=False)
    options = f"-c listen_addresses='' -c unix_socket_directories='{sockets}' -c max_connections=200"
    call("pg_ctl", "-D", data, "-l", log, "-w", "-t", str(START_TIMEOUT), "-o", options, "start")
    try:
        _create_databases(sockets, "mlflow", "users")
        host = quote(str(sockets), safe="")
        yield f"postgresql+psycopg2://fgst@/mlflow?host={host}", f"postgresql+psycopg2://fgst@/users?host={host}"
    finally:
        call("pg_ctl", "-D", data, "stop", "-m", "fast", "-w", "-t", str(STOP_TIMEOUT), check=False)
        shutil.rmtree(sockets, ignore_errors=True)


def _unprivileged_user(folder: Path) -> dict[str, Any]:
    """Return arguments of ``subprocess.run`` that start a program as an ordinary user; PostgreSQL rejects root."""
    if os.geteuid():
        return {}
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        if subprocess.run(["test", "-x", str(folder)], check=False, cwd="/", **as_user).returncode == 0:  # type: ignore[call-overload]
            return as_user
    raise InputError(
        f"PostgreSQL does not run as root, and the user postgres cannot enter {folder}: "
        "start the server as an ordinary user, or choose a --dir that other users can enter"
    )


def _create_databases(sockets: Path, *names: str) -> None:
    """Create those of the databases that do not exist."""
    import psycopg2  # type: ignore[import-untyped]  # lazy: of the extra "server", and not needed with --sqlite

    connection = psycopg2.connect(host=str(sockets), user="fgst", dbname="postgres")
    connection.autocommit = True
    with connection.cursor() as cursor:
        for name in names:
            cursor.execute("select 1 from pg_database where datname = %s", (name,))
            if cursor.fetchone() is None:
                cursor.execute(f'create database "{name}"')
    connection.close()
