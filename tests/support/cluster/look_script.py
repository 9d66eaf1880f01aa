"""Print all sweeps of the tracking server as JSON; runs on a host that can reach the server."""

from __future__ import annotations

import json

from fgst.tracking.store import TrackingStore
from fgst.tracking.tags import Tags
from tests.support import small

FILES = ("checkpoint/model.safetensors", "scores/test.arrow", "figures/confusion.png")


def main() -> None:
    store = TrackingStore()
    experiments = [experiment.experiment_id for experiment in store.client.search_experiments()]
    sweeps = store.client.search_runs(experiments, "tags.`fgst.kind` = 'sweep'", order_by=["attributes.start_time"])
    result = []
    for sweep in sweeps:
        trials = []
        for run in store.children(sweep.info.run_id):
            history = store.client.get_metric_history(run.info.run_id, "train/loss")
            trials.append(
                {
                    "trial_id": run.data.tags[Tags.TRIAL_ID],
                    "run_id": run.info.run_id,
                    "status": run.info.status,
                    "outcome": run.data.tags.get(Tags.STATUS, ""),
                    "epochs": [metric.step for metric in history],
                    "metrics": {m: v for m, v in run.data.metrics.items() if m not in small.TIMINGS},
                    "files": [path for path in FILES if _size(store, run.info.run_id, path)],
                }
            )
        result.append({"run_id": sweep.info.run_id, "status": sweep.info.status, "trials": trials})
    print("sweeps:" + json.dumps(result))


def _size(store: TrackingStore, run_id: str, path: str) -> int:
    """Return the size of an artifact; 0 if it does not exist."""
    folder = path.split("/")[0]
    return {file.path: file.file_size or 0 for file in store.client.list_artifacts(run_id, folder)}.get(path, 0)


if __name__ == "__main__":
    main()
