"""Recorded learning curves: written by ``python -m fgst.runs curves``, read by ``--simulate``.

A file contains JSON lines, one per trial: ``{"params": {"K": 15}, "seed": 0, "val/top1": [41.2, …], "minutes":
[1.5, …], "test/top1": 84.5, …}``. The lists have one value per epoch; minutes count from the start of the trial.

Alternatively, it is a CSV file with a column for each parameter and the columns ``seed``, ``val/top1@1``,
``minutes@1``, ``val/top1@2`` … and ``test/top1``. A cell is empty if the trial does not have that parameter or epoch.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from fgst.errors import InputError
from fgst.parsing import convert_json, decode_json, printable, read_regular_file, read_table, shorten
from fgst.sweep.definition import OBJECTIVES

VAL, MINUTES = "val/top1", "minutes"
# Metrics with one value per trial, in addition to the two curves.
FINAL_METRICS = (
    "test/top1",
    "device_seconds",
    *(metric for _, metric in OBJECTIVES.values() if metric.startswith("model/")),
)
MAX_CURVES_BYTES = 256 * 1024 * 1024
_HINT = "create one with: python -m fgst.runs curves SWEEP_RUN_ID > curves.jsonl"
_EPOCH_COLUMN = re.compile(rf"({VAL}|{MINUTES})@([1-9][0-9]*)")


@dataclass(frozen=True)
class LearningCurve:
    """A trial that was trained to its last epoch.

    Attributes:
        params: the trial's parameters.
        seed: the trial's seed.
        val: validation top-1 in % after each epoch.
        minutes: time since the start of the trial, after each epoch.
        final: the available ones of ``FINAL_METRICS``.
    """

    params: Mapping[str, Any]
    seed: int
    val: tuple[float, ...]
    minutes: tuple[float, ...]
    final: Mapping[str, float] = field(default_factory=dict)

    @property
    def devices(self) -> float:
        """Number of GPUs, or of cores on the CPU, that the trial used; 1 if that was not recorded."""
        return self.final.get("device_seconds", 60 * self.minutes[-1]) / (60 * self.minutes[-1])

    def to_json(self, **extra: Any) -> str:
        """Format as a line of the file; ``extra`` fields are informative and ignored when the file is read."""
        content = {"params": dict(self.params), "seed": self.seed, VAL: self.val, MINUTES: self.minutes}
        return json.dumps(content | dict(self.final) | extra, allow_nan=False)


def make_curve(
    params: Mapping[str, Any],
    seed: int,
    val: Mapping[int, float],
    minutes: Mapping[int, float],
    final: Mapping[str, float],
) -> LearningCurve:
    """Make a curve from values by epoch.

    Args:
        params: the trial's parameters.
        seed: the trial's seed.
        val: validation top-1 in %, by epoch from 1 on.
        minutes: time since the start of the trial, by epoch from 1 on.
        final: metrics of the trial; those that are not in ``FINAL_METRICS`` or not finite are ignored.

    Raises:
        ValueError: if a value is missing or impossible.
    """
    epochs = range(1, len(val) + 1)
    if not val:
        raise ValueError(f"no {VAL}")
    for name, values in ((VAL, val), (MINUTES, minutes)):
        if values.keys() != set(epochs):
            raise ValueError(f"{name} is not given for each of the {max([*val, *values])} epochs")
        if not all(math.isfinite(value) for value in values.values()):
            raise ValueError(f"{name} is not finite in every epoch")
    times = [0.0, *(minutes[epoch] for epoch in epochs)]
    if any(later < earlier for earlier, later in itertools.pairwise(times)) or times[-1] == 0:
        raise ValueError(f"{MINUTES} do not increase from epoch to epoch")
    finite = {name: float(final[name]) for name in FINAL_METRICS if name in final and math.isfinite(final[name])}
    return LearningCurve(dict(params), seed, tuple(val[e] for e in epochs), tuple(minutes[e] for e in epochs), finite)


def read_curves(path: Path) -> list[LearningCurve]:
    """Read all curves of a file.

    Raises:
        InputError: if the file cannot be read, or a line of it is not a valid curve; names the line.
    """
    source = f"--simulate {printable(str(path))}"
    try:
        content = read_regular_file(path, MAX_CURVES_BYTES)
        parse = _parse_json if content.lstrip().startswith(b"{") else _parse_csv
        curves = list(parse(content)) if content.strip() else []
    except ValueError as error:
        raise InputError(f"{source}: {error}; {_HINT}") from None
    if not curves:
        raise InputError(f"{source}: contains no learning curves; {_HINT}")
    return curves


class _Line(msgspec.Struct):
    """A line of JSON; the final metrics are read separately."""

    params: dict[str, int | float | str]
    seed: int
    minutes: list[float]
    val: list[float] = msgspec.field(name=VAL)


def _parse_json(content: bytes) -> Iterator[LearningCurve]:
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            fields = decode_json(line, dict[str, Any])
            curve = convert_json(fields, _Line)
            final = convert_json({n: fields[n] for n in FINAL_METRICS if fields.get(n) is not None}, dict[str, float])
            val, minutes = (dict(enumerate(values, 1)) for values in (curve.val, curve.minutes))
            yield make_curve(curve.params, curve.seed, val, minutes, final)
        except ValueError as error:
            raise ValueError(f"line {number} is not a valid learning curve ({error})") from None


def _parse_csv(content: bytes) -> Iterator[LearningCurve]:
    columns, rows = read_table(content)
    if "seed" not in columns or f"{VAL}@1" not in columns:
        raise ValueError(f"is neither JSON lines nor CSV with columns seed and {VAL}@1")
    for number, row in rows:
        by_epoch: dict[str, dict[int, float]] = {VAL: {}, MINUTES: {}}
        params: dict[str, Any] = {}
        final: dict[str, float] = {}
        try:
            for name, cell in row.items():
                if not cell or name == "seed":
                    continue
                if match := _EPOCH_COLUMN.fullmatch(name):
                    by_epoch[match[1]][int(match[2])] = float(cell)
                elif name in FINAL_METRICS:
                    final[name] = float(cell)
                else:
                    params[name] = _parse_scalar(cell)
            yield make_curve(params, int(row["seed"]), by_epoch[VAL], by_epoch[MINUTES], final)
        except ValueError as error:
            raise ValueError(f"line {number} is not a valid learning curve ({shorten(str(error))})") from None


def _parse_scalar(cell: str) -> int | float | str:
    for parse in (int, float):
        try:
            value = parse(cell)
        except ValueError:
            continue
        if not math.isfinite(value):
            raise ValueError(f"the parameter value {cell} is not finite")
        return value
    return cell


def most_common_length(curves: Sequence[LearningCurve]) -> int:
    """Return the number of epochs that most curves have; of several, the largest."""
    lengths = [len(curve.val) for curve in curves]
    return max(sorted(set(lengths), reverse=True), key=lengths.count)
