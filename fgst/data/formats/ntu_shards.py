"""One file of an NTU data set: the work that runs in parallel, is done once, and is found again after a kill.

A shard is a fixed slice of the sorted list of clips, so its content does not depend on how many workers there are. Its
record, a JSON file beside it, is written last: a shard with a record is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fgst.data.cleaning import clean
from fgst.data.dataset import Clip, file_digest
from fgst.data.formats.ntu_names import parse_name
from fgst.data.formats.ntu_skeleton import read_skeleton
from fgst.data.skeleton import NTU_25
from fgst.data.sources import ClipError, read_again
from fgst.data.writer import write_shard

CLIPS_PER_SHARD = 256
# The longest clips take 4 MB. Beyond this a file is no clip, and a hostile one could take all memory (20 bytes a byte).
MAX_FILE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Entry:
    """A clip to read: its name, the source that it is in, where there (see ``ClipFile``), and as what to name it."""

    name: str
    source: str
    key: str | int
    place: str
    stamp: tuple[int, int]


@dataclass(frozen=True)
class ShardTask:
    """A shard to make: which one, of which clips, in which folder, for how many classes."""

    index: int
    entries: tuple[Entry, ...]
    folder: str
    num_classes: int

    @property
    def path(self) -> Path:
        return Path(self.folder, f"clips-{self.index:05d}.arrow")

    @property
    def record(self) -> Path:
        return self.path.with_suffix(".json")


@dataclass
class ShardRecord:
    """What became of a shard's clips.

    Attributes:
        file: its entry in the data set's description; ``None`` if no clip was left.
        kept: number of clips.
        left_out: place, kind and fault of each clip that is not in it.
        removed: what cleaning took from the others, by reason.
        read_bytes: size of all files together.
        content: SHA-256 over names and digests of the files read.
    """

    index: int
    file: dict[str, Any] | None
    kept: int
    left_out: list[tuple[str, str, str]]
    removed: dict[str, int]
    read_bytes: int
    content: str


def make_shard(task: ShardTask) -> ShardRecord:
    """Read, clean and write a shard, unless it is there already."""
    found = finished(task)
    if found is not None:
        return found
    clips: list[Clip] = []
    left_out: list[tuple[str, str, str]] = []
    removed: Counter[str] = Counter()
    size, content = 0, hashlib.sha256()
    for entry in task.entries:
        try:
            data = read_again(Path(entry.source), entry.key, MAX_FILE_BYTES)
            size += len(data)
            content.update(f"{entry.name} {hashlib.sha256(data).hexdigest()}\n".encode())
            recording = read_skeleton(data)
        except ClipError as error:
            content.update(f"{entry.name} {error}\n".encode())
            left_out.append((entry.place, "unreadable", str(error)))
            continue
        try:
            cleaned = clean(recording)
        except ClipError as error:
            left_out.append((entry.place, "no usable body", str(error)))
            continue
        removed += cleaned.removed
        name = parse_name(entry.name)
        columns = {"subject": name.subject, "camera": name.camera, "setup": name.setup}
        clips.append(Clip(entry.name, name.action - 1, cleaned.joints, replication=name.replication, **columns))
    file = None
    if clips:
        temporary = task.path.with_suffix(f".{os.getpid()}.tmp")
        file = write_shard(temporary, clips, NTU_25, task.num_classes) | {"name": task.path.name}
        temporary.replace(task.path)
    taken = dict(sorted(removed.items()))
    record = ShardRecord(task.index, file, len(clips), left_out, taken, size, content.hexdigest())
    temporary = task.record.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(asdict(record)))
    temporary.replace(task.record)
    return record


def finished(task: ShardTask) -> ShardRecord | None:
    """The record of a shard that is complete and has not changed since it was written."""
    try:
        record = ShardRecord(**json.loads(task.record.read_text()))
        record.left_out = [(place, kind, fault) for place, kind, fault in record.left_out]
        if record.file is not None and (
            task.path.stat().st_size != record.file["bytes"] or file_digest(task.path) != record.file["sha256"]
        ):
            return None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return record
