"""One file of an NTU data set: the unit of parallel work, and of resuming after an interruption.

A shard is a fixed slice of the sorted list of clips, so its content does not depend on the number of workers. Its
record, a JSON file next to it, is written last: a shard with a record is complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from fgst import durable
from fgst.data.cleaning import Cleaned, Recording, clean
from fgst.data.dataset import Clip
from fgst.data.formats.ntu_names import parse_name
from fgst.data.formats.ntu_skeleton import read_skeleton
from fgst.data.layout import FileEntry, file_digest
from fgst.data.skeletons import NTU_25
from fgst.data.sources import MAX_FILE_BYTES, ClipError, parse_clip, read_file
from fgst.data.writer import check_joints, write_shard
from fgst.errors import InputError
from fgst.parsing import read_json

CLIPS_PER_SHARD = 256


@dataclass(frozen=True, order=True)
class Rejected:
    """A file that is not in the data set.

    Attributes:
        path: path of the file, escaped for printing.
        reason: one of a few categories, e.g. "unreadable".
        fault: the details.
    """

    path: str
    reason: str
    fault: str


@dataclass(frozen=True)
class ClipEntry:
    """A clip to read.

    Attributes:
        name: name of the clip.
        source: the zip or folder that contains it.
        key, fingerprint: see :class:`~fgst.data.sources.ClipFile`.
        path: path of its file in reports.
    """

    name: str
    source: str
    key: str | int
    path: str
    fingerprint: tuple[int, int]

    def read(self) -> bytes:
        """Read the file; raises ClipError if that fails."""
        return read_file(Path(self.source), self.key, MAX_FILE_BYTES)


@dataclass(frozen=True)
class ShardTask:
    """A shard to write into ``folder``, for a data set of ``num_classes`` classes."""

    index: int
    entries: tuple[ClipEntry, ...]
    folder: str
    num_classes: int

    @property
    def path(self) -> Path:
        return Path(self.folder, f"clips-{self.index:05d}.arrow")

    @property
    def record_path(self) -> Path:
        return self.path.with_suffix(".json")


@dataclass(frozen=True)
class ShardRecord:
    """The result of writing a shard.

    Attributes:
        index: index of the shard.
        file: its entry in the data set's description; ``None`` if no clip was usable.
        num_clips: number of clips in it.
        rejected: the files that are not in it.
        removed: what cleaning removed from its clips, by reason.
        read_bytes: total size of the files read.
        content: SHA-256 over names and digests of the files read.
    """

    index: int
    file: FileEntry | None
    num_clips: int
    rejected: tuple[Rejected, ...]
    removed: dict[str, int]
    read_bytes: int
    content: str

    @classmethod
    def read(cls, path: Path) -> ShardRecord:
        """Read a record; raises InputError if it is missing or malformed."""
        return read_json(path, cls, what="the record of a shard")


def make_shard(task: ShardTask) -> ShardRecord:
    """Read and clean the clips of a shard and write it, unless a complete one exists."""
    if (finished := finished_shard(task)) is not None:
        return finished
    clips: list[Clip] = []
    rejected: list[Rejected] = []
    removed: Counter[str] = Counter()
    read_bytes, content = 0, hashlib.sha256()
    for entry in task.entries:
        try:
            data = entry.read()
            read_bytes += len(data)
            content.update(f"{entry.name} {hashlib.sha256(data).hexdigest()}\n".encode())
            recording = parse_clip(read_skeleton, data)
        except ClipError as error:
            content.update(f"{entry.name} {error}\n".encode())
            rejected.append(Rejected(entry.path, "unreadable", str(error)))
            continue
        try:
            cleaned = parse_clip(_clean, recording)
        except ClipError as error:
            rejected.append(Rejected(entry.path, "no usable body", str(error)))
            continue
        removed += cleaned.removed
        name = parse_name(entry.name)
        label, replication = name.action - 1, name.replication
        clips.append(Clip(entry.name, label, cleaned.joints, name.subject, name.camera, name.setup, replication))
    file = None
    if clips:
        with durable.replacing(task.path) as temporary:
            file = dataclasses.replace(write_shard(temporary, clips, NTU_25, task.num_classes), name=task.path.name)
    record = ShardRecord(
        task.index, file, len(clips), tuple(rejected), dict(sorted(removed.items())), read_bytes, content.hexdigest()
    )
    durable.write(task.record_path, json.dumps(asdict(record)))
    return record


def _clean(recording: Recording) -> Cleaned:
    cleaned = clean(recording)
    check_joints(cleaned.joints, NTU_25)  # the difference of large coordinates may be infinite
    return cleaned


def finished_shard(task: ShardTask) -> ShardRecord | None:
    """Return the record of a shard that is complete and unmodified, else ``None``."""
    try:
        record = ShardRecord.read(task.record_path)
        if record.file is not None and (
            task.path.stat().st_size != record.file.bytes or file_digest(task.path) != record.file.sha256
        ):
            return None
    except (OSError, InputError):
        return None
    return record
