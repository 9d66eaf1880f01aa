"""Connections to MLflow tracking stores: their URIs, their clients, and errors that mean "server unavailable"."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import requests
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException, RestException

from fgst import durable
from fgst.errors import InputError
from fgst.network import require_server
from fgst.tracking.spool import RetryingClient, TrackingServerUnavailable

DEFAULT_URI = "sqlite:///mlflow.db"


@dataclass(frozen=True)
class Connection:
    """An open connection to a tracking store.

    Attributes:
        uri: the store's URI.
        raw_client: MLflow's client; its calls fail at once if the server is unavailable.
        client: the same client with calls that are retried while the server is unavailable; for a database, identical
            to ``raw_client``.
    """

    uri: str
    raw_client: MlflowClient
    client: Any

    @property
    def remote(self) -> bool:
        """Whether the store is behind a tracking server."""
        return _is_server(self.uri)


def resolve_uri(uri: str | None = None) -> str:
    """Return the URI of the tracking store to use.

    Relative paths are made absolute, because trials run in working directories of their own.

    Args:
        uri: a URI or the path of an SQLite database; by default ``$MLFLOW_TRACKING_URI``, or else ``mlflow.db`` in the
            working directory.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    for scheme in ("sqlite:///", "file://"):
        if uri.startswith(scheme) and not uri.removeprefix(scheme).startswith(("/", "?")):
            return scheme + str(Path(uri.removeprefix(scheme)).absolute())
    return uri if "://" in uri else f"sqlite:///{Path(uri).absolute()}"


def resolve_existing_uri(uri: str | None = None) -> str:
    """Like :func:`resolve_uri`, for commands that only read: they must not create a database.

    Raises:
        InputError: if the store is a database that does not exist.
    """
    resolved = resolve_uri(uri)
    database = database_path(resolved)
    if database is not None and not database.is_file():
        raise InputError(f"{database}: no such tracking store; name another with --tracking-uri")
    return resolved


def database_path(uri: str) -> Path | None:
    """The database file of an ``sqlite:///…`` URI; ``None`` for other stores."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(uri.removeprefix("sqlite:///").partition("?")[0])


def connect(uri: str, *, wait: bool = False) -> Connection:
    """Connect to a tracking store, and check that it responds. An SQLite database is created or migrated if necessary.

    Args:
        uri: as returned by :func:`resolve_uri`.
        wait: retry while the server is unavailable, instead of raising :class:`InputError`.

    Raises:
        InputError: if the store cannot be reached or opened, or if it rejects the credentials.
        TrackingServerUnavailable: with ``wait``, if the server stays unavailable.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs each error that it also raises
    database = database_path(uri)
    if database is not None:
        durable.make_sqlite_durable()
        if not database.parent.is_dir():
            raise InputError(f"{uri}: no such directory {database.parent} for the database")
        if not database.exists():
            _create_database(database)
    if _is_server(uri) and not wait:
        require_server(uri, "the tracking server")
    try:
        raw_client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client: Any = RetryingClient(raw_client, is_server_unavailable) if _is_server(uri) else raw_client
        (client if wait else raw_client).search_experiments(max_results=1)
    except TrackingServerUnavailable:
        raise
    except Exception as error:  # MLflow passes on all errors of database drivers and HTTP clients
        if http_status(error) in (401, 403):
            raise InputError(
                f"the tracking server {uri} refuses these credentials: "
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN)"
            ) from None
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"cannot open the tracking store {uri}: {message}") from None
    return Connection(uri, raw_client, client)


def local_artifacts(run: Run) -> Path | None:
    """The folder of a run's artifacts; ``None`` if it is not in this machine's file system."""
    parts = urlsplit(str(run.info.artifact_uri))
    if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost"):
        return None
    return Path(unquote(parts.path) if parts.scheme else str(run.info.artifact_uri))


def is_server_unavailable(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, means that the tracking server is unavailable.

    That is: connection refused, timeout, HTTP status 429 or 5xx.
    """
    while error is not None:
        if isinstance(error, requests.ConnectionError | requests.Timeout | ConnectionError | TimeoutError):
            return True
        if isinstance(error, MlflowException) and "API request to" in str(error) and "failed" in str(error):
            return http_status(error) >= 500 or http_status(error) == 429
        if isinstance(error, RestException | requests.HTTPError):
            return http_status(error) >= 500 or http_status(error) == 429
        error = error.__cause__ or error.__context__
    return False


def http_status(error: BaseException) -> int:
    """The HTTP status that an error carries; 0 if it carries none."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return int(error.response.status_code)
    return int(error.get_http_status_code()) if isinstance(error, MlflowException) else 0


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://"))


def _create_database(database: Path) -> None:
    """Create an SQLite store atomically: MLflow takes seconds, and cannot continue an interrupted initialization."""
    print(f"creating the tracking store {database}", file=sys.stderr, flush=True)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{database.name}-", dir=database.parent) as folder:
            complete = Path(folder) / database.name
            MlflowClient(tracking_uri=f"sqlite:///{complete}").search_experiments(max_results=1)
            with suppress(FileExistsError):  # another process was faster
                os.link(complete, database)
            durable.sync(database.parent)
    except OSError as error:
        raise InputError(
            f"the tracking store {database} cannot be created ({error.strerror or error}); choose another location "
            "with --tracking-uri"
        ) from None
