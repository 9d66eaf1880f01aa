"""Conversion of a source of clips to an Arrow data set: clips are read, normalized and written one by one."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fgst.data.clip_source import ClipEntry, ClipSource
from fgst.data.dataset import ArrowDataset, Clip
from fgst.data.label_table import natural_order
from fgst.data.layout import split_list
from fgst.data.normalization import Normalization, RawClip, check_shape, measure
from fgst.data.progress import tracked
from fgst.data.skeleton import Skeleton
from fgst.data.sources import ClipError, EmptyClip, parse_clip
from fgst.data.writer import check_joints, check_output, write_dataset
from fgst.errors import InputError
from fgst.parsing import printable

logger = logging.getLogger(__name__)

MEASURED_CLIPS = 32  # clips by which the normalization is chosen
_LISTED = 3  # faulty clips that a message lists


@dataclass
class ConversionReport:
    """Outcome of a conversion. It is complete once all clips are read.

    Attributes:
        rejected: name and fault of each clip that is not in the data set.
        empty: counts, by reason, of the clips that were left out because they show no person, as the format expects.
        unusual: counts of clips by :attr:`~fgst.data.normalization.RawClip.remark`.
        removed: counts of what the normalization removed from clips.
        notes: remarks for the user.
    """

    rejected: list[tuple[str, str]] = field(default_factory=list)
    empty: Counter[str] = field(default_factory=Counter)
    unusual: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def write_source(
    source: ClipSource,
    out: Path,
    *,
    name: str | None = None,
    recipe: str | None = None,
    normalization: dict[str, Any] | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
) -> tuple[ArrowDataset, ConversionReport]:
    """Convert a source to a data set.

    Args:
        source: the open source.
        out: the new directory.
        name: name of the data set; ``None`` means the name of ``out``.
        recipe: the default sampling and augmentation; ``None`` means the source's.
        normalization: changes of single fields of the normalization that the source has, or that is measured.
        skip_bad: leave out clips that are not usable; by default, all of them are listed in an error.
        overwrite: replace an existing data set at ``out``.

    Raises:
        InputError: if a clip is not usable and ``skip_bad`` is not set, or none is; nothing is written then.
    """
    check_output(out, overwrite=overwrite)
    benchmarks = [*source.benchmarks, *map(split_list, source.split_lists)]
    if not benchmarks:
        raise InputError(
            "there is no benchmark, i.e. no rule for which clips are for training: name one with --benchmark, or add a "
            "column split with the values train and test to the table of labels"
        )
    report = ConversionReport(notes=list(source.notes))
    entries = list(source.entries) if source.classes is None else source.entries
    classes = source.classes or natural_order({str(entry.label) for entry in entries})
    origin: dict[str, Any] = {**source.origin, "preparation": source.preparation}  # completed before it is written
    with closing(_clips(source, entries, classes, report, origin, normalization or {}, skip_bad=skip_bad)) as clips:
        first = next(clips, None)
        if first is None:
            raise InputError(_none_usable(report))
        dataset = write_dataset(
            out,
            itertools.chain([first], clips),
            name=name or out.name,
            skeleton=source.skeleton,
            classes=classes,
            benchmarks=benchmarks,
            recipe=recipe or source.recipe,
            source=origin,
            overwrite=overwrite,
        )
    for reason, count in report.empty.items():
        report.notes.append(f"{_clips_count(count)} left out: {reason}")
    for remark, count in report.unusual.items():
        report.notes.append(f"{_clips_count(count)}: {remark}")
    report.notes += remarks(dataset)
    return dataset, report


def remarks(dataset: ArrowDataset) -> list[str]:
    """Return remarks about a new data set: classes that are missing from a split, and clips in no split."""
    notes = []
    labels, names = dataset.columns["label"], np.array(dataset.classes)
    for benchmark in dataset.benchmarks:
        try:
            splits = dataset.splits(benchmark.name, validation=0)
        except InputError:
            continue  # reported with the benchmarks
        missing = sorted(set(labels.tolist()) - set(labels[splits.train].tolist()))
        if missing:
            listed = ", ".join(names[missing[:5]]) + (" …" if len(missing) > 5 else "")
            notes.append(f"{benchmark.name}: no training clip of {_classes_count(len(missing))} ({listed})")
        unused = len(dataset) - len(splits.train) - len(splits.test)
        if unused:
            notes.append(f"{benchmark.name}: {unused:,} clips are in neither split")
    return notes


def read_raw(entry: ClipEntry, skeleton: Skeleton) -> RawClip:
    """Read the joints of an entry and check their shape.

    Raises:
        ClipError: if it cannot be read, or has another shape.
    """
    raw = parse_clip(lambda read: read(), entry.read)
    check_shape(raw.joints.shape, skeleton)
    return raw


def _clips(
    source: ClipSource,
    entries: Iterable[ClipEntry],
    classes: Sequence[str],
    report: ConversionReport,
    origin: dict[str, Any],
    changes: dict[str, Any],
    *,
    skip_bad: bool,
) -> Generator[Clip, None, None]:
    """Read and normalize the clips; complete ``report`` and ``origin`` at the end.

    Raises:
        InputError: after the last clip, if one was not usable and ``skip_bad`` is not set.
    """
    labels = {name: label for label, name in enumerate(classes)}
    digest = hashlib.sha256()
    with closing(tracked(entries, source.num_clips, "clips")) as progress:
        reading = _read_all(progress, source.skeleton, report)
        measured = list(itertools.islice(reading, 0 if source.normalization else MEASURED_CLIPS))
        normalization, notes = source.normalization, list[str]()
        if normalization is None:
            normalization, notes = measure([raw for _, raw in measured], source.skeleton)
        normalization = dataclasses.replace(normalization, **changes)
        report.notes += notes
        origin["normalization"] = normalization.to_dict()
        for entry, raw in itertools.chain(measured, reading):
            try:
                joints = parse_clip(lambda raw: _normalize(raw, normalization, source.skeleton, report), raw)
            except ClipError as fault:
                report.rejected.append((entry.clip_id, str(fault)))
                continue
            label = labels[entry.label] if isinstance(entry.label, str) else entry.label
            digest.update(f"{entry.clip_id} {label} ".encode() + joints.tobytes())
            if report.rejected and not skip_bad:
                continue  # nothing will be written; the other clips are read to list all faults
            yield Clip(
                entry.clip_id,
                label,
                joints,
                subject=entry.subject,
                camera=entry.camera,
                setup=entry.setup,
                replication=entry.replication,
                splits=entry.splits,
            )
    if report.rejected and not skip_bad:
        raise InputError(_not_usable(report))
    origin["sha256"] = digest.hexdigest()
    if left_out := len(report.rejected) + report.empty.total():
        origin["left_out"] = left_out


def _read_all(
    entries: Iterable[ClipEntry], skeleton: Skeleton, report: ConversionReport
) -> Generator[tuple[ClipEntry, RawClip], None, None]:
    """Yield the entries that can be read, with their clips."""
    for entry in entries:
        try:
            raw = read_raw(entry, skeleton)
        except EmptyClip as reason:
            report.empty[str(reason)] += 1
        except ClipError as fault:
            report.rejected.append((entry.clip_id, str(fault)))
        else:
            if raw.remark:
                report.unusual[raw.remark] += 1
            yield entry, raw


def _normalize(raw: RawClip, normalization: Normalization, skeleton: Skeleton, report: ConversionReport) -> np.ndarray:
    joints, removed = normalization.apply(raw, skeleton)
    joints = check_joints(joints, skeleton)
    report.removed.update(removed)
    return joints


def _not_usable(report: ConversionReport) -> str:
    """Return the message about clips that are not usable; if they are many, all are logged first."""
    count = len(report.rejected)
    faults = [f"{printable(clip_id)}: {fault}" for clip_id, fault in report.rejected]
    remedy = f"fix or remove {'it' if count == 1 else 'them'}, or pass --skip-bad to leave out such clips"
    if count <= _LISTED:
        return f"{'; '.join(faults)}; {remedy}"
    for fault in faults:
        logger.warning("%s", fault)
    return f"{count:,} clips are not usable, all listed above; {remedy}"


def _none_usable(report: ConversionReport) -> str:
    if not report.rejected:
        reasons = "; ".join(f"{_clips_count(count)} left out: {reason}" for reason, count in report.empty.items())
        return "there is no clip to convert" + (f" ({reasons})" if reasons else "")
    clip_id, fault = report.rejected[0]
    return f"none of the {len(report.rejected):,} clips is usable (the first, {printable(clip_id)}: {fault})"


def _classes_count(count: int) -> str:
    return "1 class" if count == 1 else f"{count:,} classes"


def _clips_count(count: int) -> str:
    return "1 clip" if count == 1 else f"{count:,} clips"
