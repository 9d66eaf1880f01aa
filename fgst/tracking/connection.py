"""Connections to MLflow tracking stores: their URIs, their clients, and errors that mean "server unavailable"."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import requests
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException, RestException

from fgst import durable
from fgst.errors import InputError, StoreUnavailable, is_database_unavailable
from fgst.network import driver_url, redact, require_server
from fgst.tracking.deletion import ExplainingClient
from fgst.tracking.relocation import relocate
from fgst.tracking.spool import RetryingClient
from fgst.tracking.uris import database_path, sqlite_uri


@dataclass(frozen=True)
class Connection:
    """An open connection to a tracking store.

    Attributes:
        uri: the store's URI, with its password.
        raw_client: MLflow's client; its calls fail at once if the server is unavailable. Calls that write to deleted
            runs raise :class:`~fgst.errors.DeletedInMlflow`.
        client: the same client with calls that are retried while the server is unavailable or the database is locked.
    """

    uri: str = field(repr=False)
    raw_client: Any
    client: Any

    @property
    def remote(self) -> bool:
        """Whether the store is behind a tracking server."""
        return _is_server(self.uri)


def connect(uri: str, *, wait: bool = False) -> Connection:
    """Connect to a tracking store, and check that it responds. An SQLite database is created or migrated if necessary.

    Args:
        uri: as returned by :func:`fgst.tracking.uris.resolve_uri`.
        wait: retry while the server is unavailable, instead of raising :class:`InputError`.

    Raises:
        InputError: if the store cannot be reached or opened, or if it rejects the credentials.
        StoreUnavailable: if a database stays locked; with ``wait``, if the server stays unavailable.
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
        else:
            _relocate(database)
    elif not wait:  # MLflow would try to connect for minutes, without a message
        require_server(uri, "the tracking server" if _is_server(uri) else "the database")
    try:
        mlflow_client = MlflowClient(tracking_uri=driver_url(uri), registry_uri=driver_url(uri))
        raw_client = ExplainingClient(mlflow_client, uri)
        client = RetryingClient(raw_client, is_server_unavailable)
        (client if wait or database is not None else raw_client).search_experiments(max_results=1)
    except (StoreUnavailable, InputError):
        raise
    except Exception as error:  # MLflow passes on all errors of database drivers and HTTP clients
        if http_status(error) in (401, 403):
            raise InputError(
                f"the tracking server {redact(uri)} refuses these credentials: "
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN)"
            ) from None
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"cannot open the tracking store {redact(uri)}: {message}") from None
    return Connection(uri, raw_client, client)


def local_artifacts(run: Run) -> Path | None:
    """The folder of a run's artifacts; ``None`` if it is not in this machine's file system."""
    parts = urlsplit(str(run.info.artifact_uri))
    if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost"):
        return None
    return Path(unquote(parts.path) if parts.scheme else str(run.info.artifact_uri))


def is_server_unavailable(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, means that the tracking store is unavailable.

    That is: connection refused, timeout, HTTP status 429 or 5xx, or a locked database.
    """
    if is_database_unavailable(error):
        return True
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


def _relocate(database: Path) -> None:
    try:
        relocate(database)
    except (OSError, sqlite3.Error) as error:  # e.g. read-only, or not a database
        if "readonly" in str(error):
            print(f"note: {database} is read-only, so its artifacts are looked up where it was before", file=sys.stderr)
        elif not is_database_unavailable(error):
            raise InputError(f"cannot open the tracking store {database}: {error}") from None


def _create_database(database: Path) -> None:
    """Create an SQLite store atomically: MLflow takes seconds, and cannot continue an interrupted initialization."""
    print(f"creating the tracking store {database}", file=sys.stderr, flush=True)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{database.name}-", dir=database.parent) as folder:
            complete = Path(folder) / database.name
            MlflowClient(tracking_uri=sqlite_uri(complete)).search_experiments(max_results=1)
            with suppress(FileExistsError):  # another process was faster
                os.link(complete, database)
            durable.sync(database.parent)
    except OSError as error:
        raise InputError(
            f"the tracking store {database} cannot be created ({error.strerror or error}); choose another location "
            "with --tracking-uri"
        ) from None
