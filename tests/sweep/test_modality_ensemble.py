"""From a sweep to its champion: the modalities trained that are missing, fused, trained again on everything."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
from collections.abc import Iterator
from dataclasses import dataclass, replace
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

FOCAL_K, MODALITIES = (
    runpy.run_path(str(ROOT / "sweeps" / f"{name}.py"))["definition"] for name in ("focal_k", "modalities")
)
NAMES = ["joint", "bone", "joint_motion", "bone_motion"]


@dataclass
class Story:
    """A K sweep, and the sweep over modalities that follows it, with what they printed."""

    store: TrackingStore
    out: str
    err: str
    first: Run
    second: Run
    third: Run

    def ensemble(self, sweep: Run) -> Run:
        return self.store.run(sweep.data.tags["fgst.ensemble"])


def ask(question: SweepDefinition, *arguments: str) -> tuple[str, str]:
    """Run a script's command line in this process; what it printed on stdout and on stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        sweep(question, argv=["--local", "--cpus-per-trial", "1", *arguments])
    return out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("story")
    small.write_small(folder / "data", small.motion_clips(72))
    store = TrackingStore(f"sqlite:///{folder}/mlflow.db")
    with contextlib.chdir(folder):
        ask(FOCAL_K, "--dataset", "data", "--preset", "tiny", "--values", "2,4", "--epochs", "3", *TINY)
        [first] = sweeps(store)
        out, err = ask(MODALITIES, "--sweep", first.info.run_id, "--seeds", "2", "--refit")
        third, second, _ = sweeps(store)
        yield Story(store, out, err, store.run(first.info.run_id), second, third)


def sweeps(store: TrackingStore) -> list[Run]:
    """The newest first."""
    return list(store.client.search_runs(["1"], f"tags.`{Tags.KIND}` = 'sweep'", order_by=["start_time DESC"]))


def test_only_what_is_missing_is_trained(story: Story) -> None:
    best = story.store.run(story.first.data.tags["fgst.best_run"])
    assert story.second.data.tags["fgst.trained_before." + best.data.tags[Tags.TRIAL_ID]] == best.info.run_id
    names = {child.info.run_name for child in story.store.children(story.second.info.run_id)}
    assert names == {f"modality={name} s{seed}" for name in NAMES for seed in (0, 1)} - {"modality=joint s0"}
    for child in story.store.children(story.second.info.run_id):
        for name, value in best.data.params.items():  # the best trial's settings, but for these two
            if name not in ("data.modality", "train.seed"):
                assert child.data.params[name] == value


def test_ensemble_is_its_members_fused_by_weights_of_validation(story: Story) -> None:
    run, store = story.ensemble(story.second), story.store
    assert run.data.tags["mlflow.parentRunId"] == story.second.info.run_id
    assert run.info.status == "FINISHED"
    with store.artifacts(run.info.run_id, "ensemble.json") as file:
        card = EnsembleCard.read(file)
    assert [member.modality for member in card.members] == NAMES
    assert {m.modality: m.run_id for m in card.members} == {name: run.data.tags[Tags.MEMBER + name] for name in NAMES}
    # Of the first seed; the weights from the validation clips of both.
    assert {store.run(m.run_id).data.tags["fgst.seed"] for m in card.members} == {"0"}
    by_seed: dict[str, dict[str, Scores]] = {"0": {}, "1": {}}
    members = [*store.children(story.second.info.run_id), store.run(card.members[0].run_id)]
    for child in members:
        by_seed[child.data.tags["fgst.seed"]][child.data.params["data.modality"]] = store.scores(
            child.info.run_id, "val"
        )
    fitted, sharpness = fit_weights([{name: scores[name] for name in NAMES} for scores in by_seed.values()])
    assert card.sharpness == pytest.approx(sharpness)
    assert card.weights == pytest.approx(fitted)
    assert {name: run.data.metrics[f"weight/{name}"] for name in NAMES} == pytest.approx(fitted)
    for split in ("val", "test"):
        again = fuse({m.modality: store.scores(m.run_id, split) for m in card.members}, card.weights, card.sharpness)
        kept = store.scores(run.info.run_id, split)
        np.testing.assert_array_equal(kept.scores, again.scores)
        assert kept.split == split
        assert run.data.metrics[f"{split}/top1"] == again.top(1)
    with store.artifacts(run.info.run_id, "") as folder:
        table = (folder / "table.csv").read_text().splitlines()
        assert len(table) == 1 + 15 + 2  # every subset, the fixed weights, the fitted ones
        assert (folder / "figures" / "subsets.png").stat().st_size > 5000
        assert (folder / "figures" / "confusion.png").is_file()


def test_refit_trains_on_everything_and_keeps_the_weights(story: Story) -> None:
    run, before = story.ensemble(story.third), story.ensemble(story.second)
    assert story.third.data.tags["fgst.weights_from"] == before.info.run_id
    assert run.data.tags["fgst.weights_from"] == before.info.run_id
    for name in NAMES:
        assert run.data.metrics[f"weight/{name}"] == before.data.metrics[f"weight/{name}"]
        member = story.store.run(run.data.tags[Tags.MEMBER + name])
        assert member.data.params["data.protocol"] == "paper"
        assert "val/top1" not in member.data.metrics
    assert "val/top1" not in run.data.metrics
    assert story.out.splitlines()[-1] == f"python -m fgst.evaluate --run-id {run.info.run_id}"


def test_table_on_the_screen_has_all_weightings(story: Story) -> None:
    assert "The ensemble, trained on all training clips" in story.out
    assert re.search(r"J \+ B \+ JM \+ BM +│ fixed 0.6/0.6/0.4/0.4", story.out)
    assert len(re.findall(r"J \+ B \+ JM \+ BM +│ fitted 0", story.out)) == 2


@pytest.mark.parametrize("which", ["second", "third"])
def test_evaluate_repeats_what_was_logged(story: Story, which: str) -> None:
    run = story.ensemble(getattr(story, which))
    report = evaluate(run.info.run_id, tracking_uri=story.store.uri, log=True)
    assert report["top1"] == report["logged_top1"] == run.data.metrics["test/top1"]
    assert report["kind"] == "ensemble"
    assert report["modalities"] == NAMES
    metrics = story.store.run(run.info.run_id).data.metrics
    assert metrics["eval/test/top1"] == report["top1"]
    assert metrics["eval/test/ece"] == report["ece"]
    with story.store.artifacts(run.info.run_id, "eval/test") as folder:
        assert {path.name for path in folder.iterdir()} >= {
            "report.json", "scores.arrow", "confusion.png", "calibration.png", "per_class.csv"
        }  # fmt: skip
    if which == "second":
        val = evaluate(run.info.run_id, split="val", tracking_uri=story.store.uri)
        assert val["top1"] == val["logged_top1"]
    else:
        with pytest.raises(InputError, match="protocol paper, which holds out no validation"):
            evaluate(run.info.run_id, split="val", tracking_uri=story.store.uri)


def test_networks_are_compared_clip_by_clip(story: Story) -> None:
    first, second = (story.ensemble(run).info.run_id for run in (story.second, story.third))
    report = evaluate(first, compare=second, tracking_uri=story.store.uri, log=True)
    found = report["compare"]
    assert found["difference"] == pytest.approx(report["top1"] - found["second_top1"])
    with story.store.artifacts(first, f"eval/test/compare-{second[:8]}") as folder:
        assert (folder / "per_class.png").is_file()


def test_champion_is_the_last_one_and_stays_until_it_is_beaten(story: Story) -> None:
    store, name = story.store, registry.model_name("small x-sub")
    champion = registry.champion(store, name)
    assert champion.run_id == story.ensemble(story.third).info.run_id
    reached = story.ensemble(story.second).data.metrics["val/top1"]
    assert float(champion.tags[Tags.VAL_TOP1]) == reached
    assert f"registered: {name} version 1, alias champion" in story.err
    assert registry.resolve_model(store, "champion") == registry.resolve_model(store, f"{name}/1") == champion.run_id

    other, split = story.ensemble(story.second).info.run_id, champion.tags[Tags.VALIDATION_SPLIT]
    assert "has validation top-1" in registry.promote_if_better(
        store, other, "small x-sub", reached, split
    )  # as good is not better
    assert "other validation clips" in registry.promote_if_better(store, other, "small x-sub", 100.0, split + " else")
    assert registry.champion(store, name).version == champion.version
    assert "already" in registry.promote_if_better(store, champion.run_id, "small x-sub", 100.0, split)
    assert "version 2" in registry.promote_if_better(store, other, "small x-sub", reached + 0.1, split)
    assert registry.resolve_model(store, f"{name}@champion") == other
    assert registry.resolve_model(store, f"{name}/1") == champion.run_id
    for wrong in ("nothing", f"{name}/7", f"{name}@king", "../etc@champion", "a/b/c"):
        with pytest.raises(InputError, match="--model"):
            registry.resolve_model(store, wrong)


def test_a_resumed_sweep_ends_with_the_same_runs(story: Story) -> None:
    with contextlib.chdir(Path(story.store.uri.removeprefix("sqlite:///")).parent):
        out, _ = ask(MODALITIES, "--resume", story.second.info.run_id)
    assert out.splitlines()[-1] == story.out.splitlines()[-1]
    assert len(sweeps(story.store)) == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
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
def test_bad_input_is_refused(story: Story, arguments: list[str], words: str) -> None:
    names = {"SWEEP": story.first.info.run_id, "TRIAL": story.first.data.tags["fgst.best_run"]}
    with pytest.raises(InputError, match=words):
        ask(MODALITIES, *(names.get(a, a) for a in arguments), "--tracking-uri", story.store.uri)


def test_data_that_changed_since_are_refused_unless_they_are_named(story: Story, tmp_path: Path) -> None:
    trial = story.first.data.tags["fgst.best_run"]
    small.write_small(tmp_path / "other", small.motion_clips(40, seed=3))
    with story.store.artifacts(trial, "checkpoint/config.json") as file:
        card = ModelCard.read(file)
    assert replace(card) == story.store.model_card(trial)
    report = evaluate(trial, str(tmp_path / "other"), tracking_uri=story.store.uri, log=True)
    assert not report["digest_matches"]
    assert "eval/test/top1" not in story.store.run(trial).data.metrics  # another data set's figure is not this run's
    small.write_small(tmp_path / "classes", small.motion_clips(40), classes=("a", "b", "c"))
    with pytest.raises(InputError, match="skeleton or the classes differ"):
        evaluate(trial, str(tmp_path / "classes"), tracking_uri=story.store.uri)
