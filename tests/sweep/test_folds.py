"""Sweeps over folds: each seed holds out another group, and the tables pool the validation clips of all folds."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import runpy
import statistics
from pathlib import Path

import pytest
from scipy import stats

from fgst.cli.sweep import sweep
from fgst.data.dataset import ArrowDataset
from fgst.data.splits import Benchmark
from fgst.errors import InputError
from fgst.sweep.definition import SweepDefinition
from fgst.sweep.report.tables import print_table, to_csv, to_markdown
from fgst.sweep.results import TrialResult, best_result, build_rows, paired
from fgst.sweep.spec import EarlyStopping, SweepSpec, build_spec
from fgst.sweep.status import TrialStatus
from fgst.tracking.queries import best_runs
from fgst.tracking.store import TrackingStore
from fgst.tracking.tags import Tags
from tests.support import small
from tests.support.definitions import FOCAL_K, JOINT, build_sweep
from tests.support.workspace import ROOT, TINY, Workspace

REAL_FOCAL_K: SweepDefinition = runpy.run_path(str(ROOT / "sweeps" / "focal_k.py"))["definition"]
LOCAL = [*("--preset", "tiny", "--epochs", "1", "--local", "--cpus-per-trial", "1"), *TINY]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    """Subjects 1 to 4 train; they have 12, 6, 3 and 3 clips."""
    clips = [clip for clip in small.motion_clips(72) if not (clip.subject == 2 and int(clip.clip_id[-3:]) >= 36)]
    clips = [clip for clip in clips if not (clip.subject in (3, 4) and int(clip.clip_id[-3:]) >= 18)]
    return small.write_small(tmp_path_factory.mktemp("data") / "small", clips)


def make_spec(dataset: ArrowDataset, seeds: int = 4, **settings: object) -> SweepSpec:
    config = small.small_config(dataset, data__folds=4, **settings)
    return build_spec(FOCAL_K, config, dataset, values=[2, 4], seeds=seeds)


def make_results(spec: SweepSpec, values: list[float]) -> list[TrialResult]:
    """Results of the trials of a grid in order, with these validation accuracies."""
    return [
        TrialResult(trial.trial_id, trial.label, trial.config.train.seed, dict(trial.params), f"run {number}",
                    TrialStatus.FINISHED, {"val/top1": value, "test/top1": value})
        for number, (trial, value) in enumerate(zip(spec.trials, values, strict=True))
    ]  # fmt: skip


def test_each_seed_holds_out_another_fold_in_every_row(dataset: ArrowDataset) -> None:
    spec = make_spec(dataset)
    folds = [(t.label, t.config.train.seed, t.config.data.fold) for t in spec.trials]
    assert folds == [(label, seed, seed) for label in ("K=2", "K=4") for seed in range(4)]
    rows = [dataset.splits_for(trial.config.data).val for trial in spec.trials[:4]]
    training = dataset.splits(validation=0).train
    assert sorted(row for fold in rows for row in fold.tolist()) == training.tolist()
    assert spec.fold_clips == tuple(map(len, rows))
    assert sorted(spec.fold_clips) == [3, 3, 6, 12]
    assert spec.held_out == "4 folds by subject, another one for each seed: 3 to 12 clips each"
    assert SweepSpec.from_json(spec.to_json()) == spec


def test_folds_start_with_that_of_the_settings_and_repeat(dataset: ArrowDataset) -> None:
    spec = make_spec(dataset, seeds=8, data__fold=3, train__seed=10)
    assert [trial.config.data.fold for trial in spec.trials[:8]] == [3, 0, 1, 2, 3, 0, 1, 2]
    assert [spec.fold_of(trial.config.train.seed) for trial in spec.trials[:8]] == [3, 0, 1, 2, 3, 0, 1, 2]
    assert len({trial.trial_id for trial in spec.trials}) == 16


def test_searches_also_vary_the_fold_by_seed(dataset: ArrowDataset) -> None:
    spec, factory = build_sweep(JOINT, dataset, small.small_config(dataset, data__folds=4), seeds=4)
    params = dict(spec.initial_points[0])
    assert [factory.make(params, seed).config.data.fold for seed in range(5)] == [0, 1, 2, 3, 0]


def test_single_fold(dataset: ArrowDataset) -> None:
    spec = make_spec(dataset, seeds=1, data__fold=2)
    assert [trial.config.data.fold for trial in spec.trials] == [2, 2]
    assert re.fullmatch(r"fold 2 of 4, counted from 0: 1 of 4 subjects \(\d\): \d+ clips", spec.held_out)
    assert not spec.varies_folds


def test_table_pools_the_clips_of_all_folds(dataset: ArrowDataset, capsys: pytest.CaptureFixture[str]) -> None:
    spec = make_spec(dataset)
    clips, correct = spec.fold_clips, [[1, 2, 3, 3], [2, 3, 2, 3]]
    values = [100 * k / n for row in correct for k, n in zip(row, clips, strict=True)]
    rows = build_rows(spec, make_results(spec, values))
    for row, counts, accuracies in zip(rows, correct, (values[:4], values[4:]), strict=True):
        assert row.val is not None
        assert row.val == pytest.approx((100 * sum(counts) / sum(clips), statistics.stdev(accuracies)))
        assert row.test == pytest.approx((statistics.fmean(accuracies), statistics.stdev(accuracies)))
    difference = rows[1].val_difference
    assert difference is not None
    assert difference.mean == pytest.approx(100 * (sum(correct[1]) - sum(correct[0])) / sum(clips))
    assert difference.pairs == 4

    print_table(spec, rows, "K=2", "K=2")
    shown = capsys.readouterr().out
    assert "validation: 4 folds by subject, another one for each seed: 3 to 12 clips each" in " ".join(shown.split())
    assert "same folds" in " ".join(shown.split())
    assert "mean ± standard deviation over 4 folds" in to_markdown(spec, rows, "K=2")
    [first, _] = csv.DictReader(io.StringIO(to_csv(spec, rows)))
    assert float(first["val_top1_mean"]) == pytest.approx(100 * sum(correct[0]) / sum(clips))


def test_differences_of_equal_folds_have_students_interval(dataset: ArrowDataset) -> None:
    """Weights that are all equal give SciPy's interval."""
    spec = dataclasses.replace(make_spec(dataset), fold_clips=(200,) * 4)
    results = make_results(spec, [70, 75, 90, 80, 60, 78, 85, 83])
    interval = stats.ttest_rel((70, 75, 90, 80), (60, 78, 85, 83)).confidence_interval(0.95)
    difference = paired(results[:4], results[4:], "val/top1", spec)
    assert difference is not None
    assert difference.mean + difference.half_width == pytest.approx(interval.high)


def test_best_trial_is_the_first_fold_of_the_best_configuration(dataset: ArrowDataset) -> None:
    """Folds are not compared with each other: an easy fold is no better a trial than a difficult one."""
    spec = make_spec(dataset)
    results = make_results(spec, [50, 60, 70, 80, 55, 66, 77, 88])
    best = best_result(spec, results)
    assert best is not None
    assert (best.label, best.seed) == ("K=4", 0)
    # A configuration of which only an easy fold has finished is not better than one with all folds.
    best = best_result(spec, [*results[:4], results[7]])
    assert best is not None
    assert (best.label, best.seed) == ("K=2", 0)


def test_early_stopping_with_folds_is_rejected(dataset: ArrowDataset) -> None:
    config = small.small_config(dataset, data__folds=4)
    with pytest.raises(InputError, match="--early-stop compares trials on the same validation clips, and with folds"):
        build_spec(FOCAL_K, config, dataset, seeds=4, early_stop=EarlyStopping(1, 3))
    assert build_spec(FOCAL_K, config, dataset, early_stop=EarlyStopping(1, 3)).early_stop is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--folds", "5"], "data.folds is 5, but benchmark x-sub has only 4 training subjects; use fewer folds"),
        (["--folds", "1"], "data.folds is 1; it must be 0"),
        (["--folds", "4", "--seeds", "3"], "--seeds 3: each seed holds out one of the 4 folds; use 4 seeds"),
        (["--folds", "4", "--protocol", "paper"], "--folds holds out validation clips, and --protocol paper has none"),
        (["--benchmark", "one"], "are a single recording of each class.*--protocol paper"),
        (["--set", "data.validation_by=setup", "--benchmark", "one"], "come from one setup.*validation_by=clip"),
    ],
)
def test_what_cannot_be_held_out_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    one_clip_per_class = Benchmark("one", "replication", (9,))
    clips = [
        *small.motion_clips(),
        *(
            dataclasses.replace(c, clip_id=f"other {c.clip_id}", replication=9, setup=1)
            for c in small.motion_clips(3, seed=5)
        ),
    ]
    small.write_small(tmp_path / "data", clips, benchmarks=[*small.BENCHMARKS, one_clip_per_class])
    with pytest.raises(InputError, match=message):
        sweep(REAL_FOCAL_K, argv=["--dataset", "data", *LOCAL, *options])
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.long
def test_sweep_over_folds_is_trained_resumed_and_continued(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace.folder)
    options = ["--dataset", "data", *LOCAL, "--values", "2,4", "--folds", "2"]
    assert sweep(REAL_FOCAL_K, argv=[*options, "--max-trials", "1"]) == 0
    [run] = workspace.sweeps()
    resume = ["--resume", run.info.run_id, "--local"]
    with pytest.raises(InputError, match="remove --folds from the command"):
        sweep(REAL_FOCAL_K, argv=[*resume, "--folds", "4"])
    capsys.readouterr()
    assert sweep(REAL_FOCAL_K, argv=[*resume, "--folds", "2"]) == 0
    output = capsys.readouterr()
    assert "validation: 2 folds by subject, another one for each seed: " in output.err
    children = workspace.store.children(run.info.run_id)
    folds = sorted((c.data.params["model.focal_joints"], c.data.params["data.fold"]) for c in children)
    assert folds == [("2", "0"), ("2", "1"), ("4", "0"), ("4", "1")]
    assert {(c.data.params["data.folds"], c.data.params["data.validation_by"]) for c in children} == {("2", "subject")}

    # Every training clip was scored once for each value.
    data = ArrowDataset(workspace.folder / "data")
    training = {data.clip_ids[row] for row in data.splits(validation=0).train}
    means = {}
    for value in ("2", "4"):
        same = [child for child in children if child.data.params["model.focal_joints"] == value]
        scores = [workspace.store.scores(child.info.run_id, "val") for child in same]
        scored = [clip for part in scores for clip in part.clip_ids.tolist()]
        assert len(scored) == len(training)
        assert set(scored) == training
        with workspace.store.artifacts(run.info.run_id, "table.csv") as file:
            [row] = [row for row in csv.DictReader(file.read_text().splitlines()) if row["K"] == value]
        pooled = sum(part.top(1) * part.num_clips for part in scores) / len(scored)
        assert float(row["val_top1_mean"]) == pytest.approx(pooled)
        means[value] = pooled
    finished = workspace.store.run(run.info.run_id)
    assert finished.data.metrics["val/top1"] == pytest.approx(max(means.values()))

    # Runs of different folds are listed apart.
    groups = best_runs(workspace.store, None, 5)["groups"]
    assert [group["validation"].split(",")[0] for group in groups] == [
        "fold 0 of 2 by subject",
        "fold 1 of 2 by subject",
    ]

    # A sweep that starts from the best trial covers the folds too.
    best = workspace.store.run(run.info.run_id).data.tags[Tags.BEST_RUN]
    assert workspace.store.run(best).data.params["data.fold"] == "0"
    assert sweep(REAL_FOCAL_K, argv=["--sweep", run.info.run_id, "--values", "2,4", "--local"]) == 0
    newest = max(workspace.sweeps(), key=lambda sweep: sweep.info.start_time)
    assert workspace.store.children(newest.info.run_id) == []  # all are reused
    assert sum(tag.startswith(Tags.REUSED_TRIAL) for tag in newest.data.tags) == 4


@pytest.mark.long
def test_members_of_an_ensemble_share_their_fold(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace.folder)
    modalities: SweepDefinition = runpy.run_path(str(ROOT / "sweeps" / "modalities.py"))["definition"]
    options = [
        "--dataset",
        "data",
        *LOCAL,
        "--values",
        "joint,bone",
        "--folds",
        "2",
        "--set",
        "model.focal_joints=4",
        "--refit",
    ]
    assert sweep(modalities, argv=options) == 0
    store: TrackingStore = workspace.store
    refit, run = workspace.sweeps()
    ensemble = store.run(run.data.tags[Tags.ENSEMBLE])
    members = [store.run(run_id) for tag, run_id in ensemble.data.tags.items() if tag.startswith(Tags.MEMBER)]
    assert {member.data.params["data.fold"] for member in members} == {"0"}
    children = store.children(run.info.run_id)
    pairs = sorted(
        (c.data.params["data.modality"], c.data.tags[Tags.SEED], c.data.params["data.fold"])
        for c in children
        if c.data.tags[Tags.KIND] == "trial"
    )
    assert pairs == [(name, seed, seed) for name in ("bone", "joint") for seed in ("0", "1")]
    [version] = [store.client.get_model_version(m.name, "1") for m in store.client.search_registered_models()]
    assert version.run_id == refit.data.tags[Tags.ENSEMBLE]
    assert version.tags[Tags.VALIDATION_SPLIT].endswith(" x-sub 0.2 0 fold 0 of 2")
    spec = json.loads(Path(store.client.download_artifacts(run.info.run_id, "sweep.json")).read_text())
    assert len(spec["fold_clips"]) == 2
