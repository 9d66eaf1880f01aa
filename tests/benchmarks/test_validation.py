"""The comparison of validation schemes, on trainings whose answers are known, and one real training."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks import validation
from fgst.data.dataset import ArrowDataset
from tests.support.small import write_small

TEST = {"a": 50.0, "b": 60.0, "c": 55.0, "d": 80.0, "e": 70.0}


def lines(scheme: str, accuracies: dict[str, float], seeds: tuple[float, ...] = (0.0,)) -> list[dict[str, Any]]:
    """Lines of the log: each configuration's accuracy, moved by the given points for each seed."""
    key = "test/top1" if scheme == "none" else "val/top1"
    return [
        {"name": name, "method": scheme, "seed": seed, "n_train": 90, "n_val": 10 + seed, "minutes": 1.0}
        | {key: value + shift}
        for name, value in accuracies.items()
        for seed, shift in enumerate(seeds)
    ]


def analyse(*parts: list[dict[str, Any]]) -> dict[str, validation.Row]:
    return {row.scheme: row for row in validation.analyse([line for part in parts for line in part])}


def test_known_schemes() -> None:
    rows = analyse(
        lines("none", TEST, (-1.0, 1.0)),
        lines("subject", {name: value - 10 for name, value in TEST.items()}, (-2.0, 2.0)),
        lines("clip", {name: -value for name, value in TEST.items()}),
        lines("block", {"a": 51.0, "b": 58.0, "c": 59.0, "d": 70.0, "e": 72.0}),
    )
    assert list(rows) == ["subject", "subject-camera", "clip"]  # best first
    same = rows["subject"]
    assert (same.spearman.value, same.kendall.value) == pytest.approx((1, 1))
    assert (same.bias.value, same.bias.low, same.bias.high) == pytest.approx((-10, -10, -10))
    assert (same.spread.value, same.spread.high) == pytest.approx((0, 0))
    assert (same.seed_std, same.clips, same.regret) == pytest.approx((math.sqrt(8), 10.5, 0))
    assert (rows["clip"].spearman.value, rows["clip"].kendall.value) == pytest.approx((-1, -1))
    assert rows["clip"].regret == pytest.approx(30)
    assert math.isnan(rows["clip"].seed_std)
    # Two of ten pairs, b with c and d with e, are in the other order.
    other, val, test = rows["subject-camera"], [51, 58, 59, 70, 72], [50, 60, 55, 80, 70]
    assert other.kendall.value == pytest.approx((8 - 2) / 10)
    assert other.spearman.value == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert other.bias.value == pytest.approx(-1)
    assert other.spread.value == pytest.approx(np.std(np.subtract(val, test), ddof=1))
    assert other.regret == 10
    assert other.spearman.low < other.spearman.value <= other.spearman.high
    assert other.bias.low < -1 < other.bias.high


def test_intervals_are_those_of_a_bootstrap_over_configurations() -> None:
    rng = np.random.default_rng(0)
    test = {f"c{i}": float(value) for i, value in enumerate(rng.normal(70, 5, 20))}
    val = {name: value + float(rng.normal(3, 2)) for name, value in test.items()}
    [row] = validation.analyse([*lines("none", test), *lines("clip", val)])
    differences = np.array([val[name] - test[name] for name in sorted(test)])
    expected = stats.bootstrap((differences,), np.mean, method="percentile", random_state=1).confidence_interval
    assert (row.bias.low, row.bias.high) == pytest.approx((expected.low, expected.high), abs=0.15)
    assert row.spearman.low < row.spearman.value < 1


def test_schemes_are_compared_on_the_same_configurations() -> None:
    incomplete = {name: value for name, value in TEST.items() if name != "d"}
    rows = analyse(lines("none", TEST), lines("subject", TEST), lines("clip", incomplete))
    assert {row.configurations for row in rows.values()} == {4}
    assert validation.analyse(lines("subject", TEST)) == []
    assert validation.analyse([]) == []
    assert validation.analyse([*lines("none", {"a": 1.0, "b": 2.0}), *lines("clip", TEST)]) == []


def test_table() -> None:
    text = validation.table(validation.analyse([*lines("none", TEST), *lines("clip", TEST, (-1.0, 1.0))]))
    cells = [cell.strip() for cell in text.splitlines()[-1].strip("|").split("|")]
    assert cells[:5] == ["clip", "10", "1.00 (1.00 to 1.00)", "1.00 (1.00 to 1.00)", "+0.0 (+0.0 to +0.0)"]
    assert cells[6:] == ["1.4", "0.0"]


def test_trainings_are_recorded_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = write_small(tmp_path / "data")
    log = tmp_path / "log.jsonl"
    values: dict[str, Any] = {
        "data.dataset": str(dataset.path),
        "model.focal_joints": "4",
        "model.parts": "3",
        "train.repeat": "1",
    }
    values |= {"train.epochs": 1, "train.precision": "bfloat16"}
    for scheme in ("none", "subject"):
        validation.train(("base", scheme, 3, values, "tiny", str(log)))
    everything, subject = (json.loads(line) for line in log.read_text().splitlines())
    assert (everything["n_train"], everything["n_val"]) == (24, 0)
    splits = ArrowDataset(dataset.path).splits(by="subject", seed=3)
    assert (subject["n_train"], subject["n_val"]) == (len(splits.train), len(splits.val))
    assert "val/top1" in subject
    assert "val/top1" not in everything
    assert "test/top1" in everything

    # Trainings in the log are not repeated: here all of them.
    recorded = [line | {"seed": 0} for line in (everything, subject)]
    log.write_text("".join(json.dumps(line) + "\n" for line in recorded))
    settings = [f"{name}={value}" for name, value in values.items() if isinstance(value, str)]
    arguments = ["--only", "base", "--schemes", "subject", "--seeds", "1", "--epochs", "1", "--log", str(log)]
    arguments += [word for setting in settings for word in ("--set", setting)]
    monkeypatch.setattr("sys.argv", ["validation", *arguments, "--dataset", str(dataset.path)])
    monkeypatch.setattr(validation.multiprocessing, "get_context", lambda method: sys.exit("a training was repeated"))
    validation.main()
    assert "needs at least three configurations" in capsys.readouterr().out
