"""Measure the overhead of a sweep over its trainings: ``python -m benchmarks.sweep_overhead``.

The same trials run in three ways, sequentially and on one core: in a loop in one process; in a plain Optuna loop that
logs each epoch to MLflow; and as a sweep (Ray, MLflow, Optuna, checkpoints, report). The benchmark also reports the
time from the sweep's command to its first training step, and the memory of all processes except the trials.

  python -m benchmarks.sweep_overhead --dataset datasets/nw-ucla --trials 8 --epochs 3
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

SWEEP = Path(__file__).parents[1] / "sweeps" / "focal_k.py"
LOOP = """
import sys, time
import torch
torch.set_num_threads(1)
from fgst.config import PRESETS
from fgst.training.trainer import fit
dataset, epochs, kind, *values = sys.argv[1:]
base = PRESETS["tiny"].with_values({"data.dataset": dataset, "train.epochs": epochs})
def train(k, log):
    for result in fit(base.with_values({"model.focal_joints": k})):
        log(result)
    return result.metrics["val/top1"]
if kind == "loop":
    start = time.perf_counter()
    for k in values:
        train(int(k), lambda result: None)
else:
    import mlflow, optuna
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    mlflow.set_tracking_uri("sqlite:///plain.db")
    mlflow.set_experiment("plain")
    start = time.perf_counter()
    def objective(trial):
        k = trial.suggest_categorical("K", [int(k) for k in values])
        with mlflow.start_run():
            mlflow.log_params(base.flat() | {"model.focal_joints": k})
            return train(k, lambda result: mlflow.log_metrics(result.metrics, step=result.epoch))
    study = optuna.create_study(direction="maximize", storage="sqlite:///plain-optuna.db")
    for k in values:
        study.enqueue_trial({"K": int(k)})
    study.optimize(objective, n_trials=len(values))
print(time.perf_counter() - start)
"""


def environment() -> dict[str, str]:
    """Return the environment of a process that uses one core."""
    return os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}


def loop(kind: str, dataset: str, epochs: int, values: list[int], folder: Path) -> float:
    """Return the seconds of the trainings, without imports.

    Args:
        kind: ``loop`` for a plain loop; otherwise an Optuna loop that logs to MLflow.
    """
    command = [sys.executable, "-c", LOOP, dataset, str(epochs), kind, *map(str, values)]
    process = subprocess.run(command, cwd=folder, env=environment(), check=True, capture_output=True, text=True)
    return float(process.stdout.split()[-1])


def sweep(dataset: str, epochs: int, values: list[int], folder: Path) -> tuple[float, float, float]:
    """Run the sweep.

    Returns:
        Seconds from the command to its end, seconds from the command to the first training step, and the peak memory
        in MiB of all processes except the trial's.
    """
    command = [
        sys.executable, str(SWEEP), "--dataset", dataset, "--preset", "tiny", "--epochs", str(epochs), "--values",
        ",".join(map(str, values)), "--max-concurrent", "1", "--cpus-per-trial", "1",
    ]  # fmt: skip
    start_time, start, peak_memory = time.time(), time.perf_counter(), 0.0
    with (folder / "sweep.out").open("w") as out:
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=out, stderr=out)
        while process.poll() is None:
            try:
                family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
                sizes = [p.memory_full_info().pss for p in family if "Trainable" not in p.name()]
                peak_memory = max(peak_memory, sum(sizes) / 2**20)
            except psutil.Error:
                pass
            time.sleep(1)
    if process.returncode:
        sys.exit((folder / "sweep.out").read_text())
    seconds = time.perf_counter() - start
    from fgst.tracking.store import TrackingStore

    client = TrackingStore(f"sqlite:///{folder}/mlflow.db").client
    runs = client.search_runs(["1"], "tags.`fgst.kind` = 'trial'", order_by=["start_time ASC"])
    first, *_ = client.get_metric_history(runs[0].info.run_id, "minutes")
    # The metric is logged at the end of the first epoch, and its value is the duration of that epoch.
    return seconds, first.timestamp / 1000 - 60 * first.value - start_time, peak_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="datasets/nw-ucla", help="(default: %(default)s)")
    parser.add_argument("--trials", type=int, default=8, help="number of trials (default: %(default)s)")
    parser.add_argument(
        "--epochs", type=int, default=3, help="epochs of each trial, with preset tiny (default: %(default)s)"
    )
    options = parser.parse_args()
    dataset, values = str(Path(options.dataset).absolute()), list(range(3, 3 + options.trials))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first_loop = loop("loop", dataset, options.epochs, values, folder)
        seconds, to_first_step, memory = sweep(dataset, options.epochs, values, folder)
        optuna_loop = loop("optuna", dataset, options.epochs, values, folder)
        last_loop = loop("loop", dataset, options.epochs, values, folder)
    print(f"{options.trials} trials of {first_loop / options.trials:.0f} s, sequentially, on one core")
    print(f"loop                        {first_loop:8.1f} s; repeated at the end: {last_loop:.1f} s")
    plain = (first_loop + last_loop) / 2  # other load on the machine varies
    print(f"Optuna loop with MLflow     {optuna_loop:8.1f} s  {100 * (optuna_loop / plain - 1):+.1f} %")
    print(f"sweep, from its command     {seconds:8.1f} s  {100 * (seconds / plain - 1):+.1f} %")
    print(f"command to first step       {to_first_step:8.1f} s")
    print(f"memory without the trial    {memory:8.0f} MiB")


if __name__ == "__main__":
    main()
