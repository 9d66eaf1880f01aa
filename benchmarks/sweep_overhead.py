"""What the sweep platform costs beyond the training itself: ``python -m benchmarks.sweep_overhead``.

The same trials three ways in one run, each on one core, one after another: called in a loop in one process; in a plain
Optuna loop that logs to MLflow each epoch; and as a sweep (Ray, MLflow, Optuna, checkpoints, report). Then the time
from the sweep's command to its first training step, and the memory of everything but the trials.

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
dataset, epochs, plain, *values = sys.argv[1:]
base = PRESETS["tiny"].with_values({"data.dataset": dataset, "train.epochs": epochs})
def train(k, log):
    for result in fit(base.with_values({"model.focal_joints": k})):
        log(result)
    return result.metrics["val/top1"]
if plain == "loop":
    began = time.perf_counter()
    for k in values:
        train(int(k), lambda result: None)
else:
    import mlflow, optuna
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    mlflow.set_tracking_uri("sqlite:///plain.db")
    mlflow.set_experiment("plain")
    began = time.perf_counter()
    def objective(trial):
        k = trial.suggest_categorical("K", [int(k) for k in values])
        with mlflow.start_run():
            mlflow.log_params(base.flat() | {"model.focal_joints": k})
            return train(k, lambda result: mlflow.log_metrics(result.metrics, step=result.epoch))
    study = optuna.create_study(direction="maximize", storage="sqlite:///plain-optuna.db")
    for k in values:
        study.enqueue_trial({"K": int(k)})
    study.optimize(objective, n_trials=len(values))
print(time.perf_counter() - began)
"""


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}


def loop(kind: str, dataset: str, epochs: int, values: list[int], folder: Path) -> float:
    """Seconds of the trainings, imports left out."""
    command = [sys.executable, "-c", LOOP, dataset, str(epochs), kind, *map(str, values)]
    done = subprocess.run(command, cwd=folder, env=environment(), check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def sweep(dataset: str, epochs: int, values: list[int], folder: Path) -> tuple[float, float, float]:
    """Seconds from the command to its end and to its first step, and MiB of all but the trial's process, at most."""
    command = [
        sys.executable, str(SWEEP), "--dataset", dataset, "--preset", "tiny", "--epochs", str(epochs), "--values",
        ",".join(map(str, values)), "--max-concurrent", "1", "--cpus-per-trial", "1",
    ]  # fmt: skip
    start, began, idle = time.time(), time.perf_counter(), 0.0
    with (folder / "sweep.out").open("w") as out:
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=out, stderr=out)
        while process.poll() is None:
            try:
                family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
                sizes = [p.memory_full_info().pss for p in family if "Trainable" not in p.name()]
                idle = max(idle, sum(sizes) / 2**20)
            except psutil.Error:
                pass
            time.sleep(1)
    if process.returncode:
        sys.exit((folder / "sweep.out").read_text())
    seconds = time.perf_counter() - began
    from fgst.tracking.store import TrackingStore

    client = TrackingStore(f"sqlite:///{folder}/mlflow.db").client
    runs = client.search_runs(["1"], "tags.`fgst.kind` = 'trial'", order_by=["start_time ASC"])
    first, *_ = client.get_metric_history(runs[0].info.run_id, "minutes")
    # The metric is written when the first epoch is over, and says how long that took.
    return seconds, first.timestamp / 1000 - 60 * first.value - start, idle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="datasets/nw-ucla", help="(default: %(default)s)")
    parser.add_argument("--trials", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=3, help="of preset tiny, each (default: %(default)s)")
    options = parser.parse_args()
    dataset, values = str(Path(options.dataset).absolute()), list(range(3, 3 + options.trials))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = loop("loop", dataset, options.epochs, values, folder)
        seconds, first, idle = sweep(dataset, options.epochs, values, folder)
        logged = loop("logged", dataset, options.epochs, values, folder)
        again = loop("loop", dataset, options.epochs, values, folder)
    print(f"{options.trials} trials of {plain / options.trials:.0f} s, one at a time, one core each")
    print(f"in a loop                   {plain:8.1f} s, and repeated at the end {again:.1f} s")
    plain = (plain + again) / 2  # other work on the machine comes and goes
    print(f"plain Optuna and MLflow     {logged:8.1f} s  {100 * (logged / plain - 1):+.1f} %")
    print(f"the sweep, from its command {seconds:8.1f} s  {100 * (seconds / plain - 1):+.1f} %")
    print(f"command to first step       {first:8.1f} s")
    print(f"memory but for the trial    {idle:8.0f} MiB")


if __name__ == "__main__":
    main()
