"""NTU RGB+D 60 and 120: preparation of an Arrow data set from ``.skeleton`` files.

Clips are cleaned (:mod:`fgst.data.cleaning`) and written in shards, in parallel if a parallel map is given. An
interrupted preparation resumes with the shards that are complete. The result is bit-identical for any number of
workers.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fgst import durable
from fgst.data.dataset import ArrowDataset
from fgst.data.formats.ntu_names import ACTIONS, EDITIONS, Edition
from fgst.data.formats.ntu_plan import HINT, VERSION, Plan, make_plan
from fgst.data.formats.ntu_shards import (
    CLIPS_PER_SHARD,
    Rejected,
    ShardRecord,
    ShardTask,
    finished_shard,
    make_shard,
)
from fgst.data.progress import tracked_clips
from fgst.data.skeletons import NTU_25
from fgst.data.writer import check_output, write_description, writing_to
from fgst.errors import InputError
from fgst.parsing import printable

# Applies a function to each task and yields the results in any order.
ParallelMap = Callable[[Callable[[ShardTask], ShardRecord], Sequence[ShardTask]], Generator[ShardRecord, None, None]]


@dataclass
class Report:
    """Outcome of a preparation: which files were used, and which were rejected.

    Attributes:
        edition: edition of the data set.
        num_files: number of ``.skeleton`` files.
        other_files: number of files with another suffix.
        num_clips: number of clips in the data set.
        rejected: the files that are not in the data set, sorted.
        removed: what cleaning removed from the clips, by reason.
        read_bytes: total size of the files read.
        sha256: SHA-256 over the content of all files read.
    """

    edition: Edition
    num_files: int
    other_files: int
    num_clips: int = 0
    rejected: list[Rejected] = field(default_factory=list)
    removed: Counter[str] = field(default_factory=Counter)
    read_bytes: int = 0
    sha256: str = ""

    def add_shards(self, records: Sequence[ShardRecord]) -> None:
        """Include the results of all shards, in their order."""
        content = hashlib.sha256()
        for record in records:
            self.num_clips += record.num_clips
            self.rejected.extend(record.rejected)
            self.removed.update(record.removed)
            self.read_bytes += record.read_bytes
            content.update(record.content.encode())
        self.rejected.sort()
        self.sha256 = content.hexdigest()

    def reasons(self) -> Counter[str]:
        """Count the rejected files by reason."""
        return Counter(rejected.reason for rejected in self.rejected)

    def source(self) -> dict[str, Any]:
        """Return the origin of the clips as ``dataset.json`` records it."""
        return {
            "preparation": "ntu",
            "version": VERSION,
            "release": self.edition.name,
            "sha256": self.sha256,
            "files": self.num_files,
            "kept": self.num_clips,
        }

    def to_dict(self, dataset: ArrowDataset) -> dict[str, Any]:
        """Return the content of ``report.json``."""
        files: dict[str, list[dict[str, str]]] = {}
        for rejected in self.rejected:
            files.setdefault(rejected.reason, []).append({"file": rejected.path, "fault": rejected.fault})
        return {
            "release": self.edition.name,
            "digest": dataset.digest,
            "source_sha256": self.sha256,
            "files_read": self.num_files,
            "other_files": self.other_files,
            "bytes_read": self.read_bytes,
            "clips": self.num_clips,
            "left_out": {reason: len(members) for reason, members in sorted(files.items())},
            "removed": dict(sorted(self.removed.items())),
            "splits": split_counts(dataset),
            "left_out_files": {reason: files[reason] for reason in sorted(files)},
        }


def split_counts(dataset: ArrowDataset) -> dict[str, Any]:
    """Count clips, subjects and clips per class in the train and test split of each benchmark.

    A benchmark with an empty split has an empty entry.
    """
    counts: dict[str, Any] = {}
    for benchmark in dataset.benchmarks:
        try:
            splits = dataset.splits(benchmark.name, validation=0)
        except InputError:
            counts[benchmark.name] = {}
            continue
        counts[benchmark.name] = {
            split: {
                "clips": len(rows),
                "subjects": len(set(dataset.columns["subject"][rows].tolist())),
                "classes": {
                    dataset.classes[label]: count
                    for label, count in sorted(Counter(dataset.columns["label"][rows].tolist()).items())
                },
            }
            for split, rows in (("train", splits.train), ("test", splits.test))
        }
    return counts


def prepare(
    sources: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    edition: str,
    exclude: Iterable[str] = (),
    parallel_map: ParallelMap | None = None,
    overwrite: bool = False,
) -> tuple[ArrowDataset, Report]:
    """Prepare a data set from zips or folders of ``.skeleton`` files.

    Args:
        sources: zips, or folders with any depth of sub-folders.
        out: the new directory.
        edition: "60" or "120".
        exclude: names of clips to reject.
        parallel_map: writes the shards, e.g. on a cluster whose nodes can access ``sources`` and ``out`` at the same
            paths; ``None`` writes them one after another in this process.
        overwrite: replace an existing data set at ``out``.

    Returns:
        The data set and a report, which is also saved as ``report.json``.

    Raises:
        InputError: if a source or ``out`` cannot be used, or no clip is usable.
    """
    rules, paths, target = EDITIONS[edition], [Path(source) for source in sources], Path(out).absolute()
    check_output(target, overwrite=overwrite)
    for source in paths:
        if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
            raise InputError(f"{printable(str(out))}: is inside SOURCE; choose a directory outside of it")
    plan = make_plan(paths, rules, frozenset(exclude))
    if not plan.entries:
        first = plan.rejected[0]
        raise InputError(
            f"{printable(str(paths[0]))}: has no clip of {rules.name} (the first file, {first.path}: {first.fault}); "
            f"{HINT}"
        )
    report = Report(rules, plan.num_files, plan.other_files, rejected=list(plan.rejected))
    with ExitStack() as stack:
        stack.enter_context(writing_to(Path(out)))
        durable.make_folder(target.parent)
        work = target.parent / f".{target.name}.preparing"
        lock = FileLock(f"{work}.lock")
        try:
            stack.enter_context(lock.acquire(timeout=0))
        except Timeout:
            raise InputError(f"{printable(str(out))}: is being prepared by another process; wait for it") from None
        tasks = _shard_tasks(plan, work, rules)
        report.add_shards(records := _write_shards(tasks, parallel_map))
        _assemble(work, tasks, records, report)
        durable.publish(work, target)
        Path(lock.lock_file).unlink(missing_ok=True)
    return ArrowDataset(target, verify=False), report


def _shard_tasks(plan: Plan, work: Path, edition: Edition) -> list[ShardTask]:
    """List the shards to write into ``work``, which is cleared unless it belongs to the same plan."""
    stamp, digest = work / "plan", plan.digest(edition)
    if not stamp.is_file() or stamp.read_text() != digest:
        shutil.rmtree(work, ignore_errors=True)
        durable.make_folder(work)
        durable.write(stamp, digest)
    entries = plan.entries
    slices = [tuple(entries[i : i + CLIPS_PER_SHARD]) for i in range(0, len(entries), CLIPS_PER_SHARD)]
    return [ShardTask(index, part, str(work), edition.actions) for index, part in enumerate(slices)]


def _write_shards(tasks: Sequence[ShardTask], parallel_map: ParallelMap | None) -> list[ShardRecord]:
    """Write the missing shards, reporting progress; return the records of all shards in order."""
    records = {task.index: record for task in tasks if (record := finished_shard(task)) is not None}
    missing = [task for task in tasks if task.index not in records]
    if records:
        print(f"resuming: {len(records):,} of {len(tasks):,} files are complete", file=sys.stderr, flush=True)
    sizes = {task.index: len(task.entries) for task in tasks}
    total = sum(sizes.values())
    done = sum(sizes[index] for index in records)
    with ExitStack() as stack:
        results: Iterable[ShardRecord] = (
            map(make_shard, missing)
            if parallel_map is None or len(missing) <= 1
            else stack.enter_context(closing(parallel_map(make_shard, missing)))
        )
        counted = ((record, sizes[record.index]) for record in results)
        for record in stack.enter_context(closing(tracked_clips(counted, total=total, done=done))):
            records[record.index] = record
    return [records[task.index] for task in tasks]


def _assemble(work: Path, tasks: Sequence[ShardTask], records: Sequence[ShardRecord], report: Report) -> None:
    """Turn the folder of shards into a data set with a report, and remove the temporary files."""
    files = [record.file for record in records if record.file is not None]
    if not files:
        first = report.rejected[0]
        raise InputError(f"no file is a usable clip (the first, {first.path}: {first.fault}); {HINT}")
    write_description(
        work,
        files,
        num_clips=report.num_clips,
        name=report.edition.name,
        skeleton=NTU_25,
        classes=ACTIONS[: report.edition.actions],
        benchmarks=report.edition.benchmarks,
        recipe="ntu",
        source=report.source(),
    )
    dataset = ArrowDataset(work, verify=False)
    (work / "report.json").write_text(json.dumps(report.to_dict(dataset), indent=1) + "\n")
    for task in tasks:
        task.record_path.unlink(missing_ok=True)
    (work / "plan").unlink(missing_ok=True)
    for leftover in work.glob(f"{durable.TEMPORARY}*"):
        leftover.unlink()
