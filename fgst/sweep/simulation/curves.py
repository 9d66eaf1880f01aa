"""Recorded learning curves: what ``python -m fgst.runs curves`` writes, and ``--simulate`` reads.

A file of JSON lines, one a trial: ``{"params": {"K": 15}, "seed": 0, "val/top1": [41.2, …], "minutes": [1.5, …],
"test/top1": 84.5, …}``, the lists by epoch from the first on, minutes since the trial began. Or the same as CSV: a
column for each parameter, ``seed``, ``val/top1@1``, ``minutes@1``, ``val/top1@2`` … and ``test/top1``; an empty cell
is a parameter that the trial does not have, or an epoch after its last.
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
# Figures of a whole trial, beside its two curves.
AT_THE_END = (
    "test/top1",
    "device_seconds",
    *(metric for _, metric in OBJECTIVES.values() if metric.startswith("model/")),
)
_MAKE = "python -m fgst.runs curves SWEEP_RUN_ID > curves.jsonl makes one"
_BY_EPOCH = re.compile(rf"({VAL}|{MINUTES})@([1-9][0-9]*)")


@dataclass(frozen=True)
class Curve:
    """A training that ran to its end.

    Attributes:
        point, seed: which trial it is of.
        val: validation top-1 in % after each epoch.
        minutes: since its begin, after each epoch.
        end: figures of ``AT_THE_END`` that it has.
    """

    params: Mapping[str, Any]
    seed: int
    val: tuple[float, ...]
    minutes: tuple[float, ...]
    end: Mapping[str, float] = field(default_factory=dict)

    @property
    def devices(self) -> float:
        """GPUs, or cores on the CPU, that it had; 1 where that is not known."""
        return self.end.get("device_seconds", 60 * self.minutes[-1]) / (60 * self.minutes[-1])

    def to_json(self, **more: Any) -> str:
        """A line of the file; ``more`` is kept for people and not read again."""
        content = {"params": dict(self.params), "seed": self.seed, VAL: self.val, MINUTES: self.minutes}
        return json.dumps(content | dict(self.end) | more, allow_nan=False)


def make_curve(
    params: Mapping[str, Any],
    seed: int,
    val: Mapping[int, float],
    minutes: Mapping[int, float],
    end: Mapping[str, float],
) -> Curve:
    """A curve of figures by epoch.

    Raises:
        ValueError: saying what is missing or cannot be.
    """
    epochs = range(1, max(val, default=0) + 1)
    if not val:
        raise ValueError(f"it has no {VAL}")
    for name, values in ((VAL, val), (MINUTES, minutes)):
        if sorted(values) != list(epochs):
            raise ValueError(f"it does not have {name} for each of its {len(epochs)} epochs")
        if not all(math.isfinite(value) for value in values.values()):
            raise ValueError(f"{name} is not always a number")
    times = [0.0, *(minutes[epoch] for epoch in epochs)]
    if any(later < earlier for earlier, later in itertools.pairwise(times)) or times[-1] == 0:
        raise ValueError(f"{MINUTES} do not grow from epoch to epoch")
    figures = {name: float(end[name]) for name in AT_THE_END if name in end and math.isfinite(end[name])}
    return Curve(dict(params), seed, tuple(val[e] for e in epochs), tuple(minutes[e] for e in epochs), figures)


def read_curves(path: Path) -> list[Curve]:
    """All curves of a file.

    Raises:
        InputError: if there is no such file, or a line of it is no curve, naming the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise InputError(f"--simulate {path}: cannot be read ({reason}); {_MAKE}") from None
    read = _from_json if text.lstrip().startswith("{") else _from_csv
    curves = read(text, f"--simulate {path}") if text.strip() else []
    if not curves:
        raise InputError(f"--simulate {path}: holds no curve; {_MAKE}")
    return curves


def _from_json(text: str, what: str) -> list[Curve]:
    curves = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
            val, minutes = ({e: float(v) for e, v in enumerate(content[name], 1)} for name in (VAL, MINUTES))
            params = {str(name): _scalar(value) for name, value in content["params"].items()}
            end = {name: float(content[name]) for name in AT_THE_END if content.get(name) is not None}
            curves.append(make_curve(params, int(content["seed"]), val, minutes, end))
        except KeyError as error:
            raise InputError(f"{what}: line {number} has no {error}") from None
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"{what}: line {number} is no curve ({error})") from None
    return curves


def _from_csv(text: str, what: str) -> list[Curve]:
    rows = csv.DictReader(io.StringIO(text))
    names = rows.fieldnames or []
    if "seed" not in names or f"{VAL}@1" not in names:
        raise InputError(f"{what}: is neither JSON lines nor CSV with columns seed and {VAL}@1; {_MAKE}")
    curves = []
    for number, row in enumerate(rows, 2):
        by_epoch: dict[str, dict[int, float]] = {VAL: {}, MINUTES: {}}
        params: dict[str, Any] = {}
        end: dict[str, float] = {}
        try:
            for name in names:
                cell = (row[name] or "").strip()
                if not cell or name == "seed":
                    continue
                if match := _BY_EPOCH.fullmatch(name):
                    by_epoch[match[1]][int(match[2])] = float(cell)
                elif name in AT_THE_END:
                    end[name] = float(cell)
                else:
                    params[name] = _number_or_text(cell)
            curves.append(make_curve(params, int(row["seed"]), by_epoch[VAL], by_epoch[MINUTES], end))
        except (TypeError, ValueError) as error:
            raise InputError(f"{what}: line {number} is no curve ({error})") from None
    return curves


def _scalar(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"a parameter is {value!r}, neither a number nor a text")
    return value


def _number_or_text(cell: str) -> Any:
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell


def epochs_of(curves: Sequence[Curve]) -> int:
    """How many epochs most of them have."""
    lengths = [len(curve.val) for curve in curves]
    return max(sorted(set(lengths), reverse=True), key=lengths.count)
