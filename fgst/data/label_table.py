"""Tables of labels: class, subject, camera and split of each clip, in CSV or a spreadsheet's text export."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fgst.data.clip_source import ClipEntry, Membership
from fgst.data.normalization import RawClip
from fgst.data.sources import ClipError
from fgst.data.splits import Benchmark
from fgst.errors import InputError
from fgst.parsing import printable, read_regular_file, read_table, shorten

NUMBER_COLUMNS = ("subject", "camera", "setup", "replication")
MAX_NAME = 200  # characters of a clip's or a class's name
_LISTED = 10  # faults that a message lists
_BENCHMARK = re.compile(r"([\w.-]+):([\w .-]+)=(.+)")
_BENCHMARK_FORM = (
    "write NAME:COLUMN=TRAINING_VALUES or NAME:COLUMN=TRAINING_VALUES/TEST_VALUES, e.g. x-sub:subject=1,2,3 or "
    "official:split=train/test"
)


@dataclass(frozen=True)
class LabelTable:
    """A table of labels.

    Attributes:
        rows: the clips by name, whose joints the table does not have.
        classes: names of the classes, by label.
        benchmarks: those that select training clips by a column of numbers.
        split_lists: names of those that are lists of clips.
        numbers: the number that stands for each text, by column, where a column contains texts.
        notes: remarks for the user.
    """

    rows: Mapping[str, ClipEntry]
    classes: tuple[str, ...]
    benchmarks: tuple[Benchmark, ...] = ()
    split_lists: tuple[str, ...] = ()
    numbers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_label_table(path: Path, benchmarks: Sequence[str] = (), classes: Path | None = None) -> LabelTable:
    """Read a table of labels.

    Args:
        path: CSV with a header, separated by commas, semicolons or tabs, in UTF-8 or UTF-16. ``clip_id`` and ``label``
            are required columns.
        benchmarks: benchmarks as on the command line. Without any, each column ``split…`` with the values train and
            test is one.
        classes: a file with one class name per line, in the order of the labels.

    Raises:
        InputError: if a file cannot be read or is not valid; the message names the lines.
    """
    location = printable(str(path))
    try:
        cells = _read_cells(read_regular_file(path))
    except ValueError as error:
        raise InputError(f"{location}: {error}") from None
    notes: list[str] = []
    names, labels = _labels(cells, classes, notes, location)
    numbers = {column: _numbers(column, cells, notes) for column in NUMBER_COLUMNS}
    rules, lists, memberships = _benchmarks(benchmarks, cells, numbers, notes, location)
    rows = {
        clip_id: ClipEntry(
            clip_id,
            labels[row["label"]],
            _no_joints,
            splits=memberships.get(clip_id, {}),
            **{column: numbers[column].get(row.get(column, ""), 0) for column in NUMBER_COLUMNS},
        )
        for clip_id, row in cells.items()
    }
    texts = {column: values for column, values in numbers.items() if any(str(n) != text for text, n in values.items())}
    return LabelTable(rows, names, tuple(rules), tuple(lists), texts, tuple(notes))


def _no_joints() -> RawClip:
    raise ClipError("is in the table of labels, but there is no such clip")


def natural_order(names: set[str]) -> list[str]:
    """Sort names so that whole numbers within them ascend: P2 before P10."""
    return sorted(names, key=lambda name: [(0, int(t), "") if t.isdecimal() else (1, 0, t) for t in _pieces(name)])


def _pieces(name: str) -> list[str]:
    return [piece for piece in re.split(r"([0-9]{1,18})", name) if piece]


def _column(name: str) -> str:
    """Return the name of a column without differences of case and blanks: ``Clip ID`` is ``clip_id``."""
    return "_".join(name.lower().split())


def _read_cells(content: bytes) -> dict[str, dict[str, str]]:
    """Return the cells by column of each clip; raises ValueError that names all faulty lines."""
    header, lines = read_table(content)
    columns = [_column(name) for name in header]
    if len(set(columns)) < len(columns):
        raise ValueError(f"has two columns of the same name; its header is {shorten(', '.join(header))}")
    for column in ("clip_id", "label"):
        if column not in columns:
            raise ValueError(f"has no column {column}; its header is {shorten(', '.join(columns)) or 'empty'}")
    cells: dict[str, dict[str, str]] = {}
    faults: list[str] = []
    for number, line in lines:
        values = dict(zip(columns, line.values(), strict=True))
        clip = values["clip_id"]
        if not clip or not values["label"]:
            faults.append(f"line {number}: has no clip_id or no label")
        elif clip in cells:
            faults.append(f"line {number}: clip {shorten(clip, 80)} occurs twice")
        for column, value in values.items():
            if len(value) > MAX_NAME or not value.isprintable():
                faults.append(
                    f"line {number}: {shorten(column, 40)} {shorten(value, 80)} must be at most {MAX_NAME} printable "
                    "characters"
                )
        cells[clip] = values
    if faults:
        more = f" … and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
        raise ValueError("; ".join(faults[:_LISTED]) + more)
    if not cells:
        raise ValueError("lists no clip")
    return cells


def _labels(
    cells: Mapping[str, Mapping[str, str]], classes: Path | None, notes: list[str], location: str
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return the names of the classes, and the label of each value of the column ``label``."""
    values = natural_order({row["label"] for row in cells.values()})
    if classes is None:
        return tuple(values), {value: label for label, value in enumerate(values)}
    names = read_class_names(classes)
    if all(value in names for value in values):
        return names, {value: names.index(value) for value in values}
    if not all(value.isdecimal() for value in values):
        unknown = next(value for value in values if value not in names)
        raise InputError(f"{location}: label {shorten(unknown, 80)} is not in {printable(str(classes))}")
    first = 1 if max(map(int, values)) == len(names) else 0
    if not first <= min(map(int, values)) <= max(map(int, values)) < first + len(names):
        raise InputError(
            f"{location}: labels are {values[0]} to {values[-1]}, but {printable(str(classes))} has {len(names)} names"
        )
    notes.append(f"labels count from {first}: {first} is {names[0]}")
    return names, {value: int(value) - first for value in values}


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read a file with one class name per line.

    Raises:
        InputError: if it cannot be read, is empty, or repeats a name.
    """
    location = printable(str(path))
    try:
        content = read_regular_file(path).decode("utf-8-sig")
    except ValueError as error:
        raise InputError(f"{location}: {shorten(str(error))}; write one class name per line, in UTF-8") from None
    names = [line.strip() for line in content.splitlines() if line.strip()]
    if not names:
        raise InputError(f"{location}: is empty; write one class name per line")
    for name in names:
        if names.count(name) > 1 or len(name) > MAX_NAME or not name.isprintable():
            raise InputError(
                f"{location}: {shorten(name, 80)} occurs twice or is not a name of at most {MAX_NAME} characters"
            )
    return tuple(names)


def _numbers(column: str, cells: Mapping[str, Mapping[str, str]], notes: list[str]) -> dict[str, int]:
    """Return the number for each text in a column. Whole numbers from 1 stand for themselves."""
    values = natural_order({row.get(column, "") for row in cells.values()} - {""})
    if all(re.fullmatch(r"0*[1-9][0-9]{0,8}", value) for value in values):
        return {value: int(value) for value in values}
    numbers = {value: number for number, value in enumerate(values, start=1)}
    reason = " (0 would mean 'not recorded')" if "0" in values else ""
    notes.append(f"{column}: {values[0]} to {values[-1]} are numbered 1 to {len(values)}{reason}")
    return numbers


def _benchmarks(
    texts: Sequence[str],
    cells: Mapping[str, Mapping[str, str]],
    numbers: Mapping[str, Mapping[str, int]],
    notes: list[str],
    location: str,
) -> tuple[list[Benchmark], list[str], dict[str, dict[str, Membership]]]:
    """Return the benchmarks by number, the names of lists, and the splits of each clip by list."""
    columns = list(next(iter(cells.values())))
    if not texts:
        texts = [
            f"{column}:{column}=train/test"
            for column in columns
            if column.startswith("split") and {"train", "test"} <= {row[column] for row in cells.values()}
        ]
    rules: list[Benchmark] = []
    lists: list[str] = []
    memberships: dict[str, dict[str, Membership]] = {}
    for text in texts:
        name, column, train, test = parse_benchmark(text)
        if name in [*lists, *(rule.name for rule in rules)]:
            raise InputError(f"--benchmark {name}: occurs twice; use different names")
        values = {clip_id: row.get(column, "") for clip_id, row in cells.items()}
        known = natural_order(set(values.values()) - {""})
        if not known:
            raise InputError(
                f"{location}: has no column {column} with values, which benchmark {name} splits by; its header is "
                + shorten(", ".join(columns))
            )
        unknown = [value for value in (*train, *(test or ())) if value not in known]
        if unknown and len(unknown) < len(train):
            notes.append(f"{name}: no clip has {column} {shorten(', '.join(unknown), 80)}")
        in_train = {clip_id for clip_id, value in values.items() if value in train}
        in_test = {c for c, value in values.items() if (value not in train if test is None else value in test)}
        if not in_train or not in_test:
            split = "train" if not in_train else "test"
            raise InputError(
                f"--benchmark {name}: its {split} split is empty; {column} is one of {', '.join(known[:20])}"
            )
        if test is None and (blank := sum(not value for value in values.values())):
            clips = "1 clip has" if blank == 1 else f"{blank:,} clips have"
            notes.append(f"{name}: {clips} no {column} and {'is' if blank == 1 else 'are'} for testing")
        if column in numbers:
            rules.append(
                Benchmark(
                    name,
                    column,
                    _values(train, numbers[column]),
                    None if test is None else _values(test, numbers[column]),
                )
            )
            continue
        lists.append(name)
        for clip_id in cells:
            if clip_id in in_train or clip_id in in_test:
                memberships.setdefault(clip_id, {})[name] = "train" if clip_id in in_train else "test"
    return rules, lists, memberships


def _values(texts: Sequence[str], numbers: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(numbers[text] for text in texts if text in numbers)


def parse_benchmark(text: str) -> tuple[str, str, tuple[str, ...], tuple[str, ...] | None]:
    """Parse ``NAME:COLUMN=VALUES`` or ``NAME:COLUMN=VALUES/VALUES``; the last part is ``None`` in the first form.

    Raises:
        InputError: if it has another form, or a value is on both sides.
    """
    match = _BENCHMARK.fullmatch(text)
    if match is None:
        raise InputError(f"--benchmark {shorten(text, 80)}: {_BENCHMARK_FORM}")
    train, slash, test = match[3].partition("/")
    split = [tuple(value.strip() for value in values.split(",") if value.strip()) for values in (train, test)]
    if not split[0] or (slash and not split[1]):
        raise InputError(f"--benchmark {shorten(text, 80)}: {_BENCHMARK_FORM}")
    if set(split[0]) & set(split[1]):
        raise InputError(f"--benchmark {shorten(text, 80)}: a value is both for training and for testing")
    return match[1], _column(match[2]), split[0], split[1] if slash else None
