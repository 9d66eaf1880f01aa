"""The command ``fgst evaluate``: output as JSON and as tables, and what is stored with the run."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

from fgst.cli.evaluate import main
from fgst.data.dataset import ArrowDataset
from fgst.errors import InputError
from fgst.evaluation.ensemble import EnsembleCard, Member
from fgst.tracking.store import TrackingStore
from tests.support import small

MODALITIES = ("joint", "bone")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    torch.set_num_threads(1)
    return small.write_small(tmp_path_factory.mktemp("data") / "small")


@pytest.fixture
def store(tracking_uri: str) -> TrackingStore:
    return TrackingStore(tracking_uri)


@pytest.fixture
def runs(dataset: ArrowDataset, store: TrackingStore, tmp_path: Path) -> list[str]:
    """Run ids of two trials and of an ensemble of both."""
    experiment, run_ids = store.experiment("small x-sub"), []
    for seed, modality in enumerate(MODALITIES):
        checkpoint = small.save_untrained_network(dataset, tmp_path / modality, seed=seed, data__modality=modality)
        (checkpoint / "state.pt").unlink()
        checkpoint.rename(tmp_path / modality / "checkpoint")
        run = store.start(experiment, modality, modality, {"fgst.kind": "trial"})
        run.log_artifacts(tmp_path / modality)
        run_ids.append(run.run_id)
    members = tuple(Member(modality, run_id, 0.5) for modality, run_id in zip(MODALITIES, run_ids, strict=True))
    (tmp_path / "ensemble").mkdir()
    EnsembleCard(members, 1.5).write(tmp_path / "ensemble" / "ensemble.json")
    ensemble = store.start(experiment, "ensemble", "an ensemble", {"fgst.kind": "ensemble"})
    ensemble.log_artifacts(tmp_path / "ensemble")
    return [*run_ids, ensemble.run_id]


def test_evaluation_is_printed_and_stored(
    store: TrackingStore, runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    joint, bone, _ = runs
    main(["--run-id", joint, "--compare", bone, "--json", "--tracking-uri", store.uri])
    report = json.loads(capsys.readouterr().out)
    assert report["num_clips"] == 12
    assert report["compare"]["first_top1"] == report["top1"]
    metrics = store.run(joint).data.metrics
    assert metrics["eval/test/top1"] == pytest.approx(report["top1"], rel=1e-12)
    with store.artifacts(joint, "eval/test") as folder:
        files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    tables = {"per_class.csv", f"compare-{bone[:8]}/per_class.csv", f"compare-{bone[:8]}/per_class.png"}
    assert files == tables | {"report.json", "scores.arrow", "confusion.png", "calibration.png"}


def test_tables_name_classes_and_metrics(
    store: TrackingStore, runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--run-id", runs[2], "--compare", runs[0], "--no-log", "--tracking-uri", store.uri])
    out = capsys.readouterr().out
    assert f"ensemble {runs[2]} (joint, bone): 12 test clips of small x-sub" in out
    for text in (*small.CLASSES, "top-1", "calibration error", f"compared with {runs[0]}", "McNemar p ="):
        assert text in out
    assert not any(name.startswith("eval/") for name in store.run(runs[2]).data.metrics)


def test_tables_and_figures_are_written(
    store: TrackingStore, runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    joint, bone, _ = runs
    arguments = ["--run-id", joint, "--compare", bone, "--no-log", "--tracking-uri", store.uri]
    files = ["--latex", str(tmp_path / "t.tex"), "--csv", str(tmp_path / "t.csv"), "--out", str(tmp_path / "out")]
    main([*arguments, *files, "--format", "pdf"])
    assert "top-1" in capsys.readouterr().out
    latex = (tmp_path / "t.tex").read_text()
    assert latex.count(r"\begin{table}") == 5
    assert "12 test clips of small x-sub" in latex
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [float(row["top1"]) for row in rows] == [row["top1"] for row in report["per_class"]]
    confusion = list(csv.reader((tmp_path / "t-confusion.csv").open()))
    assert [[int(count) for count in row[1:]] for row in confusion[1:]] == report["confusion"]
    compared = list(csv.DictReader((tmp_path / "t-comparison.csv").open()))
    assert {row["class"] for row in compared} == set(small.CLASSES)
    assert all(
        float(row["interval_low"]) <= float(row["difference"]) <= float(row["interval_high"]) for row in compared
    )
    figures = [tmp_path / "out" / "confusion.pdf", tmp_path / "out" / f"compare-{bone[:8]}" / "per_class.pdf"]
    assert all(path.read_bytes().startswith(b"%PDF") for path in figures)


def test_sweep_is_rejected_with_suggested_trial(store: TrackingStore) -> None:
    tags = {"fgst.kind": "sweep", "fgst.best_run": "a" * 32}
    sweep = store.start(store.experiment("small x-sub"), "s", "a sweep", tags)
    with pytest.raises(InputError, match=f"is a sweep, not a training; its best trial is --run-id {'a' * 32}"):
        main(["--run-id", sweep.run_id, "--tracking-uri", store.uri])
