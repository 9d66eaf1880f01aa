"""Selection of the clips of an NTU data set: which files are read, and why others are not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fgst.data.formats.ntu_names import Edition, belongs, parse_name
from fgst.data.formats.ntu_shards import CLIPS_PER_SHARD, ClipEntry, Rejected
from fgst.data.sources import MAX_FILE_BYTES, ClipError, ClipFile, open_source
from fgst.errors import InputError
from fgst.parsing import printable

HINT = "give the zip of skeletons as downloaded, or the folder it unpacks to"
VERSION = 2  # increase it when the same files would produce a different data set; recorded in dataset.json


@dataclass
class Plan:
    """The clips to read, sorted by name, and the files rejected without reading them.

    Attributes:
        entries: the clips to read.
        rejected: the other ``.skeleton`` files.
        num_files: number of ``.skeleton`` files.
        other_files: number of files with another suffix.
    """

    entries: list[ClipEntry] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    num_files: int = 0
    other_files: int = 0

    def digest(self, edition: Edition) -> str:
        """Return the SHA-256 of everything that must be unchanged for an interrupted preparation to be resumed."""
        entries = [[e.name, e.source, e.key, *e.fingerprint] for e in self.entries]
        content = json.dumps([VERSION, edition.name, CLIPS_PER_SHARD, entries])
        return hashlib.sha256(content.encode()).hexdigest()


def make_plan(sources: Sequence[Path], edition: Edition, excluded: frozenset[str]) -> Plan:
    """List the clips of all sources, each once.

    Args:
        sources: zips or folders.
        edition: clips that are not part of it are rejected.
        excluded: names of clips to reject.

    Raises:
        InputError: if a source cannot be listed or has no ``.skeleton`` file.
    """
    plan = Plan()
    candidates: dict[str, list[ClipEntry]] = {}
    for source in sources:
        with open_source(source, suffix=".skeleton", max_bytes=MAX_FILE_BYTES, hint=HINT) as listing:
            plan.other_files += listing.other_files
            for file in listing.files:
                plan.num_files += 1
                entry = _entry(file, source, several=len(sources) > 1)
                try:
                    clip = parse_name(file.name)
                except ClipError as error:
                    plan.rejected.append(Rejected(entry.path, "not a clip", str(error)))
                    continue
                if not belongs(clip, edition):
                    fault = f"is not part of {edition.name}"
                    plan.rejected.append(Rejected(entry.path, "not in this edition", fault))
                elif file.name in excluded:
                    plan.rejected.append(Rejected(entry.path, "excluded", "is on the --exclude-list"))
                else:
                    candidates.setdefault(file.name, []).append(entry)
    for name in sorted(candidates):
        _add_clip(plan, sorted(candidates[name], key=lambda entry: (entry.path, entry.source)))
    plan.rejected.sort()
    return plan


def _entry(file: ClipFile, source: Path, *, several: bool) -> ClipEntry:
    path = f"{printable(source.name)}: {file.path}" if several else file.path
    return ClipEntry(file.name, str(source.absolute()), file.key, path, file.fingerprint)


def _add_clip(plan: Plan, files: Sequence[ClipEntry]) -> None:
    """Add one clip to the plan, or reject all of its files if they differ."""
    first, *others = files
    if all(_same_content(first, other) for other in others):
        plan.entries.append(first)
        plan.rejected.extend(Rejected(o.path, "duplicate", f"is the same as {first.path}") for o in others)
    else:
        paths = " and ".join(file.path for file in files)
        plan.rejected.extend(Rejected(file.path, "contradictory", f"differs between {paths}") for file in files)


def _same_content(first: ClipEntry, second: ClipEntry) -> bool:
    try:
        return first.read() == second.read()
    except ClipError:
        return False


def read_exclude_list(path: Path) -> list[str]:
    """Read names of clips, one per line; other lines, such as the heading of the official lists, are skipped.

    Raises:
        InputError: if the file cannot be read or names no clip.
    """
    try:
        words = path.read_text(errors="replace").split()
    except OSError as error:
        raise InputError(f"--exclude-list {path}: cannot be read ({error.strerror})") from None
    names = []
    for word in words:
        name = word.removesuffix(".skeleton")
        try:
            parse_name(name)
        except ClipError:
            continue
        names.append(name)
    if not names:
        raise InputError(f"--exclude-list {path}: names no clip; write one name per line, e.g. S001C002P005R002A008")
    return names
