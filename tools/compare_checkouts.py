"""Check that two checkouts compute the same: data sets, trainings, resumed trainings, sweeps and evaluations.

Examples:
  git worktree add ../before v0.1.0 && make -C ../before setup
  python tools/compare_checkouts.py ../before .

Each checkout runs its own commands with its own .venv, in a temporary folder and on one thread. Everything that does
not depend on time is compared exactly: the description of the generated data set with its digest, all metrics of each
epoch, the bytes of the weights (of an uninterrupted training, and of one that was killed and resumed), the table of a
sweep, and the report of an evaluation. Exits with 1 if anything differs. A refactoring must pass; takes a few minutes.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SETTINGS = ["--dataset", "demo", "--preset", "tiny", "--set", "data.frames=8", "--set", "train.repeat=4"]
EPOCHS = 6
# Metrics that depend on the machine's speed.
TIMINGS = ("minutes", "clips_per_second", "device_seconds", "peak_memory_gib", "cost", "model/latency_ms")


class Checkout:
    """One checkout, and the temporary folder in which its commands run."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root, self.folder = root.resolve(), folder
        self.python = self.root / ".venv" / "bin" / "python"
        if not self.python.exists():
            sys.exit(f"{self.root} has no .venv: run `make -C {root} setup` first")
        folder.mkdir()
        self.environment = {**os.environ, "PYTHONPATH": str(self.root), "OMP_WAIT_POLICY": "passive"}
        self.environment.pop("MLFLOW_TRACKING_URI", None)

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.python), *words],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str) -> str:
        """Run a command to its end; returns its standard output."""
        print(f"{self.folder.name}: python {shlex.join(words)}", file=sys.stderr)
        process = self.start(*words)
        output, errors = process.communicate()
        if process.returncode:
            sys.exit(f"{errors}\nended with exit code {process.returncode}")
        return output

    def kill_after_first_epoch(self, *words: str) -> None:
        """Run a training and kill it when it has reported its first epoch."""
        process = self.start(*words)
        assert process.stderr is not None
        while not (line := process.stderr.readline()).startswith("epoch"):
            if not line:
                sys.exit(f"{self.root}: the training ended before its first epoch")
        process.send_signal(signal.SIGKILL)
        process.communicate()

    def train(self, *options: str) -> list[str]:
        return ["-m", "fgst.train", *SETTINGS, "--epochs", f"{EPOCHS}", "--threads", "1", "--device", "cpu", *options]

    def metrics(self, run_id: str) -> list[list[Any]]:
        """All metrics of a run by name and epoch, without timings."""
        with sqlite3.connect(self.folder / "mlflow.db") as database:
            rows = database.execute(
                "SELECT key, step, value FROM metrics WHERE run_uuid = ? ORDER BY key, step", (run_id,)
            )
            return [list(row) for row in rows if row[0] not in TIMINGS and not row[0].startswith("system/")]

    def weights(self, run_id: str) -> str:
        """SHA-256 of the weights of a run."""
        [path] = self.folder.glob(f"mlruns/**/{run_id}/artifacts/checkpoint/model.safetensors")
        return hashlib.sha256(path.read_bytes()).hexdigest()


def run_id_in(output: str) -> str:
    """The run id in the evaluate command that ends the output of trainings and sweeps."""
    return output.split("--run-id ")[-1].split()[0]


def compute(checkout: Checkout) -> dict[str, Any]:
    """Run all commands in a checkout; returns what must be equal, by name."""
    results: dict[str, Any] = {}
    checkout.run("-m", "data_prep.demo", "demo", "--clips", "192")
    results["data set"] = json.loads((checkout.folder / "demo" / "dataset.json").read_text())
    results["data set"].pop("sha256", None)  # of the other entries; earlier versions do not write it

    run_id = run_id_in(checkout.run(*checkout.train()))
    results["training: metrics"] = checkout.metrics(run_id)
    results["training: weights"] = checkout.weights(run_id)
    report = json.loads(checkout.run("-m", "fgst.evaluate", "--run-id", run_id, "--json"))
    results["evaluation"] = {key: report[key] for key in sorted(report) if key not in ("run_id", *TIMINGS)}

    checkout.kill_after_first_epoch(*checkout.train("--seed", "1"))
    run_id = run_id_in(checkout.run(*checkout.train("--seed", "1", "--resume", "auto")))
    results["resumed training: metrics"] = checkout.metrics(run_id)
    results["resumed training: weights"] = checkout.weights(run_id)

    script = str(checkout.root / "sweeps" / "focal_k.py")
    output = checkout.run(
        *(script, *SETTINGS, "--epochs", "3", "--values", "3,25", "--seeds", "2", "--local", "--cpus-per-trial", "1")
    )
    [csv_file] = checkout.folder.glob("mlruns/**/table.csv")
    with csv_file.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    results["sweep: table"] = [{key: row[key] for key in row if "minutes" not in key} for row in rows]
    best = run_id_in(output)
    results["sweep: best trial"] = [checkout.metrics(best), checkout.weights(best)]
    return results


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, metavar="BEFORE", help="a checkout with a .venv")
    parser.add_argument("after", type=Path, metavar="AFTER", help="another one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        before, after = (
            compute(Checkout(root, Path(folder) / name))
            for name, root in (("before", args.before), ("after", args.after))
        )
    for name, value in before.items():
        same = value == after[name]
        summary = value if isinstance(value, str) and len(value) == 64 else f"{len(value)} values"
        print(f"{'equal ' if same else 'DIFFERENT'}  {name:28} {summary if same else ''}")
        if not same:
            print(f"  before: {value}\n  after:  {after[name]}")
    sys.exit(any(before[name] != after[name] for name in before))


if __name__ == "__main__":
    main()
