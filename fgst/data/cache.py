"""Data sets on object stores: copied to this machine once, checked, and then mapped by every process here.

``s3://bucket/ntu-60``, ``gs://…``, ``file:///mnt/…``: whatever ``pyarrow.fs`` knows. The copy lies under ``FGST_CACHE``
(default ``~/.cache/fgst``), named after the content of the data set's description, so that a data set that changes is
another copy. Two processes that ask at once wait for one copy; one that was killed goes on with the files that are
complete. ``FGST_CACHE_LIMIT`` (e.g. ``20G``) lets the copies that were used last stay, up to that size together.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
from filelock import FileLock, Timeout
from pyarrow import fs

from fgst.errors import InputError

DESCRIPTION = "dataset.json"
_LARGEST_DESCRIPTION = 64 * 1024 * 1024
_CHUNK = 8 * 1024 * 1024
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_remote(location: str | os.PathLike[str]) -> bool:
    """Whether a data set's location is a URI; anything else is a folder of this machine."""
    return isinstance(location, str) and _SCHEME.match(location) is not None


def cache_folder() -> Path:
    """Where copies are kept on this machine."""
    return Path(os.environ.get("FGST_CACHE") or Path.home() / ".cache" / "fgst").absolute()


def cache_limit() -> int | None:
    """``FGST_CACHE_LIMIT`` in bytes; ``None`` is no limit.

    Raises:
        InputError: if it is no size.
    """
    text = os.environ.get("FGST_CACHE_LIMIT", "")
    return read_size(text, "FGST_CACHE_LIMIT") if text else None


def read_size(text: str, what: str) -> int:
    """``20G``, ``500M``, ``1.5T`` or a number of bytes, in powers of 1000."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kKMGT]?)i?B?", text.strip())
    if match is None:
        raise InputError(f"{what} is {text!r}; write a size, e.g. 20G")
    return int(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " "))


def local_copy(location: str) -> Path:
    """The folder of this machine that holds the data set at ``location``; copied there first if need be.

    Raises:
        InputError: if there is no data set there, it cannot be reached, its files are not what its description says, or
            there is no room.
    """
    if urlsplit(location).password:
        raise InputError("a data set's URI holds a secret; give it in the environment instead: URIs are recorded")
    try:
        store, base = fs.FileSystem.from_uri(location)
        with store.open_input_stream(f"{base}/{DESCRIPTION}") as stream:
            description = stream.read(_LARGEST_DESCRIPTION)
    except FileNotFoundError:
        raise InputError(f"{location}: is not a data set, there is no {DESCRIPTION}") from None
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"{location}: cannot be read ({_first_line(error)})") from None
    files = _files(location, description)
    folder = cache_folder() / hashlib.sha256(description).hexdigest()[:32]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / DESCRIPTION).is_file():
                _make_room(folder, sum(size for _, size, _ in files))
                _copy(store, base, location, files, description, folder)
            os.utime(folder)  # last used now
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error}); FGST_CACHE names another") from None
    return folder


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _files(location: str, description: bytes) -> list[tuple[str, int, str]]:
    """Name, size and SHA-256 of each file of the data set."""
    try:
        files = [(str(f["name"]), int(f["bytes"]), str(f["sha256"])) for f in json.loads(description)["files"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{location}/{DESCRIPTION}: not a data set description ({error!r})") from None
    for name, _, _ in files:
        if Path(name).name != name or name in ("", ".", "..", DESCRIPTION):
            raise InputError(f"{location}/{DESCRIPTION}: file name {name!r} leaves the data set's folder")
    return files


def _copy(
    store: Any, base: str, location: str, files: list[tuple[str, int, str]], description: bytes, folder: Path
) -> None:
    """Copy into a folder beside, check each file while it passes, rename; what is complete there already stays."""
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(exist_ok=True)
    total = sum(size for _, size, _ in files)
    print(f"copying {location} ({total / 1e6:,.0f} MB) to {folder}", file=sys.stderr, flush=True)
    began = told = time.monotonic()
    done = copied = 0  # with, and without what an earlier run had copied
    for name, size, sha256 in files:
        target = partial / name
        if target.is_file() and target.stat().st_size == size and _digest(target) == sha256:
            done += size
            continue
        digest, found = hashlib.sha256(), 0
        try:
            with store.open_input_stream(f"{base}/{name}") as stream, target.open("wb") as file:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
                    file.write(chunk)
                    found += len(chunk)
                    if found > size:
                        break
                    if time.monotonic() - told >= 10:
                        told = time.monotonic()
                        rate = (done + found) / (told - began)
                        left = (total - done - found) / rate
                        print(
                            f"{(done + found) / total:.0%}, {rate / 1e6:,.0f} MB/s, {left:.0f} s left", file=sys.stderr
                        )
        except FileNotFoundError:
            raise InputError(f"{location}/{name}: is missing; upload the data set again") from None
        except pa.ArrowException as error:
            raise InputError(f"{location}/{name}: cannot be read ({_first_line(error)})") from None
        if found != size or digest.hexdigest() != sha256:
            target.unlink()
            raise InputError(f"{location}/{name}: is not the file that {DESCRIPTION} names; upload the data set again")
        done += size
        copied += size
    (partial / DESCRIPTION).write_bytes(description)
    partial.rename(folder)


def _shown(size: int) -> str:
    units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    unit, name = next((unit, name) for unit, name in units if size >= unit or unit == 1e3)
    return f"{size / unit:.1f} {name}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _make_room(folder: Path, needed: int) -> None:
    """Remove copies until the new one keeps within the limit, those first that were not used for longest."""
    limit = cache_limit()
    if limit is not None:
        if needed > limit:
            raise InputError(
                f"--cache-limit (FGST_CACHE_LIMIT) is {_shown(limit)}, but the data set takes {_shown(needed)}"
            )
        others = [entry for entry in folder.parent.iterdir() if (entry / DESCRIPTION).is_file() and entry != folder]
        sizes = {entry: sum(file.stat().st_size for file in entry.iterdir()) for entry in others}
        for entry in sorted(others, key=lambda entry: entry.stat().st_mtime):
            if sum(sizes.values()) + needed <= limit:
                break
            try:
                # Whoever has mapped its files keeps them; only the names go.
                with FileLock(f"{entry}.lock", timeout=0):
                    shutil.rmtree(entry)
                    del sizes[entry]
            except Timeout:
                continue
    partial = folder.with_name(folder.name + ".partial")
    there = sum(file.stat().st_size for file in partial.iterdir()) if partial.is_dir() else 0
    free = shutil.disk_usage(folder.parent).free
    if needed - there > free:
        raise InputError(
            f"{folder.parent}: has {_shown(free)} free, but the data set takes {_shown(needed)}; "
            "make room, or name another folder by FGST_CACHE"
        )
