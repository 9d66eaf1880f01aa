"""The tracking server for a team: MLflow on PostgreSQL (or SQLite), protected by passwords.

All data is in one folder, which later starts reuse:

``postgres`` or ``mlflow.db`` and ``users.db``
    the databases of runs and users
``artifacts``, or ``artifacts.uri`` with the URI of another location
    weights, tables and plots
``password``, ``secret``
    a generated admin password, and the key that signs the web pages' forms
``known``
    marks that the server has started once: the admin user exists, and MLflow stores the password's hash
``lock``, ``mlflow.log``, ``postgres.log``
    the lock of the running server, and the logs
"""

from __future__ import annotations

import getpass
import importlib.util
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from filelock import FileLock, Timeout

from fgst import durable
from fgst.errors import InputError
from fgst.ops.postgres import START_TIMEOUT, STOP_TIMEOUT, find_postgres, running_postgres
from fgst.tracking.uris import sqlite_uri

ADMIN = "admin"
MIN_PASSWORD_LENGTH = 12  # MLflow's own minimum


@dataclass(frozen=True)
class ServerOptions:
    """Settings of a tracking server.

    Attributes:
        folder: absolute path of the folder for all data.
        host: address to listen on.
        port: port to listen on.
        workers: number of MLflow's worker processes.
        allowed_hosts: comma-separated host names that MLflow answers to; ``None`` is MLflow's default.
        sqlite: store runs and users in SQLite files instead of PostgreSQL.
        artifacts: URI of an object store for artifacts; ``None`` is ``folder / "artifacts"``.
    """

    folder: Path
    host: str = "127.0.0.1"
    port: int = 5000
    workers: int = 2
    allowed_hosts: str | None = None
    sqlite: bool = False
    artifacts: str | None = None

    @property
    def url(self) -> str:
        """The address at which clients on this machine reach the server."""
        return f"http://{self.host}:{self.port}"

    @property
    def log(self) -> Path:
        """The log file of the MLflow server."""
        return self.folder / "mlflow.log"


@dataclass(frozen=True)
class AdminPassword:
    """The admin's password.

    Attributes:
        value: the password to set; "" after the first start, when MLflow has its hash.
        source: where the user can find it, in words, e.g. "as given" or "in server/password".
    """

    value: str
    source: str


def run_server(options: ServerOptions, on_ready: Callable[[AdminPassword], None]) -> int:
    """Run the tracking server until it ends, or until Ctrl-C; commands handle SIGTERM in the same way.

    Args:
        on_ready: called when the server answers.

    Returns:
        MLflow's exit code; 0 after Ctrl-C.

    Raises:
        InputError: if the server cannot start; the message names the option.
    """
    _require_packages()
    if options.artifacts:
        _require_writable(options.artifacts)
    programs = None if options.sqlite else find_postgres()
    _require_free_port(options.host, options.port)
    folder = options.folder
    try:
        durable.make_folder(folder)
    except OSError as error:
        raise InputError(f"--dir {folder}: cannot be created ({error.strerror})") from None
    with ExitStack() as stack:
        try:
            stack.enter_context(FileLock(folder / "lock", timeout=0))
        except Timeout:
            raise InputError(f"another server is running in {folder}; choose another folder with --dir") from None
        if (folder / ("postgres" if options.sqlite else "mlflow.db")).exists():
            first = "without" if options.sqlite else "with"
            raise InputError(f"{folder} was created {first} --sqlite; start the server as before")
        artifacts = artifact_root(folder, options.artifacts)
        password = admin_password(folder)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell script ignore it
        try:
            if programs is None:
                runs_uri, users_uri = sqlite_uri(folder / "mlflow.db"), sqlite_uri(folder / "users.db")
            else:
                runs_uri, users_uri = stack.enter_context(running_postgres(folder, programs))
            server = stack.enter_context(_running_mlflow(options, runs_uri, users_uri, artifacts, password.value))
            _wait_until_ready(server, options)
            on_ready(password)
            return server.wait()
        except KeyboardInterrupt:
            return 0


def artifact_root(folder: Path, requested: str | None) -> str:
    """Return where artifacts are stored. Runs refer to paths below it, so it is fixed at the first start.

    Args:
        folder: the server's folder.
        requested: URI of an object store, or ``None`` for the folder itself.

    Raises:
        InputError: if it differs from that of the first start.
    """
    file = folder / "artifacts.uri"
    previous = file.read_text().strip() if file.exists() else ""
    uri = (requested or "").rstrip("/")
    if previous != uri:
        if (folder / "known").exists():
            first = f"with --artifacts {previous}" if previous else "without --artifacts"
            raise InputError(f"{folder} was created {first}; start the server as before")
        durable.write(file, uri + "\n")
    return uri or str(folder / "artifacts")


def admin_password(folder: Path) -> AdminPassword:
    """Determine the admin's password for the first start.

    It comes from FGST_SERVER_PASSWORD, from a prompt on a terminal, or is generated and saved in the folder.

    Raises:
        InputError: if the given password is too short.
    """
    file = folder / "password"
    if (folder / "known").exists():
        source = f"as in {file}" if file.exists() else "as set at the first start"
        return AdminPassword("", f"{source} (to change it, see mlflow/README.md)")
    given = os.environ.get("FGST_SERVER_PASSWORD", "")
    if not given and sys.stdin.isatty():
        given = getpass.getpass(f"password for the user {ADMIN} (press Return to generate one): ")
    if given and len(given) < MIN_PASSWORD_LENGTH:
        raise InputError(
            f"the server's password must have at least {MIN_PASSWORD_LENGTH} characters (FGST_SERVER_PASSWORD)"
        )
    if given:
        return AdminPassword(given, "as given")
    return AdminPassword(_secret(file), f"in {file}")


def _require_packages() -> None:
    if importlib.util.find_spec("flask_wtf") is None or importlib.util.find_spec("psycopg2") is None:
        raise InputError("the server needs additional packages: pip install -e '.[server]'")


def _require_writable(uri: str) -> None:
    """Write an object below a URI and delete it, so that an unusable location fails at the start and not in a trial.

    Raises:
        InputError: if the URI cannot be used.
    """
    from pyarrow import fs  # lazy: needed with --artifacts only

    if "://" not in uri:
        raise InputError(f"--artifacts {uri}: not a URI, e.g. s3://bucket/mlflow; for a local folder use --dir")
    if urlsplit(uri).password:
        raise InputError("--artifacts contains a secret; set AWS_ACCESS_KEY_ID etc. in the environment instead")
    if uri.startswith("s3://") and importlib.util.find_spec("boto3") is None:
        raise InputError(f"--artifacts {uri}: MLflow needs boto3 for S3: pip install -e '.[cluster]'")
    try:
        filesystem, path = fs.FileSystem.from_uri(uri.rstrip("/") + "/.written-to-try")
        with filesystem.open_output_stream(path) as stream:
            stream.write(b"fgst.server")
        filesystem.delete_file(path)
    except (OSError, ValueError) as error:  # includes Arrow's own errors
        raise InputError(f"--artifacts {uri}: cannot be written ({str(error).splitlines()[0]})") from None


def _require_free_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(f"--host {host} --port {port}: cannot listen there ({error.strerror})") from None


def _secret(path: Path) -> str:
    """Return the random text in a file that only its owner can read, generating it on the first call."""
    if not path.exists():
        with durable.replacing(path) as temporary:
            temporary.unlink(missing_ok=True)  # of a killed process
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(24) + "\n")
    return path.read_text().strip()


@contextmanager
def _running_mlflow(
    options: ServerOptions, runs_uri: str, users_uri: str, artifacts: str, password: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the MLflow server within the context.

    Args:
        runs_uri: database of runs.
        users_uri: database of users.
        artifacts: folder or URI for artifacts.
        password: the admin's password at the first start, else "".
    """
    settings = options.folder / "auth.ini"
    settings.write_text(
        f"[mlflow]\ndefault_permission = EDIT\nadmin_username = {ADMIN}\n"
        f"database_uri = {users_uri.replace('%', '%%')}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 60\n"  # or every request would hash a password, which is slow by design
    )
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_TRACKING", "FGST_SERVER"))},
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": _secret(options.folder / "secret"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # an unused feature that costs eight processes and a gigabyte
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        **({"MLFLOW_AUTH_ADMIN_PASSWORD": password} if password else {}),
    }
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--backend-store-uri", runs_uri),
        *("--artifacts-destination", artifacts, "--host", options.host, "--port", str(options.port)),
        *("--workers", str(options.workers)),
        *(("--allowed-hosts", options.allowed_hosts) if options.allowed_hosts else ()),
    ]
    with options.log.open("ab") as log:
        # In its own session, so that Ctrl-C reaches only this process, which stops MLflow before PostgreSQL.
        server = subprocess.Popen(
            command, env=environment, cwd=options.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield server
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(server.pid, number)
                server.wait(STOP_TIMEOUT)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue


def _wait_until_ready(server: subprocess.Popen[bytes], options: ServerOptions) -> None:
    """Wait until the server answers; the first start creates the tables, which takes most of the time."""
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urlopen(f"{options.url}/health", timeout=5):
                durable.write(options.folder / "known", b"")
                return
        except (URLError, OSError):
            time.sleep(0.5)
    raise InputError(f"the server did not start; see {options.log}")
