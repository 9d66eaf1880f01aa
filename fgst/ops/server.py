"""The tracking server for a team: MLflow on PostgreSQL, behind a password.

  make server                                        # data in server/, on http://127.0.0.1:5000
  python -m fgst.server --dir /srv/fgst --port 5001
  python -m fgst.server --sqlite                     # without PostgreSQL: for one or two people
  python -m fgst.server --artifacts s3://bucket/mlflow        # weights, tables and pictures in a bucket

Everything lies in one folder, and a second start takes it up. The password of the user admin comes from
FGST_SERVER_PASSWORD at the first start, or is asked for, or is made and kept in the folder's file password.
Ctrl-C ends it. mlflow/README.md tells how others reach it, over TLS.
"""

from __future__ import annotations

import getpass
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import quote, urlsplit
from urllib.request import urlopen

from filelock import FileLock, Timeout

from fgst.cli.command import CommandParser, run_command
from fgst.errors import InputError

USER = "admin"
START = 180.0  # seconds that the server may take to answer; making its tables takes most of them
STOP = 30.0
_SHORTEST_PASSWORD = 12  # MLflow takes no shorter one
_LONGEST_SOCKET = 80  # of 107 bytes that a socket's path may have; its name is added


def main(argv: list[str] | None = None) -> None:
    parser = CommandParser("python -m fgst.server", __doc__)
    parser.add_argument("--dir", default="server", help="where everything is kept (default: server)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=2, help="processes that answer (default: 2)")
    parser.add_argument("--allowed-hosts", help="names by which others reach it, e.g. mlflow.example.org,10.0.0.5:*")
    parser.add_argument("--sqlite", action="store_true", help="a file instead of PostgreSQL")
    parser.add_argument(
        "--artifacts", metavar="URI", help="where artifacts go, e.g. s3://bucket/mlflow (default: --dir)"
    )
    args = parser.parse_args(argv)
    if importlib.util.find_spec("flask_wtf") is None or importlib.util.find_spec("psycopg2") is None:
        raise InputError("the server needs a few packages more: pip install -e '.[server]'")
    if args.artifacts:
        _require_store(args.artifacts)
    folder = Path(args.dir).absolute()
    programs = None if args.sqlite else find_postgres()
    _require_free(args.host, args.port)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--dir {folder}: cannot be written ({error.strerror})") from None
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(folder / "lock", timeout=0))
        except Timeout:
            raise InputError(f"another server works in {folder}; --dir names another folder") from None
        if (folder / ("postgres" if args.sqlite else "mlflow.db")).exists():
            raise InputError(f"{folder} was begun {'without' if args.sqlite else 'with'} --sqlite; start it as before")
        artifacts = _artifacts(folder, args.artifacts)
        password, told = _password(folder)
        for number in (signal.SIGTERM, signal.SIGINT):  # a shell script's background jobs ignore the second
            signal.signal(number, signal.default_int_handler)
        try:
            if programs is None:
                store, users = f"sqlite:///{folder / 'mlflow.db'}", f"sqlite:///{folder / 'users.db'}"
            else:
                store, users = stack.enter_context(_postgres(folder, programs))
            server = stack.enter_context(_mlflow(folder, store, users, artifacts, password, args))
            address = f"http://{args.host}:{args.port}"
            _wait_for(server, f"{address}/health", folder)
            print(
                f"tracking server on {address}, data in {folder} (Ctrl-C ends it)\n{told}\n"
                f"to use it:\n  export MLFLOW_TRACKING_URI={address} MLFLOW_TRACKING_USERNAME={USER}"
                " MLFLOW_TRACKING_PASSWORD=…",
                flush=True,
            )
            code = server.wait()
        except KeyboardInterrupt:
            code = 0
    if code:
        print(f"the server ended by itself (exit {code}); see {folder / 'mlflow.log'}", file=sys.stderr)
        sys.exit(1)
    print(f"stopped; the data stay in {folder}", flush=True)


def find_postgres() -> Path:
    """The folder of PostgreSQL's programs.

    Raises:
        InputError: if it is not installed.
    """
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if all((folder / name).is_file() for name in ("initdb", "pg_ctl", "postgres")):
            return folder
    raise InputError("PostgreSQL is not installed: apt-get install postgresql, or start with --sqlite")


def _require_store(uri: str) -> None:
    """Write to an object store and remove it again: what cannot be written there is better found now than by a trial.

    Raises:
        InputError: if that does not work.
    """
    from pyarrow import fs

    if "://" not in uri:
        raise InputError(f"--artifacts {uri}: name a URI, e.g. s3://bucket/mlflow; a folder is what --dir is for")
    if urlsplit(uri).password:
        raise InputError("--artifacts holds a secret; give it in the environment instead (AWS_ACCESS_KEY_ID, …)")
    if uri.startswith("s3://") and importlib.util.find_spec("boto3") is None:
        raise InputError(f"--artifacts {uri}: MLflow needs boto3 for it: pip install -e '.[cluster]'")
    try:
        store, base = fs.FileSystem.from_uri(uri.rstrip("/") + "/.written-to-try")
        with store.open_output_stream(base) as stream:
            stream.write(b"fgst.server")
        store.delete_file(base)
    except (OSError, ValueError) as error:  # those of Arrow are among them
        raise InputError(f"--artifacts {uri}: cannot be written ({str(error).splitlines()[0]})") from None


def _artifacts(folder: Path, given: str | None) -> str:
    """Where artifacts go. Runs remember them by paths below this, so it stays what it was at the first start.

    Raises:
        InputError: if it is another one now.
    """
    kept = folder / "artifacts.uri"
    before = kept.read_text().strip() if kept.exists() else ""
    asked = (given or "").rstrip("/")
    if before != asked:
        if (folder / "known").exists():
            was = f"with --artifacts {before}" if before else "without --artifacts"
            raise InputError(f"{folder} was begun {was}; start it as before")
        kept.write_text(asked + "\n")
    return asked or str(folder / "artifacts")


def _password(folder: Path) -> tuple[str, str]:
    """The password for a first start, and what to tell about it. Later MLflow keeps it, as a hash."""
    kept, known = folder / "password", folder / "known"
    given = os.environ.get("FGST_SERVER_PASSWORD", "")
    if known.exists():
        where = f"as in {kept}" if kept.exists() else "as at the first start"
        return "", f"user {USER}, password {where} (mlflow/README.md tells how to change it)"
    if not given and sys.stdin.isatty():
        given = getpass.getpass(f"a password for the user {USER} (Return makes one): ")
    if given and len(given) < _SHORTEST_PASSWORD:
        raise InputError(f"the server's password needs {_SHORTEST_PASSWORD} characters or more (FGST_SERVER_PASSWORD)")
    if given:
        return given, f"user {USER}, password as given"
    if not kept.exists():
        _secret(kept)
    return kept.read_text().strip(), f"user {USER}, password in {kept}"


def _secret(path: Path) -> str:
    """A random text, made once, in a file that nobody else reads."""
    if not path.exists():
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(24) + "\n")
    return path.read_text().strip()


@contextmanager
def _postgres(folder: Path, programs: Path) -> Iterator[tuple[str, str]]:
    """PostgreSQL inside; the URIs of a database for runs and one for users.

    It listens on a socket in a folder of its own user's, and on no port: who may enter the folder may use it.
    """
    data, log = folder / "postgres", folder / "postgres.log"
    as_user = _ordinary_user(folder)
    data.mkdir(exist_ok=True)
    sockets = folder / "socket"
    if len(str(sockets)) > _LONGEST_SOCKET:
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
            said = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise InputError(f"PostgreSQL's {command[0]} failed in {folder}: {said}")

    if not (data / "PG_VERSION").exists():
        call("initdb", "-D", data, "-U", "fgst", "--auth=trust", "--encoding=UTF8", "--locale=C")
    call("pg_ctl", "-D", data, "stop", "-m", "fast", check=False)  # one whose server was killed
    options = f"-c listen_addresses='' -c unix_socket_directories='{sockets}' -c max_connections=200"
    call("pg_ctl", "-D", data, "-l", log, "-w", "-t", str(int(START)), "-o", options, "start")
    try:
        _databases(sockets, "mlflow", "users")
        host = quote(str(sockets), safe="")
        yield f"postgresql+psycopg2://fgst@/mlflow?host={host}", f"postgresql+psycopg2://fgst@/users?host={host}"
    finally:
        call("pg_ctl", "-D", data, "stop", "-m", "fast", "-w", "-t", str(int(STOP)), check=False)
        shutil.rmtree(sockets, ignore_errors=True)


def _ordinary_user(folder: Path) -> dict[str, Any]:
    """As whom PostgreSQL runs, for ``subprocess``: it refuses root."""
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
        "start the server as an ordinary user, or with --dir in a folder that others may enter"
    )


def _databases(sockets: Path, *names: str) -> None:
    import psycopg2  # type: ignore[import-untyped]

    connection = psycopg2.connect(host=str(sockets), user="fgst", dbname="postgres")
    connection.autocommit = True
    with connection.cursor() as cursor:
        for name in names:
            cursor.execute("select 1 from pg_database where datname = %s", (name,))
            if cursor.fetchone() is None:
                cursor.execute(f'create database "{name}"')
    connection.close()


@contextmanager
def _mlflow(
    folder: Path, store: str, users: str, artifacts: str, password: str, args: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """The MLflow server inside."""
    settings = folder / "auth.ini"
    settings.write_text(
        f"[mlflow]\ndefault_permission = EDIT\ndatabase_uri = {users.replace('%', '%%')}\nadmin_username = {USER}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 60\n"  # or each request would hash a password, slowly by design
    )
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_TRACKING", "FGST_SERVER"))},
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": _secret(folder / "secret"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # eight processes and a gigabyte for what nothing here uses
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        **({"MLFLOW_AUTH_ADMIN_PASSWORD": password} if password else {}),
    }
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--backend-store-uri", store),
        *("--artifacts-destination", artifacts, "--host", args.host, "--port", str(args.port)),
        *("--workers", str(args.workers), *(["--allowed-hosts", args.allowed_hosts] if args.allowed_hosts else [])),
    ]
    with (folder / "mlflow.log").open("ab") as log:
        # A session of its own: Ctrl-C reaches this process alone, which ends both in their order.
        server = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield server
    finally:
        for number, patience in ((signal.SIGTERM, STOP), (signal.SIGKILL, STOP)):
            try:
                os.killpg(server.pid, number)
                server.wait(patience)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue


def _wait_for(server: subprocess.Popen[bytes], url: str, folder: Path) -> None:
    end = time.monotonic() + START
    while time.monotonic() < end and server.poll() is None:
        try:
            with urlopen(url, timeout=5):
                (folder / "known").touch()  # its user is made: MLflow wants no password from here on
                return
        except (URLError, OSError):
            time.sleep(0.5)
    raise InputError(f"the server did not start; see {folder / 'mlflow.log'}")


def _require_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(f"--host {host} --port {port}: cannot listen there ({error.strerror})") from None


if __name__ == "__main__":
    run_command(main)
