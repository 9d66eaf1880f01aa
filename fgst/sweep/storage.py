"""Storage in which a trial's checkpoint survives its node: a folder shared by all nodes, or an object store.

With a shared folder the training writes its checkpoint there itself. With a URI (``s3://bucket/sweeps``, ``gs://…``;
anything that ``pyarrow.fs`` supports) the checkpoint is written on the node and copied to the object store after
epochs, so that copying takes at most 5 % of the time, and immediately if the node is about to be preempted. A copy is
complete once its manifest, which is written last, exists. A resumed trial verifies and uses the newest complete copy.
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

from fgst import durable
from fgst.data.cache import cache_folder, is_remote
from fgst.errors import InputError
from fgst.integrity import DamagedFileError
from fgst.parsing import decode_json
from fgst.tracking.spool import retry_while_unavailable
from fgst.training.checkpoint import check_checkpoint, latest_checkpoint, progress

COPY_TIME_SHARE = 0.05  # fraction of the time that copying may take
_CHUNK = 8 * 1024 * 1024
_MAX_MANIFEST_BYTES = 1024 * 1024
_FAILURES = (OSError, pa.ArrowException)


def resolve(location: str) -> str:
    """Return ``--storage`` in its recorded form: a URI unchanged, a folder as an absolute path.

    Raises:
        InputError: if the URI is not writable storage, or contains a password.
    """
    if not is_remote(location):
        return str(Path(location).absolute())
    if urlsplit(location).password:
        raise InputError(
            "--storage contains a password; set credentials in the environment instead, because URIs are recorded"
        )
    _open(location)
    return location.rstrip("/")


def prepare(location: str) -> None:
    """Make sure that the location is writable.

    Raises:
        InputError: if it is not.
    """
    try:
        if not is_remote(location):
            durable.make_folder(Path(location))
            return
        store, base = _open(location)
        _write(store, f"{base}/sweep", b"")  # fail now instead of after the first epoch
    except _FAILURES as error:
        reason = getattr(error, "strerror", None) or _first_line(error)
        raise InputError(f"--storage {location}: cannot be written ({reason})") from None


def has_room(location: str) -> bool:
    """Whether a mebibyte can be written to a folder; always true for a URI."""
    if is_remote(location):
        return True
    try:
        with tempfile.TemporaryFile(dir=location) as file:
            file.write(bytes(1024 * 1024))
            file.flush()
            os.fsync(file.fileno())  # a network folder may report only now that it is full
    except OSError:
        return False
    return True


def remove(location: str) -> None:
    """Remove all files of a sweep; errors are ignored."""
    shutil.rmtree(on_this_node(location), ignore_errors=True)
    if is_remote(location):
        try:
            store, base = _open(location)
            store.delete_dir(base)
        except _FAILURES:
            pass


def on_this_node(location: str) -> Path:
    """The sweep's folder on this node: the shared folder itself, or for a URI a folder in the cache."""
    if not is_remote(location):
        return Path(location)
    return cache_folder() / "trials" / hashlib.sha256(location.encode()).hexdigest()[:32]


@dataclass
class TrialStorage:
    """Storage of one trial's checkpoint.

    Attributes:
        location: the sweep's folder or URI.
        trial_id: the trial.
        clock: seconds, monotonic.
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
        """Copy the newest checkpoint to this node if it is newer than the local one.

        Raises:
            InputError: if the shared folder does not exist on this node.
            StoreUnavailable: if the object store did not answer for minutes.
        """
        if not self._remote:
            if not Path(self.location).is_dir():
                raise InputError(
                    f"--storage {self.location}: does not exist on node {os.uname().nodename}; "
                    "use a folder that all nodes share, or a URI such as s3://bucket/sweeps"
                )
            return
        retry_while_unavailable(
            self._fetch, lambda error: isinstance(error, _FAILURES), what=f"--storage {self.location}"
        )

    def _fetch(self) -> None:
        store, base = _open(f"{self.location}/{self.trial_id}")
        here = latest_checkpoint(self.folder)
        if here is not None and not _is_intact(here):
            print(f"{here} is damaged; looking for a copy in {self.location}", file=sys.stderr)
            newest = (-1, 0)
        else:
            newest = (progress(here.name) if here is not None else None) or (-1, 0)
        for name in reversed(self._copies(store, base)):
            at = progress(name) or (-1, 0)
            if at <= newest:
                return
            if self._bring(store, base, name):
                self._sent, self._previous = at, [name]
                if here is not None and here.name != name:
                    shutil.rmtree(here, ignore_errors=True)
                return
            print(f"{self.location}/{self.trial_id}/{name} is damaged; using an older checkpoint", file=sys.stderr)

    def _copies(self, store: Any, base: str) -> list[str]:
        """Names of the complete copies, the newest last."""
        found = store.get_file_info(fs.FileSelector(base, allow_not_found=True))
        names = [info.base_name.removesuffix(".json") for info in found if info.base_name.endswith(".json")]
        return sorted((name for name in names if progress(name) is not None), key=lambda name: progress(name) or (0, 0))

    def _bring(self, store: Any, base: str, name: str) -> bool:
        """Copy a checkpoint to this node; returns whether it matches its manifest and is intact."""
        temporary = self.folder / f".{name}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            with store.open_input_stream(f"{base}/{name}.json") as stream:
                files = decode_json(stream.read(_MAX_MANIFEST_BYTES), dict[str, str])
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
            if not _is_intact(temporary):  # it was damaged before it was copied
                return False
            durable.publish(temporary, self.folder / name)  # replaces a damaged one
            return True
        except (
            FileNotFoundError,
            ValueError,
        ):  # replaced by a newer copy during the transfer, or an invalid manifest
            return False
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def keep(self, *, at_once: bool = False) -> str:
        """Copy the newest checkpoint to the object store if a copy is due.

        A failed copy is retried after the next epoch.

        Returns:
            The reason why it could not be copied; "" on success.
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
            # The manifest first: a partial copy must not look complete. The files may be gone already.
            for name in self._previous:
                for delete, path in ((store.delete_file, f"{base}/{name}.json"), (store.delete_dir, f"{base}/{name}")):
                    with suppress(FileNotFoundError):
                        delete(path)
            self._previous = [checkpoint.name]
        except _FAILURES as error:
            return _first_line(error)
        finally:
            now = self.clock()
            self._not_before = now + (now - began) * (1 / COPY_TIME_SHARE - 1)
        return ""

    def remove(self) -> None:
        """Remove the checkpoint of a finished trial; its model is among the artifacts of its run."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._remote:
            try:
                store, base = _open(f"{self.location}/{self.trial_id}")
                store.delete_dir(base)
            except _FAILURES:
                pass


def _is_intact(checkpoint: Path) -> bool:
    try:
        check_checkpoint(checkpoint)
    except DamagedFileError:
        return False
    return True


def _open(location: str) -> tuple[Any, str]:
    try:
        store, base = fs.FileSystem.from_uri(location)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"--storage {location}: is not a writable location ({_first_line(error)})") from None
    return store, base.rstrip("/")


def _write(store: Any, path: str, content: bytes) -> None:
    _make_folder(store, path)
    with store.open_output_stream(path) as stream:
        stream.write(content)
    _sync(store, path)


def _send(store: Any, path: str, file: Path) -> str:
    """Upload a file; returns its SHA-256 digest."""
    _make_folder(store, path)
    digest = hashlib.sha256()
    with file.open("rb") as content, store.open_output_stream(path) as stream:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
            stream.write(chunk)
    _sync(store, path)
    return digest.hexdigest()


def _make_folder(store: Any, path: str) -> None:
    if store.type_name == "local":  # object stores have no folders
        durable.make_folder(Path(path).parent)


def _sync(store: Any, path: str) -> None:
    if store.type_name == "local":  # object stores have stored an object when its stream is closed
        durable.sync(Path(path))
        durable.sync(Path(path).parent)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
