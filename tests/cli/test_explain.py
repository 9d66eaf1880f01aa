"""The command ``fgst explain``: figures among the run's artifacts, and invalid runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fgst.cli.explain import main
from fgst.data.dataset import ArrowDataset
from fgst.errors import InputError
from fgst.tracking.store import TrackingStore
from tests.support import small


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    torch.set_num_threads(1)
    return small.write_small(tmp_path_factory.mktemp("data") / "small")


def log_network(store: TrackingStore, experiment: str, checkpoint: Path, folder: Path) -> str:
    """Start a trial with a checkpoint among its artifacts; return its run id."""
    run = store.start(experiment, "trial", "a trial", {"fgst.kind": "trial"})
    (folder / "checkpoint").mkdir(parents=True)
    for name in ("model.safetensors", "config.json"):
        (folder / "checkpoint" / name).write_bytes((checkpoint / name).read_bytes())
    run.log_artifacts(folder)
    return run.run_id


def test_figures_are_stored_as_run_artifacts(
    dataset: ArrowDataset, tmp_path: Path, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = TrackingStore(tracking_uri)
    checkpoint = small.save_untrained_network(dataset, tmp_path / "network", data__modality="bone")
    run_id = log_network(store, store.experiment("small x-sub"), checkpoint, tmp_path / "run")
    main(["--run-id", run_id, "--tracking-uri", tracking_uri])
    assert f"under figures/focal of run {run_id}" in capsys.readouterr().out
    with store.artifacts(run_id, "figures/focal") as folder:
        assert (folder / "joints.png").is_file()
        assert len(list(folder.glob("*.gif"))) == 1

    out = tmp_path / "file"
    out.touch()
    with pytest.raises(InputError, match=r"file: cannot be written"):
        main(["--run-id", run_id, "--tracking-uri", tracking_uri, "--out", str(out)])


def test_no_log_option_requires_out_option() -> None:
    with pytest.raises(InputError, match="--out"):
        main(["--run-id", "0" * 32, "--no-log"])


def test_run_without_focal_joints_is_rejected(dataset: ArrowDataset, tmp_path: Path, tracking_uri: str) -> None:
    store = TrackingStore(tracking_uri)
    checkpoint = small.save_untrained_network(
        dataset,
        tmp_path / "network",
        model__focal_selection=False,
        model__part_branch=False,
        model__cross_attention=False,
    )
    run_id = log_network(store, store.experiment("small x-sub"), checkpoint, tmp_path / "run")
    with pytest.raises(InputError, match="without focal joints"):
        main(["--run-id", run_id, "--tracking-uri", tracking_uri])


def test_sweep_is_rejected_with_suggested_trial(tracking_uri: str) -> None:
    store = TrackingStore(tracking_uri)
    tags = {"fgst.kind": "sweep", "fgst.best_run": "a" * 32}
    sweep = store.start(store.experiment("small x-sub"), "s", "a sweep", tags)
    with pytest.raises(InputError, match=f"not a single network; one of its networks is --run-id {'a' * 32}"):
        main(["--run-id", sweep.run_id, "--tracking-uri", tracking_uri])
