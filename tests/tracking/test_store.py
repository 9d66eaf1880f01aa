"""The tracking store: made whole or not at all."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

from fgst.tracking.store import TrackedRun, TrackingStore
from tests.support.small import start_python

MAKE = "import sys; from fgst.tracking.store import TrackingStore; print('now', flush=True); TrackingStore(sys.argv[1]); print('made')"


def test_a_store_whose_making_was_interrupted_is_made_by_the_next(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for delay in (0.3, 1.5):  # into the making, which takes seconds
        process = start_python(MAKE, uri)
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        process.communicate()
    store = TrackingStore(uri)
    assert store.experiment("one") == store.experiment("one")


def test_processes_that_make_it_at_once_share_it(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    processes = [start_python(MAKE, uri) for _ in range(3)]
    assert [process.communicate()[0].splitlines()[-1] for process in processes] == ["made"] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    TrackingStore(uri).experiment("one")


def test_runs_that_name_a_new_data_set_at_once(tmp_path: Path) -> None:
    """Trials that start together do; MLflow's own look-then-insert refuses all but one of them."""
    store = TrackingStore(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = store.experiment("one")
    runs = [store.start(experiment, str(n), f"run {n}", {}) for n in range(4)]
    lost: list[BaseException] = []
    together = threading.Barrier(len(runs))

    def name_them(run: TrackedRun) -> None:
        try:
            for n in range(20):
                together.wait()
                run.log_dataset(f"set {n}", "ab" * 32, "data")
        except BaseException as error:
            lost.append(error)
            together.abort()

    threads = [threading.Thread(target=name_them, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not lost
    assert [len(store.run(run.run_id).inputs.dataset_inputs) for run in runs] == [20] * len(runs)
