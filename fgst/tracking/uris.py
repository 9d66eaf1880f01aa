"""URIs of tracking stores and of database files: the only place where paths become URIs, and URIs paths."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fgst.errors import InputError
from fgst.network import complete_url

DEFAULT_NAME = "mlflow.db"
DATABASE_SUFFIXES = (".db", ".sqlite", ".sqlite3")
_SERVERS = ("http", "https")
# A host with a dot or a port, perhaps after a scheme without its two slashes.
_WEB_ADDRESS = re.compile(r"(?:(https?):/?)?((?:localhost|[\w-]+(?:\.[\w-]+)+|[\w-]+(?=:\d))(?::\d+)?(?:/\S*)?)")
_DATABASES = ("postgresql", "mysql", "mssql", "sqlite")


def sqlite_uri(database: Path) -> str:
    """Return the URI of an SQLite database; a path with ``%`` or ``?`` is quoted, others are not, for readability."""
    import sqlalchemy  # lazy: commands that start servers import this module for `--help`

    path = str(database.absolute())
    plain = f"sqlite:///{path}"
    if sqlalchemy.make_url(plain).database == path:
        return plain
    return sqlalchemy.URL.create("sqlite", database=path).render_as_string()


def database_path(uri: str) -> Path | None:
    """The database file of an ``sqlite:///…`` URI; ``None`` for other URIs and for databases in memory."""
    if not uri.startswith("sqlite:///"):
        return None
    import sqlalchemy  # lazy: see sqlite_uri

    name = sqlalchemy.make_url(uri).database
    return Path(name) if name and name != ":memory:" else None


def resolve_uri(uri: str | None = None) -> str:
    """Return the URI of the tracking store to use.

    Relative paths are made absolute, because trials run in working directories of their own.

    Args:
        uri: a URI or the path of an SQLite database; by default ``$MLFLOW_TRACKING_URI``, or else ``mlflow.db`` in the
            working directory. A password that was left out (``***``) is taken from that variable.

    Raises:
        InputError: if it is neither, e.g. a server without ``http://``, or if a left-out password is not there.
    """
    source = "--tracking-uri" if uri is not None else "MLFLOW_TRACKING_URI"
    if uri == "":
        raise InputError(f"{source} is empty; name a database or a server, or omit the option")
    uri = complete_url(uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_NAME, "MLFLOW_TRACKING_URI")
    scheme, separator, _ = uri.partition("://")
    scheme = scheme.lower()
    if scheme == "file" or uri.startswith("file:"):
        raise InputError(
            f"{source} {uri}: MLflow no longer supports folders as stores; name a database, e.g. mlflow.db (mlflow "
            "migrate-filestore converts an existing folder)"
        )
    if not separator:
        return sqlite_uri(_database(uri, f"{source} {uri}"))
    if scheme == "sqlite":
        import sqlalchemy  # lazy: see sqlite_uri

        url = sqlalchemy.make_url(uri)
        if not url.database:
            raise InputError(f"{source} {uri}: names no database; write e.g. sqlite:///mlflow.db")
        if Path(url.database).is_dir():
            raise InputError(f"{source} {uri}: is a folder; name a database in it, e.g. {uri}/{DEFAULT_NAME}")
        if os.path.isabs(url.database):
            return uri
        query = uri.partition("?")[2]
        return sqlite_uri(Path(url.database)) + (f"?{query}" if query else "")
    if scheme in _SERVERS or scheme.partition("+")[0] in _DATABASES:
        return uri
    raise InputError(
        f"{source} {uri}: there is no tracking store with scheme {scheme}; name a server (http://…) or a database "
        "(e.g. mlflow.db)"
    )


def resolve_existing_uri(uri: str | None = None) -> str:
    """Like :func:`resolve_uri`, for commands that read runs: they must not create a database.

    Raises:
        InputError: if the store is a database that does not exist.
    """
    resolved = resolve_uri(uri)
    database = database_path(resolved)
    if database is not None and not database.is_file():
        raise InputError(f"{database}: no such tracking store; name another with --tracking-uri")
    return resolved


def _database(path: str, given: str) -> Path:
    """Return a path that names a database. A new one needs a suffix, because the word may be meant as a server.

    Args:
        path: the path.
        given: where it comes from, for messages.

    Raises:
        InputError: if it is a folder, or neither a database's name nor an existing file.
    """
    database = Path(path)
    if database.is_dir() and path.strip():
        raise InputError(f"{given}: is a folder; name a database in it, e.g. {database / DEFAULT_NAME}")
    if database.suffix in DATABASE_SUFFIXES or database.is_file():
        return database
    match = _WEB_ADDRESS.fullmatch(path)
    server = f", or a server with its scheme, {match[1] or 'http'}://{match[2]}" if match else ""
    raise InputError(f"{given}: is not a tracking store; name a database that ends in .db, e.g. mlflow.db{server}")
