"""The Optuna storage of a sweep: by default a database of its own; calls wait while it is locked or unreachable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
from optuna.storages import BaseStorage, RDBStorage, get_storage

from fgst import durable
from fgst.errors import InputError, StoreUnavailable, is_database_unavailable
from fgst.network import driver_url, redact
from fgst.tracking.spool import PATIENCE, retry_while_unavailable

VARIABLE = "FGST_STUDY_STORAGE"
"""Environment variable with the default of ``--study-storage``, and with the password that is not recorded."""
_SQLITE_TIMEOUT = 5.0  # seconds that one statement waits for a lock; Ctrl-C takes effect afterwards


class _RetryingStorage(BaseStorage):
    """Delegates to another storage and retries each call while its database is unavailable.

    After one call has waited for ``patience`` seconds in vain, further calls fail at once: a sweep that cannot record
    its trials ends, and its last calls must not wait as long each.
    """

    def __init__(self, open: Callable[[], BaseStorage], name: str, patience: float = PATIENCE) -> None:
        self._name, self._patience = name, patience
        self._storage = self._retry(open)

    def _retry(self, call: Callable[[], Any]) -> Any:
        try:
            return retry_while_unavailable(call, is_database_unavailable, self._patience, what=self._name)
        except StoreUnavailable:
            self._patience = 0.0
            raise


def _delegate(name: str) -> Callable[..., Any]:
    def method(self: _RetryingStorage, *args: Any, **kwargs: Any) -> Any:
        return self._retry(lambda: getattr(self._storage, name)(*args, **kwargs))

    return method


for _name in dir(BaseStorage):
    if not _name.startswith("_"):
        setattr(_RetryingStorage, _name, _delegate(_name))
_RetryingStorage.__abstractmethods__ = frozenset()


def open_storage(url: str, patience: float = PATIENCE) -> BaseStorage:
    """Open an Optuna storage.

    Args:
        url: a database, e.g. ``sqlite:///…``, with its password.
        patience: how long each call waits for a database that is locked or unreachable, in seconds.

    Raises:
        InputError: if it cannot be opened.
        StoreUnavailable: if it stays locked or unreachable; so do all calls of the returned object.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    durable.make_sqlite_durable()
    options = {"connect_args": {"timeout": _SQLITE_TIMEOUT}} if url.startswith("sqlite") else None
    name = f"the study's database {redact(url)}"
    try:
        # Abstract methods are added after the class statement.
        return _RetryingStorage(lambda: get_storage(RDBStorage(driver_url(url), options)), name, patience)  # type: ignore[abstract]
    except StoreUnavailable:
        raise
    except Exception as error:  # depends on the database driver
        while error.__cause__ is not None:
            error = error.__cause__  # type: ignore[assignment]
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"--study-storage {redact(url)}: cannot be opened ({redact(message)})") from None
