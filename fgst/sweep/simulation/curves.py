"""Recorded learning curves: written by ``python -m fgst.runs curves``, read by ``--simulate``.

A file contains JSON lines, one per trial: ``{"params": {"K": 15}, "seed": 0, "val/top1": [41.2, …], "minutes":
[1.5, …], "test/top1": 84.5, …}``. The lists have one value per epoch; minutes count from the start of the trial.

Alternatively, it is a CSV file with a column for each parameter and the columns ``seed``, ``val/top1@1``,
``minutes@1``, ``val/top1@2`` … and ``test/top1``. A cell is empty if the trial does not have that parameter or epoch.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgst.errors import InputError
from fgst.sweep.definition import OBJECTIVES

VAL, MINUTES = "val/top1", "minutes"
# Metrics with one value per trial, in addition to the two curves.
FINAL_METRICS = (
    "test/top1",
    "device_seconds",
    *(metric for _, metric in OBJECTIVES.values() if metric.startswith("model/")),
)
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
    epochs = range(1, max(val, default=0) + 1)
    if not val:
        raise ValueError(f"no {VAL}")
    for name, values in ((VAL, val), (MINUTES, minutes)):
        if sorted(values) != list(epochs):
            raise ValueError(f"{name} is not given for each of the {len(epochs)} epochs")
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
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise InputError(f"--simulate {path}: cannot be read ({reason}); {_HINT}") from None
    parse = _parse_json if text.lstrip().startswith("{") else _parse_csv
    curves = parse(text, f"--simulate {path}") if text.strip() else []
    if not curves:
        raise InputError(f"--simulate {path}: contains no learning curves; {_HINT}")
    return curves


def _parse_json(text: str, source: str) -> list[LearningCurve]:
    curves = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
            val, minutes = ({e: float(v) for e, v in enumerate(content[name], 1)} for name in (VAL, MINUTES))
            params = {str(name): _check_scalar(value) for name, value in content["params"].items()}
            final = {name: float(content[name]) for name in FINAL_METRICS if content.get(name) is not None}
            curves.append(make_curve(params, int(content["seed"]), val, minutes, final))
        except KeyError as error:
            raise InputError(f"{source}: line {number} has no {error}") from None
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"{source}: line {number} is not a valid learning curve ({error})") from None
    return curves


def _parse_csv(text: str, source: str) -> list[LearningCurve]:
    rows = csv.DictReader(io.StringIO(text))
    columns = rows.fieldnames or []
    if "seed" not in columns or f"{VAL}@1" not in columns:
        raise InputError(f"{source}: is neither JSON lines nor CSV with columns seed and {VAL}@1; {_HINT}")
    curves = []
    for number, row in enumerate(rows, 2):
        by_epoch: dict[str, dict[int, float]] = {VAL: {}, MINUTES: {}}
        params: dict[str, Any] = {}
        final: dict[str, float] = {}
        try:
            for name in columns:
                cell = (row[name] or "").strip()
                if not cell or name == "seed":
                    continue
                if match := _EPOCH_COLUMN.fullmatch(name):
                    by_epoch[match[1]][int(match[2])] = float(cell)
                elif name in FINAL_METRICS:
                    final[name] = float(cell)
                else:
                    params[name] = _parse_scalar(cell)
            curves.append(make_curve(params, int(row["seed"]), by_epoch[VAL], by_epoch[MINUTES], final))
        except (TypeError, ValueError) as error:
            raise InputError(f"{source}: line {number} is not a valid learning curve ({error})") from None
    return curves


def _check_scalar(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"the parameter value {value!r} is neither a number nor a string")
    return value


def _parse_scalar(cell: str) -> int | float | str:
    for parse in (int, float):
        try:
            return parse(cell)
        except ValueError:
            continue
    return cell


def most_common_length(curves: Sequence[LearningCurve]) -> int:
    """Return the number of epochs that most curves have; of several, the largest."""
    lengths = [len(curve.val) for curve in curves]
    return max(sorted(set(lengths), reverse=True), key=lengths.count)
