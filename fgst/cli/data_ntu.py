"""NTU RGB+D 60 and 120: make an Arrow data set of the .skeleton files.

examples:
  python -m data_prep.ntu nturgbd_skeletons_s001_to_s017.zip datasets/ntu-60 --edition 60
  python -m data_prep.ntu nturgbd_skeletons_s001_to_s017.zip nturgbd_skeletons_s018_to_s032.zip datasets/ntu-120 \\
      --edition 120 --exclude-list NTU_RGBD120_samples_with_missing_skeletons.txt
  python -m data_prep.ntu folder/of/skeleton/files datasets/ntu-60 --edition 60 --workers 4

SOURCE is a zip as it was downloaded (nothing is unpacked) or a folder of .skeleton files, in any number. OUT holds
every clip with one or two persons in metres, cleaned as the field does: ghost and noise bodies left out, fragments
joined, the two bodies with most motion kept, empty frames left out, the spine of the first frame at the origin.

A file that cannot be read costs that clip: it is left out and named in OUT/report.json. A run that was killed goes on
where it was when the same command is given again. The result is the same to the bit for any number of workers.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fgst.cli.command import CommandParser, run_command
from fgst.data.dataset import ArrowDataset
from fgst.data.formats.ntu_names import ACTIONS, EDITIONS, Edition, belongs, parse_name
from fgst.data.formats.ntu_shards import (
    CLIPS_PER_SHARD,
    MAX_FILE_BYTES,
    Entry,
    ShardRecord,
    ShardTask,
    finished,
    make_shard,
)
from fgst.data.report import Line, print_report, printable, tracked_clips, writing_to
from fgst.data.skeleton import NTU_25
from fgst.data.sources import ClipError, ClipFile, open_source, read_again
from fgst.data.writer import check_output, move_into_place, write_description
from fgst.errors import InputError, Interrupted

SHOWN = 5  # unreadable files that the summary names
PLAN = 1  # changes when the same files would give another data set
HINT = "name the zip of skeletons as it was downloaded, or the folder that it unpacks to"


@dataclass
class Plan:
    """Which clips are read, and which were left out before anything was read: place, kind, fault."""

    entries: list[Entry] = field(default_factory=list)
    left_out: list[tuple[str, str, str]] = field(default_factory=list)
    files: int = 0
    strays: int = 0

    def digest(self, edition: Edition) -> str:
        """What a run that was killed must have had in common with this one to be gone on with."""
        entries = [[e.name, e.source, e.key, *e.stamp] for e in self.entries]
        content = json.dumps([PLAN, edition.name, CLIPS_PER_SHARD, entries])
        return hashlib.sha256(content.encode()).hexdigest()


def make_plan(sources: Sequence[Path], edition: Edition, excluded: frozenset[str]) -> Plan:
    """List the clips of all sources, sorted by name, each once.

    Raises:
        InputError: if a source cannot be listed or has no .skeleton file.
    """
    plan = Plan()
    found: dict[str, list[Entry]] = {}
    for source in sources:
        with open_source(source, suffix=".skeleton", max_bytes=MAX_FILE_BYTES, hint=HINT) as listed:
            plan.strays += listed.strays
            for file in listed.files:
                plan.files += 1
                entry = _entry(file, source, several=len(sources) > 1)
                try:
                    clip = parse_name(file.name)
                except ClipError as error:
                    plan.left_out.append((entry.place, "not a clip", str(error)))
                    continue
                if not belongs(clip, edition):
                    plan.left_out.append((entry.place, "not in this edition", f"is not part of {edition.name}"))
                elif file.name in excluded:
                    plan.left_out.append((entry.place, "excluded", "is on the --exclude-list"))
                else:
                    found.setdefault(file.name, []).append(entry)
    for name in sorted(found):
        first, *others = sorted(found[name], key=lambda entry: (entry.place, entry.source))
        if all(_same(first, other) for other in others):
            plan.entries.append(first)
            plan.left_out.extend((o.place, "there twice", f"is the same as {first.place}") for o in others)
        else:
            where = " and ".join(entry.place for entry in (first, *others))
            plan.left_out.extend((e.place, "contradictory", f"differs between {where}") for e in (first, *others))
    plan.left_out.sort()
    return plan


def _entry(file: ClipFile, source: Path, *, several: bool) -> Entry:
    place = f"{printable(source.name)}: {file.place}" if several else file.place
    return Entry(file.name, str(source.absolute()), file.key, place, file.stamp)


def _same(one: Entry, other: Entry) -> bool:
    """Whether two files with the name of one clip hold the same."""
    try:
        contents = [read_again(Path(entry.source), entry.key, MAX_FILE_BYTES) for entry in (one, other)]
    except ClipError:
        return False
    return contents[0] == contents[1]


@dataclass
class Report:
    """What became of all files; complete when the data set is."""

    edition: Edition
    files: int
    strays: int
    kept: int = 0
    left_out: list[tuple[str, str, str]] = field(default_factory=list)
    removed: Counter[str] = field(default_factory=Counter)
    read_bytes: int = 0
    sha256: str = ""

    def reasons(self) -> Counter[str]:
        return Counter(kind for _, kind, _ in self.left_out)

    def source(self) -> dict[str, Any]:
        """What dataset.json says of where the clips come from."""
        return {
            "preparation": "ntu",
            "release": self.edition.name,
            "sha256": self.sha256,
            "files": self.files,
            "kept": self.kept,
        }

    def record(self, dataset: ArrowDataset) -> dict[str, Any]:
        """All of it, as JSON values."""
        kinds: dict[str, list[dict[str, str]]] = {}
        for place, kind, fault in self.left_out:
            kinds.setdefault(kind, []).append({"file": place, "fault": fault})
        return {
            "release": self.edition.name,
            "digest": dataset.digest,
            "source_sha256": self.sha256,
            "files_read": self.files,
            "other_files": self.strays,
            "bytes_read": self.read_bytes,
            "clips": self.kept,
            "left_out": {kind: len(found) for kind, found in sorted(kinds.items())},
            "removed": dict(sorted(self.removed.items())),
            "splits": split_counts(dataset),
            "left_out_files": {kind: kinds[kind] for kind in sorted(kinds)},
        }


def split_counts(dataset: ArrowDataset) -> dict[str, Any]:
    """Clips, subjects and clips per class of the train and test split of each benchmark; empty where one has none."""
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
    workers: int = 1,
    address: str | None = None,
    overwrite: bool = False,
) -> tuple[ArrowDataset, Report]:
    """Make the data set ``out`` of zips or folders of ``.skeleton`` files.

    Args:
        sources: zips, or folders with any depth of sub-folders.
        edition: "60" or "120".
        exclude: names of clips to leave out.
        workers: shards at a time: in this process if 1, as tasks of Ray otherwise.
        address: of a Ray cluster whose nodes see sources and ``out`` at the same paths; ``None`` is this machine.
        overwrite: replace a data set that is at ``out``.

    Raises:
        InputError: if a source or ``out`` cannot be used, or no clip is left.
    """
    rules, paths, target = EDITIONS[edition], [Path(source) for source in sources], Path(out).absolute()
    check_output(target, overwrite=overwrite)
    for source in paths:
        if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
            raise InputError(f"{printable(str(out))}: lies inside SOURCE; name a directory outside of it")
    plan = make_plan(paths, rules, frozenset(exclude))
    if not plan.entries:
        place, _, fault = plan.left_out[0]
        raise InputError(
            f"{printable(str(paths[0]))}: has no clip of {rules.name} (the first, {place}: {fault}); {HINT}"
        )
    report = Report(rules, plan.files, plan.strays, left_out=list(plan.left_out))
    with ExitStack() as stack:
        stack.enter_context(writing_to(Path(out)))
        target.parent.mkdir(parents=True, exist_ok=True)
        work = target.parent / f".{target.name}.preparing"
        lock = FileLock(f"{work}.lock")
        try:
            stack.enter_context(lock.acquire(timeout=0))
        except Timeout:
            raise InputError(f"{printable(str(out))}: is being prepared by another process; wait for it") from None
        tasks = _tasks(plan, work, rules)
        records = _all_records(tasks, workers, address)
        _finish(work, target, tasks, records, report)
        Path(lock.lock_file).unlink(missing_ok=True)
    return ArrowDataset(target, verify=False), report


def _tasks(plan: Plan, work: Path, edition: Edition) -> list[ShardTask]:
    """The shards to make in ``work``, which keeps those of an earlier run with the same plan, and no others."""
    stamp, digest = work / "plan", plan.digest(edition)
    if not stamp.is_file() or stamp.read_text() != digest:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        stamp.write_text(digest)
    entries = plan.entries
    slices = [tuple(entries[i : i + CLIPS_PER_SHARD]) for i in range(0, len(entries), CLIPS_PER_SHARD)]
    return [ShardTask(index, part, str(work), edition.actions) for index, part in enumerate(slices)]


def _all_records(tasks: list[ShardTask], workers: int, address: str | None) -> list[ShardRecord]:
    """Make the shards that are missing, telling how far it is."""
    records = {task.index: record for task in tasks if (record := finished(task)) is not None}
    missing = [task for task in tasks if task.index not in records]
    if records:
        print(f"going on: {len(records):,} of {len(tasks):,} files are there", file=sys.stderr, flush=True)
    total = sum(len(task.entries) for task in tasks)
    done = total - sum(len(task.entries) for task in missing)
    with closing(tracked_clips(_made(missing, workers, address), total=total, done=done)) as made:
        for record in made:
            records[record.index] = record
    return [records[task.index] for task in tasks]


def _made(tasks: list[ShardTask], workers: int, address: str | None) -> Generator[tuple[ShardRecord, int], None, None]:
    """Each record as it is made, and how many clips it stands for."""
    sizes = {task.index: len(task.entries) for task in tasks}
    if not tasks:
        return
    if address is None and min(workers, len(tasks)) <= 1:
        for task in tasks:
            yield make_shard(task), sizes[task.index]
        return
    from fgst.sweep.backends.ray_session import ray_map

    with closing(ray_map(make_shard, tasks, address=address, workers=workers)) as records:
        for record in records:
            yield record, sizes[record.index]


def _finish(work: Path, out: Path, tasks: list[ShardTask], records: list[ShardRecord], report: Report) -> None:
    content = hashlib.sha256()
    for record in records:
        report.kept += record.kept
        report.left_out.extend(record.left_out)
        report.removed.update(record.removed)
        report.read_bytes += record.read_bytes
        content.update(record.content.encode())
    report.left_out.sort()
    report.sha256 = content.hexdigest()
    files = [record.file for record in records if record.file is not None]
    if not files:
        place, _, fault = report.left_out[0]
        raise InputError(f"no clip could be used (the first, {place}: {fault}); {HINT}")
    write_description(
        work,
        files,
        num_clips=report.kept,
        name=report.edition.name,
        skeleton=NTU_25,
        classes=ACTIONS[: report.edition.actions],
        benchmarks=report.edition.benchmarks,
        recipe="ntu",
        source=report.source(),
    )
    dataset = ArrowDataset(work, verify=False)
    (work / "report.json").write_text(json.dumps(report.record(dataset), indent=1) + "\n")
    from fgst.evaluation.plots import lengths

    lengths(dataset.columns["num_frames"], work / "report.png")
    for task in tasks:
        task.record.unlink(missing_ok=True)
    (work / "plan").unlink(missing_ok=True)
    for leftover in work.glob("*.tmp"):
        leftover.unlink()
    move_into_place(work, out)


def read_exclude_list(path: Path) -> list[str]:
    """Names of clips, one on a line; lines that hold none (the official lists have a heading) are passed over.

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
        raise InputError(f"--exclude-list {path}: names no clip; one name on a line, S001C002P005R002A008")
    return names


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; exits with 2 and one line on stderr on bad input."""
    run_command(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> None:
    parser = CommandParser("python -m data_prep.ntu", __doc__)
    parser.add_argument("sources", metavar="SOURCE", type=Path, nargs="+", help="zips or folders of .skeleton files")
    parser.add_argument("out", metavar="OUT", type=Path, help="the new directory, e.g. datasets/ntu-60")
    parser.add_argument("--edition", choices=EDITIONS, required=True, help="NTU RGB+D 60, or 120 (all of both)")
    parser.add_argument("--exclude-list", type=Path, metavar="FILE", help="names of clips to leave out")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="default: all cores")
    parser.add_argument("--address", metavar="ADDRESS", help='of a Ray cluster to work on; "auto" finds it')
    parser.add_argument("--overwrite", action="store_true", help="replace the data set that is at OUT")
    args = parser.parse_args(argv)
    if args.workers < 1:
        raise InputError(f"--workers is {args.workers}; it must be at least 1")
    exclude = read_exclude_list(args.exclude_list) if args.exclude_list else []
    began = time.monotonic()
    try:
        dataset, report = prepare(
            args.sources, args.out, edition=args.edition, exclude=exclude, workers=args.workers, address=args.address,
            overwrite=args.overwrite,
        )  # fmt: skip
    except KeyboardInterrupt:
        raise Interrupted("What is done is kept beside OUT: the same command goes on.") from None
    reasons = report.reasons()
    unreadable = [f"{place}: {fault}" for place, kind, fault in report.left_out if kind == "unreadable"]
    lines: list[Line] = [
        ("read", f"{report.files:,} .skeleton files"),
        ("kept", f"{report.kept:,} clips"),
        ("left out", f"{len(report.left_out):,} files (named in {args.out}/report.json)"),
        *(("", f"{count:6,}  {kind}") for kind, count in sorted(reasons.items())),
        *(("", f"        {line}") for line in unreadable[:SHOWN]),
        *[("", f"        and {len(unreadable) - SHOWN:,} more in the report")] * (len(unreadable) > SHOWN),
        ("cleaned", ", ".join(f"{count:,} {what}" for what, count in sorted(report.removed.items())) or "nothing"),
    ]
    if exclude:
        lines.append(("excluded", f"{reasons['excluded']:,} of the {len(exclude):,} names on the list are here"))
    if report.strays:
        lines.append(("ignored", f"{report.strays:,} files that are not .skeleton"))
    print_report(f"NTU RGB+D {args.edition}", lines, dataset, args.out, time.monotonic() - began)


if __name__ == "__main__":
    main()
