"""The reference results: a sweep that continues by its settings, and the page that is written from its runs."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import reference
from benchmarks.reference_page import page
from benchmarks.reference_runs import load
from fgst.cli.sweep import sweep
from fgst.config import PRESETS, resolve
from fgst.data.dataset import ArrowDataset
from fgst.errors import InputError
from fgst.tracking.store import TrackingStore
from fgst.tracking.tags import Tags
from tests.support import small
from tests.support.workspace import ROOT, TINY

pytestmark = pytest.mark.long

DEFINITION = runpy.run_path(str(ROOT / "sweeps" / "modalities.py"))["definition"]
COMMAND = (
    *("--dataset", "data", "--preset", "tiny", "--values", "joint,bone", "--epochs", "1"),
    *("--set", "model.focal_joints=4", *TINY, "--refit", "--refit-seeds", "2"),
)


@dataclass
class Store:
    """A folder with a tracking store, and what the commands that filled it printed."""

    folder: Path
    store: TrackingStore
    printed: list[str]

    def sweeps(self) -> list[str]:
        """Ids of all sweeps, the newest first."""
        runs = self.store.runs(list(self.store.experiments()), f"tags.`{Tags.KIND}` = 'sweep'")
        return [run.info.run_id for run in runs]


def run_sweep(*arguments: str) -> str:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        sweep(DEFINITION, argv=["--local", "--cpus-per-trial", "1", *arguments])
    return out.getvalue() + err.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A sweep that stopped after one training and was continued by the same command."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("reference")
    small.write_small(folder / "data", small.motion_clips(72))
    with contextlib.chdir(folder):
        printed = [
            run_sweep(*COMMAND, "--resume", "auto", "--max-trials", "1"),
            run_sweep(*COMMAND, "--resume", "auto"),
        ]
        yield Store(folder, TrackingStore(f"sqlite:///{folder}/mlflow.db"), printed)


def test_same_command_continues_the_sweep(trained: Store) -> None:
    """A training of each modality with validation clips, of which one was missing, then two of each on all clips."""
    refit, validation = trained.sweeps()
    assert len(trained.store.children(validation)) == 2
    assert len(trained.store.children(refit)) == 4
    assert "run the remaining trials with" in trained.printed[0]
    assert "1 of them finished before" in trained.printed[1]


def test_finished_sweep_is_printed_again(trained: Store) -> None:
    before = len(trained.store.runs(list(trained.store.experiments())))
    with contextlib.chdir(trained.folder):
        assert "The ensemble, trained on all training clips" in run_sweep(*COMMAND, "--resume", "auto")
    assert len(trained.store.runs(list(trained.store.experiments()))) == before


@pytest.mark.parametrize("changed", [["--set", "train.lr=0.123"], ["--values", "joint,bone_motion"], ["--seeds", "2"]])
def test_other_settings_are_another_sweep(trained: Store, changed: list[str]) -> None:
    with contextlib.chdir(trained.folder):
        printed = run_sweep(*COMMAND, *changed, "--resume", "auto", "--max-trials", "1")
    assert "finished before" not in printed
    newest = trained.sweeps()[0]
    assert len(trained.store.children(newest)) == 1
    trained.store.client.delete_run(newest)


def test_moved_data_set_continues_the_sweep(trained: Store) -> None:
    with contextlib.chdir(trained.folder):
        Path("data").rename("moved")
        try:
            printed = run_sweep(*("moved" if word == "data" else word for word in COMMAND), "--resume", "auto")
        finally:
            Path("moved").rename("data")
    assert "2 of them finished before" in printed


def test_refit_seeds_without_refit_are_rejected(trained: Store) -> None:
    words = [word for word in COMMAND if word != "--refit"]
    with contextlib.chdir(trained.folder), pytest.raises(InputError, match=r"--refit-seeds .* add --refit"):
        run_sweep(*words)


def test_page_has_the_accuracies_of_the_runs(trained: Store, tmp_path: Path) -> None:
    refit, _ = trained.sweeps()
    ensemble = trained.store.run(refit).data.tags[Tags.ENSEMBLE]
    with contextlib.chdir(trained.folder):
        out = tmp_path / "reproduction" / "page.md"
        reference.main(["--run-id", ensemble, "--out", str(out), "--tracking-uri", trained.store.uri])
    page = out.read_text()
    accuracies: dict[str, list[float]] = {}
    for run in trained.store.children(refit):
        accuracies.setdefault(run.data.tags[Tags.MODALITY], []).append(run.data.metrics["test/top1"])
    for name, values in accuracies.items():
        cell = f"**{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}**"
        assert f"| **{name.replace('_', ' ')}** | {cell} |" in page
    fused = trained.store.run(ensemble).data.metrics["test/top1"]
    [line] = [line for line in page.splitlines() if line.startswith("| **four modalities fused**")]
    assert f"| {fused:.2f}, " in line
    assert "6 networks" in page  # 2 with validation clips, 4 on all
    for picture in ("curves", "confusion", "focal-map", "focal-joints"):
        assert (tmp_path / "pictures" / f"nw-ucla-{picture}.png").stat().st_size > 1000
        assert f"../pictures/nw-ucla-{picture}.png" in page


def test_command_on_the_page_has_all_settings_of_the_networks(trained: Store, tmp_path: Path) -> None:
    """The command's options, on top of its preset, are the settings of the networks."""
    ensemble = trained.store.run(trained.sweeps()[0]).data.tags[Tags.ENSEMBLE]
    with contextlib.chdir(trained.folder):
        reference.main(["--run-id", ensemble, "--out", str(tmp_path / "page.md"), "--tracking-uri", trained.store.uri])
        arguments = re.search(r'^\$ make reference .*ARGS="(.*)"$', (tmp_path / "page.md").read_text(), re.MULTILINE)
        assert arguments is not None
        words = shlex.split(arguments[1])
        values = {"train.epochs": words.pop(words.index("--epochs") + 1)}
        values |= dict(word.split("=", 1) for word in words if "=" in word)
        given = resolve(PRESETS["best"].with_values({"data.dataset": "data", **values}), ArrowDataset("data")).flat()
    for run in trained.store.children(trained.sweeps()[0]):
        used = trained.store.model_card(run.info.run_id).config.flat()
        differ = {name for name, value in used.items() if value != given[name]}
        assert differ <= {"train.seed", "data.modality", "data.protocol"}


def test_errors_of_the_page_add_up(trained: Store) -> None:
    """The parts of each table have all test clips together."""
    refit, _ = trained.sweeps()
    with contextlib.chdir(trained.folder):
        results = load(trained.store, trained.store.run(refit).data.tags[Tags.ENSEMBLE])
        text = page(results, "a machine")
    for heading in ("class | clips", "subject | clips", "length | clips"):
        rows = text.split(f"| {heading}")[1].split("\n\n")[0].splitlines()[2:]
        assert sum(int(row.split(" | ")[1]) for row in rows) == len(results.clip_ids)


@pytest.mark.parametrize("kind", ["unknown", "trial", "not retrained"])
def test_wrong_run_is_one_line(trained: Store, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, validation = trained.sweeps()
    run = {
        "unknown": "0" * 32,
        "trial": trained.store.children(validation)[0].info.run_id,
        "not retrained": trained.store.run(validation).data.tags[Tags.ENSEMBLE],
    }[kind]
    with pytest.raises(SystemExit) as error:
        reference.main(["--run-id", run, "--tracking-uri", trained.store.uri])
    assert "\n" not in str(error.value)
    assert run in str(error.value)


def test_page_is_found_by_the_options_of_the_sweep(trained: Store, tmp_path: Path) -> None:
    with contextlib.chdir(trained.folder):
        reference.main([*COMMAND, "--out", str(tmp_path / "reproduction" / "page.md")])
    ensemble = trained.store.run(trained.sweeps()[0]).data.tags[Tags.ENSEMBLE]
    assert f"--run-id {ensemble}" in (tmp_path / "reproduction" / "page.md").read_text()


def test_unknown_sweep_is_one_line_that_says_what_to_run(trained: Store) -> None:
    with contextlib.chdir(trained.folder), pytest.raises(SystemExit, match=r"with these options: .*make reference"):
        reference.main([*COMMAND, "--set", "train.lr=0.77"])


def test_incomplete_sweep_is_one_line_that_says_what_to_run(trained: Store) -> None:
    changed = [*COMMAND, "--set", "train.lr=0.88"]
    with contextlib.chdir(trained.folder):
        run_sweep(*changed, "--max-trials", "1")
        with pytest.raises(SystemExit, match=r"is not complete: .*make reference"):
            reference.main(changed)
    trained.store.client.delete_run(trained.sweeps()[0])


@pytest.mark.parametrize("how", ["damaged", "missing"])
def test_sweep_without_readable_specification_is_passed_over(trained: Store, tmp_path: Path, how: str) -> None:
    """A process that is killed while it creates its sweep leaves a run without a specification, or a part of one."""
    changed = [*COMMAND, "--set", "train.lr=0.99", "--max-trials", "1", "--resume", "auto"]
    with contextlib.chdir(trained.folder):
        run_sweep(*changed)
        killed = trained.sweeps()[0]
        folder = trained.store.local_artifacts(trained.store.run(killed))
        assert folder is not None
        (folder / "sweep.json").unlink() if how == "missing" else (folder / "sweep.json").write_text('{"name": ')
        run_sweep(*changed)
    newest = trained.sweeps()[0]
    assert newest != killed
    for run in (killed, newest):
        trained.store.client.delete_run(run)


def test_options_that_only_apply_to_a_new_sweep_do_not_prevent_resuming(trained: Store) -> None:
    """Settings from another run are part of what the sweep is found by."""
    run = trained.store.children(trained.sweeps()[1])[0].info.run_id
    words = ["--from-run", run, "--values", "joint,bone", "--max-trials", "1", "--resume", "auto"]
    with contextlib.chdir(trained.folder):
        run_sweep(*words)
        first = trained.sweeps()[0]
        run_sweep(*words)
    assert trained.sweeps()[0] == first
    trained.store.client.delete_run(first)
