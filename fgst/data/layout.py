"""On-disk layout of an Arrow data set, shared by the reader, the writer and the cache.

A data set is a directory with a description, ``dataset.json``, and one or more uncompressed Arrow IPC files of one
record batch each. One row is one clip.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from fgst.data.skeleton import Skeleton
from fgst.data.splits import Benchmark
from fgst.errors import InputError
from fgst.integrity import DIGEST_KEY

FORMAT = 1
DESCRIPTION = "dataset.json"
DESCRIPTION_KEYS = frozenset(
    ("format", "name", "recipe", "num_clips", "classes", "benchmarks", "files", "source", "skeleton", DIGEST_KEY)
)
INTEGER_COLUMNS = ("label", "subject", "camera", "setup", "replication", "num_persons", "num_frames")


@dataclass(frozen=True)
class FileEntry:
    """One Arrow file as the description lists it."""

    name: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileEntry:
        """Describe an existing file."""
        return cls(path.name, path.stat().st_size, file_digest(path))


def read_file_entries(description: Mapping[str, Any]) -> list[FileEntry]:
    """Return the files that a parsed description lists.

    Raises:
        ValueError: if an entry is malformed or its name points outside the data set's directory.
    """
    entries = []
    for fields in description["files"]:
        entry = FileEntry(str(fields["name"]), int(fields["bytes"]), str(fields["sha256"]))
        if Path(entry.name).name != entry.name or entry.name in ("", ".", "..", DESCRIPTION):
            raise ValueError(f"file name {entry.name!r} points outside the data set's directory")
        entries.append(entry)
    return entries


def invalid_description(location: object, error: Exception) -> InputError:
    """Return the error to raise when parsing the description of the data set at ``location`` failed with ``error``."""
    fault = f"it has no {error}" if isinstance(error, KeyError) else str(error)
    return InputError(f"{location}/{DESCRIPTION}: is not a data set description ({fault})")


def arrow_schema(skeleton: Skeleton) -> pa.Schema:
    """Return the columns of a data set: the clip's name, the integer columns, and the joints.

    ``joints`` is a list of frames, person by person; each frame is a fixed-size list of N·3 float32 coordinates.
    """
    frame = pa.list_(pa.field("item", pa.float32(), nullable=False), skeleton.num_joints * 3)
    joints = pa.list_(pa.field("item", frame, False))
    return pa.schema(
        [
            pa.field("clip_id", pa.string(), False),
            *(pa.field(column, pa.int32(), False) for column in INTEGER_COLUMNS),
            pa.field("joints", joints, False),
        ]
    )


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(
    skeleton: Skeleton, classes: Sequence[str], benchmarks: Sequence[Benchmark], files: Sequence[str]
) -> str:
    """Return the SHA-256 of everything that training on a data set depends on, given the digests of its files."""
    rules = [asdict(benchmark) for benchmark in benchmarks]
    content = json.dumps([FORMAT, skeleton.to_dict(), list(classes), rules, list(files)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
