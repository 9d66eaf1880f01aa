"""Runs like those of sweeps and trainings, for the tests of queries and garbage collection."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fgst.tracking.gc import find_garbage
from fgst.tracking.run import TrackedRun
from fgst.tracking.store import TrackingStore

WEIGHTS_SIZE = 1000
"""Size in bytes of a trial's weights."""


class SampleRuns:
    """Writes sweeps, trials and ensembles into a tracking store.

    Args:
        uri: the tracking store.
        folder: an empty folder for checkpoints and uploads.
    """

    def __init__(self, uri: str, folder: Path) -> None:
        self.uri, self.folder, self.store = uri, folder, TrackingStore(uri)
        self.experiment_id = self.store.experiment("small x-sub")
        self.count = 0

    def add_sweep(
        self,
        *val: float | None,
        status: str = "FINISHED",
        objectives: tuple[str, ...] = ("val_top1",),
        tags: dict[str, str] | None = None,
    ) -> tuple[str, list[str]]:
        """Add a sweep with a trial per validation accuracy; return their run ids."""
        self.count += 1
        run = self.store.start(
            self.experiment_id, f"sweep-{self.count}", f"focal_k {self.count}", {"fgst.kind": "sweep"}
        )
        storage = self.folder / "ray_results" / run.run_id
        (storage / "key").mkdir(parents=True)
        (storage / "key" / "state.pt").write_bytes(b"s" * 500)
        self.add_artifact(run, "sweep.json", json.dumps({"objectives": list(objectives)}).encode())
        trials = [self.add_trial(value, run.run_id, K=number) for number, value in enumerate(val)]
        validated = [(value, trial) for value, trial in zip(val, trials, strict=True) if value is not None]
        sweep_tags = {"fgst.storage": str(storage)}
        if trials:
            sweep_tags["fgst.best_run"] = max(validated)[1] if validated else trials[0]
        if validated:
            run.log_metrics({"val/top1": max(validated)[0]}, 0)
        run.set_tags(sweep_tags | (tags or {}))
        if status != "RUNNING":
            run.finish(status)
        return run.run_id, trials

    def add_trial(self, val: float | None, parent: str | None = None, *, test: float = 50.0, **params: Any) -> str:
        """Add a finished trial with weights; return its run id."""
        self.count += 1
        run = self.store.start(
            self.experiment_id, f"key-{self.count}", f"trial {self.count}", {"fgst.kind": "trial"}, parent
        )
        run.log_params({"data.validation": 0.2, "data.validation_seed": 0} | params)
        run.log_metrics(({"val/top1": val} if val is not None else {}) | {"test/top1": test, "minutes": 1.5}, 1)
        self.add_artifact(run, "checkpoint/model.safetensors", b"w" * WEIGHTS_SIZE)
        self.add_artifact(run, "checkpoint/config.json", b"{}")
        self.add_artifact(run, "scores/test.arrow", b"scores")
        run.finish()
        return run.run_id

    def add_ensemble(self, parent: str, members: Sequence[str]) -> str:
        """Add an ensemble of trials; return its run id."""
        modalities = dict(zip(("joint", "bone", "joint_motion", "bone_motion"), members, strict=False))
        tags = {"fgst.kind": "ensemble"} | {f"fgst.member.{name}": run_id for name, run_id in modalities.items()}
        run = self.store.start(self.experiment_id, f"ensemble-{parent}", "joint + bone", tags, parent)
        run.log_metrics({"val/top1": 90.0}, 0)
        run.finish()
        return run.run_id

    def add_artifact(self, run: TrackedRun, path: str, content: bytes) -> None:
        """Upload a file into a run's artifacts."""
        folder = self.folder / "upload"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
        run.log_artifacts(folder)
        (folder / path).unlink()

    def artifacts(self, run_id: str) -> list[str]:
        """Paths of all files among a run's artifacts."""
        folder = self.store.local_artifacts(self.store.run(run_id))
        assert folder is not None
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    def garbage(self) -> set[str]:
        """Run ids of all garbage."""
        return {garbage.run_id for garbage in find_garbage(self.store).garbage}
