"""The sweep over modalities that follows another sweep: missing trainings, fusion, refit and the champion."""

from __future__ import annotations

import contextlib
import csv
import io
import re
import runpy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow.entities import Run

from fgst.cli.sweep import sweep
from fgst.errors import InputError
from fgst.evaluation.ensemble import EnsembleCard, fit_weights, fuse
from fgst.evaluation.metrics import Scores
from fgst.model.card import ModelCard
from fgst.sweep.definition import SweepDefinition
from fgst.tracking import registry
from fgst.tracking.evaluation import evaluate
from fgst.tracking.store import TrackingStore
from fgst.tracking.tags import Tags
from tests.support import small
from tests.support.workspace import ROOT, TINY

pytestmark = pytest.mark.long

FOCAL_K, MODALITIES = (
    runpy.run_path(str(ROOT / "sweeps" / f"{name}.py"))["definition"] for name in ("focal_k", "modalities")
)
NAMES = ["joint", "bone", "joint_motion", "bone_motion"]
FILES = ("--latex", "tables.tex", "--csv", "tables.csv")


@dataclass
class CompletedSweeps:
    """A sweep over K, and the sweep over modalities that follows it, with its refit.

    Attributes:
        out, err: what the sweep over modalities printed on standard output and standard error.
        focal_k, modalities, refit: the sweeps' runs.
    """

    store: TrackingStore
    out: str
    err: str
    focal_k: Run
    modalities: Run
    refit: Run

    def ensemble(self, sweep: Run) -> Run:
        """The run of a sweep's ensemble."""
        return self.store.run(sweep.data.tags["fgst.ensemble"])


def run_sweep(definition: SweepDefinition, *arguments: str) -> tuple[str, str]:
    """Run a sweep's command line in this process; return what it printed on standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        sweep(definition, argv=["--local", "--cpus-per-trial", "1", *arguments])
    return out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def completed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CompletedSweeps]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sweeps")
    small.write_small(folder / "data", small.motion_clips(72))
    store = TrackingStore(f"sqlite:///{folder}/mlflow.db")
    with contextlib.chdir(folder):
        run_sweep(FOCAL_K, "--dataset", "data", "--preset", "tiny", "--values", "2,4", "--epochs", "2", *TINY)
        [focal_k] = find_sweeps(store)
        out, err = run_sweep(MODALITIES, "--sweep", focal_k.info.run_id, "--seeds", "2", "--refit", *FILES)
        refit, modalities, _ = find_sweeps(store)
        yield CompletedSweeps(store, out, err, store.run(focal_k.info.run_id), modalities, refit)


def find_sweeps(store: TrackingStore) -> list[Run]:
    """The runs of all sweeps, the newest first."""
    return list(store.client.search_runs(["1"], f"tags.`{Tags.KIND}` = 'sweep'", order_by=["start_time DESC"]))


def test_only_missing_modalities_are_trained(completed: CompletedSweeps) -> None:
    best = completed.store.run(completed.focal_k.data.tags["fgst.best_run"])
    assert completed.modalities.data.tags["fgst.trained_before." + best.data.tags[Tags.TRIAL_ID]] == best.info.run_id
    names = {child.info.run_name for child in completed.store.children(completed.modalities.info.run_id)}
    assert names == {f"modality={name} s{seed}" for name in NAMES for seed in (0, 1)} - {"modality=joint s0"}
    for child in completed.store.children(completed.modalities.info.run_id):
        for name, value in best.data.params.items():  # all other settings are those of the best trial
            if name not in ("data.modality", "train.seed"):
                assert child.data.params[name] == value


def test_ensemble_fuses_its_members_with_weights_fitted_on_validation(completed: CompletedSweeps) -> None:
    run, store = completed.ensemble(completed.modalities), completed.store
    assert run.data.tags["mlflow.parentRunId"] == completed.modalities.info.run_id
    assert run.info.status == "FINISHED"
    with store.artifacts(run.info.run_id, "ensemble.json") as file:
        card = EnsembleCard.read(file)
    assert [member.modality for member in card.members] == NAMES
    assert {m.modality: m.run_id for m in card.members} == {name: run.data.tags[Tags.MEMBER + name] for name in NAMES}
    # The members have the first seed; the weights are fitted on the validation scores of both seeds.
    assert {store.run(m.run_id).data.tags["fgst.seed"] for m in card.members} == {"0"}
    by_seed: dict[str, dict[str, Scores]] = {"0": {}, "1": {}}
    members = [*store.children(completed.modalities.info.run_id), store.run(card.members[0].run_id)]
    for child in members:
        by_seed[child.data.tags["fgst.seed"]][child.data.params["data.modality"]] = store.scores(
            child.info.run_id, "val"
        )
    fitted, sharpness = fit_weights([{name: scores[name] for name in NAMES} for scores in by_seed.values()])
    assert card.sharpness == pytest.approx(sharpness)
    assert card.weights == pytest.approx(fitted)
    assert {name: run.data.metrics[f"weight/{name}"] for name in NAMES} == pytest.approx(fitted)
    for split in ("val", "test"):
        fused = fuse({m.modality: store.scores(m.run_id, split) for m in card.members}, card.weights, card.sharpness)
        logged = store.scores(run.info.run_id, split)
        np.testing.assert_array_equal(logged.scores, fused.scores)
        assert logged.split == split
        assert run.data.metrics[f"{split}/top1"] == fused.top(1)
    with store.artifacts(run.info.run_id, "") as folder:
        table = (folder / "table.csv").read_text().splitlines()
        assert len(table) == 1 + 15 + 2  # a header, each subset, and all modalities with fixed and with fitted weights
        assert (folder / "figures" / "subsets.png").stat().st_size > 5000
        assert (folder / "figures" / "confusion.png").is_file()


def test_refit_trains_on_all_training_clips_and_reuses_the_weights(completed: CompletedSweeps) -> None:
    run, fitted = completed.ensemble(completed.refit), completed.ensemble(completed.modalities)
    assert completed.refit.data.tags["fgst.weights_from"] == fitted.info.run_id
    assert run.data.tags["fgst.weights_from"] == fitted.info.run_id
    for name in NAMES:
        assert run.data.metrics[f"weight/{name}"] == fitted.data.metrics[f"weight/{name}"]
        member = completed.store.run(run.data.tags[Tags.MEMBER + name])
        assert member.data.params["data.protocol"] == "paper"
        assert "val/top1" not in member.data.metrics
    assert "val/top1" not in run.data.metrics
    assert completed.out.splitlines()[-1] == f"python -m fgst.evaluate --run-id {run.info.run_id}"


def test_printed_table_lists_all_weightings(completed: CompletedSweeps) -> None:
    assert "The ensemble, trained on all training clips" in completed.out
    assert re.search(r"J \+ B \+ JM \+ BM +│ fixed 0.6/0.6/0.4/0.4", completed.out)
    assert len(re.findall(r"J \+ B \+ JM \+ BM +│ fitted 0", completed.out)) == 2


@pytest.mark.parametrize("suffix", ["", "-refit"])
def test_tables_are_written_to_files(completed: CompletedSweeps, suffix: str) -> None:
    """The current folder is that of the sweeps."""
    labels = re.findall(r"\\label\{tab:([a-z]+)\}", Path(f"tables{suffix}.tex").read_text())
    assert labels == ["results", "ensemble"]
    results = list(csv.DictReader(Path(f"tables{suffix}.csv").read_text().splitlines()))
    assert [row["modality"] for row in results] == NAMES
    assert "small x-sub, protocol" in Path(f"tables{suffix}.tex").read_text()
    assert {row["protocol"] for row in results} == {"paper" if suffix else "validation"}
    ensemble = list(csv.DictReader(Path(f"tables{suffix}-ensemble.csv").read_text().splitlines()))
    run = completed.ensemble(completed.refit if suffix else completed.modalities)
    with completed.store.artifacts(run.info.run_id, "table.csv") as file:
        assert list(csv.DictReader(file.read_text().splitlines())) == ensemble


def test_published_results_of_another_data_set_have_a_table_of_their_own(completed: CompletedSweeps) -> None:
    with completed.store.artifacts(completed.focal_k.info.run_id, "") as folder:
        published = list(csv.DictReader((folder / "table-published.csv").read_text().splitlines()))
        own = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
        latex = (folder / "table.tex").read_text()
    assert {row["data_set"] for row in published} == {"NTU-60 X-Sub"}
    assert ("15", "89.5") in {(row["K"], row["top1"]) for row in published}
    assert {(row["data_set"], row["paper_top1"]) for row in own} == {("small x-sub", "")}
    assert "not comparable with this sweep" in latex
    description = completed.focal_k.data.tags["mlflow.note.content"]
    assert "| Table 2 | NTU-60 X-Sub | paper | joint | paper | 80 | not stated |" in description
    assert completed.focal_k.data.params["passes"] == "2"
    assert completed.focal_k.data.tags["fgst.dataset"] == "small"


@pytest.mark.parametrize("name", ["modalities", "refit"])
def test_evaluate_reproduces_the_logged_metrics(completed: CompletedSweeps, name: str) -> None:
    run = completed.ensemble(getattr(completed, name))
    report = evaluate(run.info.run_id, tracking_uri=completed.store.uri, log=True)
    assert report["top1"] == report["logged_top1"] == run.data.metrics["test/top1"]
    assert report["kind"] == "ensemble"
    assert report["modalities"] == NAMES
    metrics = completed.store.run(run.info.run_id).data.metrics
    assert metrics["eval/test/top1"] == report["top1"]
    assert metrics["eval/test/ece"] == report["ece"]
    with completed.store.artifacts(run.info.run_id, "eval/test") as folder:
        assert {path.name for path in folder.iterdir()} >= {
            "report.json", "scores.arrow", "confusion.png", "calibration.png", "per_class.csv"
        }  # fmt: skip
    if name == "modalities":
        val = evaluate(run.info.run_id, split="val", tracking_uri=completed.store.uri)
        assert val["top1"] == val["logged_top1"]
    else:
        with pytest.raises(InputError, match="protocol paper, which holds out no validation"):
            evaluate(run.info.run_id, split="val", tracking_uri=completed.store.uri)


def test_evaluate_compares_two_ensembles(completed: CompletedSweeps) -> None:
    first, second = (completed.ensemble(run).info.run_id for run in (completed.modalities, completed.refit))
    report = evaluate(first, compare=second, tracking_uri=completed.store.uri, log=True)
    comparison = report["compare"]
    assert comparison["difference"] == pytest.approx(report["top1"] - comparison["second_top1"])
    with completed.store.artifacts(first, f"eval/test/compare-{second[:8]}") as folder:
        assert (folder / "per_class.png").is_file()


def test_champion_is_replaced_only_by_a_better_ensemble(completed: CompletedSweeps) -> None:
    store, name = completed.store, registry.model_name("small x-sub")
    champion = registry.champion(store, name)
    assert champion.run_id == completed.ensemble(completed.refit).info.run_id
    champion_top1 = completed.ensemble(completed.modalities).data.metrics["val/top1"]
    assert float(champion.tags[Tags.VAL_TOP1]) == champion_top1
    assert f"registered: {name} version 1, alias champion" in completed.err
    assert registry.resolve_model(store, "champion") == registry.resolve_model(store, f"{name}/1") == champion.run_id

    other, split = completed.ensemble(completed.modalities).info.run_id, champion.tags[Tags.VALIDATION_SPLIT]
    # An equally good ensemble does not replace the champion.
    assert "has validation top-1" in registry.promote_if_better(store, other, "small x-sub", champion_top1, split)
    assert "other validation clips" in registry.promote_if_better(store, other, "small x-sub", 100.0, f"not {split}")
    assert registry.champion(store, name).version == champion.version
    assert "already" in registry.promote_if_better(store, champion.run_id, "small x-sub", 100.0, split)
    assert "version 2" in registry.promote_if_better(store, other, "small x-sub", champion_top1 + 0.1, split)
    assert registry.resolve_model(store, f"{name}@champion") == other
    assert registry.resolve_model(store, f"{name}/1") == champion.run_id
    for model in ("nothing", f"{name}/7", f"{name}@king", "../etc@champion", "a/b/c"):
        with pytest.raises(InputError, match="--model"):
            registry.resolve_model(store, model)


def test_resume_of_a_completed_sweep_adds_no_runs(completed: CompletedSweeps) -> None:
    with contextlib.chdir(Path(completed.store.uri.removeprefix("sqlite:///")).parent):
        out, _ = run_sweep(MODALITIES, "--resume", completed.modalities.info.run_id)
    assert out.splitlines()[-1] == completed.out.splitlines()[-1]
    assert len(find_sweeps(completed.store)) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from-run", "SWEEP"], "is not a training"),
        (["--sweep", "TRIAL"], "is not a sweep"),
        (["--sweep", "SWEEP", "--preset", "tiny"], "use one of them"),
        (["--sweep", "SWEEP", "--from-run", "TRIAL"], "use one of them"),
        (["--from-run", "TRIAL", "--refit", "--protocol", "paper"], "--refit uses fusion weights"),
        (["--from-run", "0" * 32], "there is no run"),
        (["--from-run", "TRIAL", "--set", "model.depth=3"], "model.depth"),
    ],
)
def test_invalid_input_is_rejected(completed: CompletedSweeps, arguments: list[str], message: str) -> None:
    ids = {"SWEEP": completed.focal_k.info.run_id, "TRIAL": completed.focal_k.data.tags["fgst.best_run"]}
    with pytest.raises(InputError, match=message):
        run_sweep(MODALITIES, *(ids.get(a, a) for a in arguments), "--tracking-uri", completed.store.uri)


def test_evaluate_on_another_data_set_is_not_logged(completed: CompletedSweeps, tmp_path: Path) -> None:
    trial = completed.focal_k.data.tags["fgst.best_run"]
    small.write_small(tmp_path / "other", small.motion_clips(40, seed=3))
    with completed.store.artifacts(trial, "checkpoint/config.json") as file:
        card = ModelCard.read(file)
    assert card == completed.store.model_card(trial)
    report = evaluate(trial, str(tmp_path / "other"), tracking_uri=completed.store.uri, log=True)
    assert not report["digest_matches"]
    assert "eval/test/top1" not in completed.store.run(trial).data.metrics  # it was not the run's data set
    small.write_small(tmp_path / "classes", small.motion_clips(40), classes=("a", "b", "c"))
    with pytest.raises(InputError, match="skeleton or the classes differ"):
        evaluate(trial, str(tmp_path / "classes"), tracking_uri=completed.store.uri)
