"""Where a trial's checkpoint survives its node: a folder that all nodes share, or an object store.

In a shared folder the training keeps its checkpoint itself. With a URI (``s3://bucket/sweeps``, ``gs://…``; whatever
``pyarrow.fs`` knows) it keeps it on the node, and a copy goes to the store after an epoch: as often as a twentieth of
the time allows, and at once where the node is about to go. A copy counts once its list of files is there, which is
written last; whoever goes on with the trial takes the newest that is whole, and checks it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from fgst.data.cache import cache_folder, is_remote
from fgst.errors import InputError
from fgst.tracking.spool import TrackingServerUnavailable, retry_while_unavailable
from fgst.training.checkpoint import latest_checkpoint, progress

SHARE = 0.05  # of the time that copying may take
_CHUNK = 8 * 1024 * 1024
_LARGEST_LIST = 1024 * 1024
_FAILURES = (OSError, pa.ArrowException)


def resolve(location: str) -> str:
    """``--storage`` as it is written down: a URI as it is, a folder with its whole path.

    Raises:
        InputError: if it is a URI that nothing can be kept at, or holds a secret.
    """
    if not is_remote(location):
        return str(Path(location).absolute())
    if urlsplit(location).password:
        raise InputError("--storage holds a secret; give it in the environment instead: URIs are recorded")
    _open(location)
    return location.rstrip("/")


def prepare(location: str) -> None:
    """Make sure that a sweep can keep something there.

    Raises:
        InputError: if not.
    """
    try:
        if not is_remote(location):
            Path(location).mkdir(parents=True, exist_ok=True)
            return
        store, base = _open(location)
        _write(store, f"{base}/sweep", b"")  # that it can be written is known now, not after the first epoch
    except _FAILURES as error:
        reason = getattr(error, "strerror", None) or _first_line(error)
        raise InputError(f"--storage {location}: cannot be written ({reason})") from None


def has_room(location: str) -> bool:
    """Whether a folder takes a mebibyte more; a URI's store always does."""
    if is_remote(location):
        return True
    try:
        with tempfile.TemporaryFile(dir=location) as file:
            file.write(bytes(1024 * 1024))
            file.flush()
            os.fsync(file.fileno())  # a network folder may say only now that it is full
    except OSError:
        return False
    return True


def remove(location: str) -> None:
    """Remove everything of a sweep; what cannot be removed stays."""
    shutil.rmtree(on_this_node(location), ignore_errors=True)
    if is_remote(location):
        try:
            store, base = _open(location)
            store.delete_dir(base)
        except _FAILURES:
            pass


def on_this_node(location: str) -> Path:
    """The folder of this node that belongs to a sweep: the shared one itself, or one beside the cached data sets."""
    if not is_remote(location):
        return Path(location)
    return cache_folder() / "trials" / hashlib.sha256(location.encode()).hexdigest()[:32]


@dataclass
class TrialStorage:
    """A trial's checkpoint.

    Attributes:
        location: of the sweep: a folder or a URI.
        key: of the trial.
        folder: where the training keeps its checkpoint, on this node.
    """

    location: str
    trial_id: str
    clock: Callable[[], float] = time.monotonic
    _sent: tuple[int, int] = (-1, 0)  # progress of the newest copy
    _not_before: float = 0.0
    _previous: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        return on_this_node(self.location) / self.trial_id

    @property
    def _remote(self) -> bool:
        return is_remote(self.location)

    def fetch(self) -> None:
        """Bring the newest checkpoint to this node, if it is not here.

        Raises:
            InputError: if a shared folder is not shared with this node.
            ServerAway: if the store did not answer for minutes.
        """
        if not self._remote:
            if not Path(self.location).is_dir():
                raise InputError(
                    f"--storage {self.location}: is not there on node {os.uname().nodename}; "
                    "name a folder that all nodes share, or a URI such as s3://bucket/sweeps"
                )
            return
        try:
            retry_while_unavailable(self._fetch, lambda error: isinstance(error, _FAILURES))
        except TrackingServerUnavailable as error:
            raise TrackingServerUnavailable(
                str(error).replace("the tracking server", f"--storage {self.location}")
            ) from error

    def _fetch(self) -> None:
        store, base = _open(f"{self.location}/{self.trial_id}")
        here = latest_checkpoint(self.folder)
        newest = (progress(here.name) if here is not None else None) or (-1, 0)
        for name in reversed(self._copies(store, base)):
            at = progress(name) or (-1, 0)
            if at <= newest:
                return
            if self._bring(store, base, name):
                self._sent, self._previous = at, [name]
                if here is not None:
                    shutil.rmtree(here, ignore_errors=True)
                return
            print(f"{self.location}/{self.trial_id}/{name}: is damaged; taking an older one", file=sys.stderr)

    def _copies(self, store: Any, base: str) -> list[str]:
        """Names of the checkpoints that have a list of files, the newest last."""
        found = store.get_file_info(fs.FileSelector(base, allow_not_found=True))
        names = [info.base_name.removesuffix(".json") for info in found if info.base_name.endswith(".json")]
        return sorted((name for name in names if progress(name) is not None), key=lambda name: progress(name) or (0, 0))

    def _bring(self, store: Any, base: str, name: str) -> bool:
        """Copy a checkpoint here; whether it is what its list says."""
        temporary = self.folder / f".{name}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            with store.open_input_stream(f"{base}/{name}.json") as stream:
                files = {str(file): str(sha) for file, sha in json.loads(stream.read(_LARGEST_LIST)).items()}
            for file, expected in files.items():
                if Path(file).name != file or file.startswith("."):
                    return False
                digest = hashlib.sha256()
                with store.open_input_stream(f"{base}/{name}/{file}") as stream, (temporary / file).open("wb") as out:
                    while chunk := stream.read(_CHUNK):
                        digest.update(chunk)
                        out.write(chunk)
                if digest.hexdigest() != expected:
                    return False
            temporary.rename(self.folder / name)
            return True
        except (FileNotFoundError, AttributeError, ValueError):  # removed by a newer one meanwhile, or no list
            return False
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def keep(self, *, at_once: bool = False) -> str:
        """Copy the newest checkpoint to the store, if it is time for it.

        A store that does not take it costs nothing but the copy: the next epoch tries again.

        Returns:
            why it could not be copied; "" if all is well.
        """
        checkpoint = latest_checkpoint(self.folder) if self._remote else None
        if checkpoint is None:
            return ""
        at = progress(checkpoint.name) or (-1, 0)
        if at <= self._sent or (self.clock() < self._not_before and not at_once):
            return ""
        began = self.clock()
        try:
            store, base = _open(f"{self.location}/{self.trial_id}")
            digests = {}
            for file in sorted(checkpoint.iterdir()):
                digests[file.name] = _send(store, f"{base}/{checkpoint.name}/{file.name}", file)
            _write(store, f"{base}/{checkpoint.name}.json", json.dumps(digests).encode())
            self._sent = at
            # The list first: half a copy must not look whole. What an earlier attempt has removed is gone already.
            for name in self._previous:
                for delete, path in ((store.delete_file, f"{base}/{name}.json"), (store.delete_dir, f"{base}/{name}")):
                    with suppress(FileNotFoundError):
                        delete(path)
            self._previous = [checkpoint.name]
        except _FAILURES as error:
            return _first_line(error)
        finally:
            now = self.clock()
            self._not_before = now + (now - began) * (1 / SHARE - 1)
        return ""

    def remove(self) -> None:
        """The trial is over: its model is among its run's artifacts."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._remote:
            try:
                store, base = _open(f"{self.location}/{self.trial_id}")
                store.delete_dir(base)
            except _FAILURES:
                pass


def _open(location: str) -> tuple[Any, str]:
    try:
        store, base = fs.FileSystem.from_uri(location)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"--storage {location}: is no place that can be written ({_first_line(error)})") from None
    return store, base.rstrip("/")


def _write(store: Any, path: str, content: bytes) -> None:
    _make_folder(store, path)
    with store.open_output_stream(path) as stream:
        stream.write(content)


def _send(store: Any, path: str, file: Path) -> str:
    """Copy a file; returns its SHA-256."""
    _make_folder(store, path)
    digest = hashlib.sha256()
    with file.open("rb") as content, store.open_output_stream(path) as stream:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
            stream.write(chunk)
    return digest.hexdigest()


def _make_folder(store: Any, path: str) -> None:
    if store.type_name == "local":  # object stores have none
        store.create_dir(path.rpartition("/")[0], recursive=True)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
