"""Measure the resources of a sweep of a thousand trials, and how they grow with the number of trials.

The backend, the search, MLflow and the report are the real ones. The trials sleep during their epochs, and the cluster
consists of virtual nodes on this machine that claim to have more cores than it has. This allows 64 concurrent trials on
two cores.

  python -m benchmarks.scale                                       # 1,000 trials, 64 concurrent, PostgreSQL: 15 minutes
  python -m benchmarks.scale --trials 250 --store none             # without MLflow: Ray Tune and the search only
  python -m benchmarks.scale --only search --trials 1000           # Optuna only
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import json
import os
import pstats
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.simulated import SimulatedTrial, accuracy
from fgst.sweep.status import TrialStatus

ROOT = Path(__file__).parents[1]
PASSWORD = "correct horse battery staple"
MARKS = (0.05, 0.25, 0.5, 0.75, 1.0)  # shares of the trials after which resources are measured


@contextmanager
def tracking_server(folder: Path) -> Iterator[tuple[str, int]]:
    """Run PostgreSQL and MLflow as ``make server`` does; yield the URI and the id of the server's process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "fgst.server", "--dir", str(folder), "--port", str(port)],
        env={**os.environ, "FGST_SERVER_PASSWORD": PASSWORD}, cwd=ROOT, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        if "tracking server on" not in process.stdout.readline():
            sys.exit("the tracking server did not start")
        os.environ |= {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": PASSWORD}
        yield f"http://127.0.0.1:{port}", process.pid
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@contextmanager
def virtual_cluster(nodes: int, cores: int) -> Iterator[str]:
    """Run a Ray cluster of ``nodes`` nodes that claim to have ``cores`` cores in total; yield its address."""
    from ray.cluster_utils import Cluster

    from fgst.sweep.backends.ray_session import quieten

    quieten()
    system_config = {
        "worker_register_timeout_seconds": 600,  # two cores start 64 processes at the same time
        "prestart_worker_first_driver": False,
    }
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": system_config},
    )
    try:
        for number in range(nodes):
            cluster.add_node(num_cpus=cores // nodes + (number < cores % nodes))
        yield cluster.address
    finally:
        cluster.shutdown()


class ResourceMonitor(threading.Thread):
    """Measures memory and processor time of the driver and of all other processes at given numbers of started trials.

    Args:
        log: the log of the simulated trials.
        marks: numbers of started trials, in increasing order.
        folder: working directory of the benchmark.
        server: process id of the tracking server, if there is one.
    """

    def __init__(self, log: Path, marks: Sequence[int], folder: Path, server: int | None) -> None:
        super().__init__(daemon=True)
        self._log, self._marks, self._folder, self._server = log, list(marks), folder, server
        self._start, self.stopped = time.monotonic(), threading.Event()
        self.rows: list[dict[str, Any]] = []

    def run(self) -> None:
        while self._marks and not self.stopped.wait(0.5):
            started = self._log.read_bytes().count(b'"begin"') if self._log.exists() else 0
            if started >= self._marks[0]:
                self._marks.pop(0)
                self.rows.append(self._measure(started))

    def _measure(self, started: int) -> dict[str, Any]:
        driver = psutil.Process()
        row: dict[str, Any] = {"trials": started, "seconds": time.monotonic() - self._start}
        row["driver_mib"] = driver.memory_full_info().uss / 2**20
        row["driver_cpu"] = _cpu([driver])
        kinds: dict[str, list[psutil.Process]] = {}
        kinds["server"] = _server_processes(self._server, self._folder / "server") if self._server else []
        for process in driver.children(recursive=True):
            with suppress(psutil.Error):
                if process not in kinds["server"]:
                    kinds.setdefault(_kind(process), []).append(process)
        for kind, processes in kinds.items():
            row[f"{kind}_cpu"], row[f"{kind}_count"] = _cpu(processes), len(processes)
            row[f"{kind}_mib"] = sum(_uss(process) for process in processes)
        states = [f.stat().st_size for f in self._folder.glob("storage/*/ray/tune/experiment_state-*.json")]
        row["tune_state_mib"] = sum(states) / 2**20
        print(json.dumps({k: round(v, 2) for k, v in row.items()}), file=sys.stderr, flush=True)
        return row


def _kind(process: psutil.Process) -> str:
    """Return the row label of a child process: trials, a daemon of Ray, or other."""
    name = process.name()
    if name.startswith("ray::"):
        return "trials"
    return name if name in ("gcs_server", "raylet") else "other"


def _server_processes(pid: int, folder: Path) -> list[psutil.Process]:
    """Return the processes of MLflow and PostgreSQL. PostgreSQL is a daemon, which has no parent."""
    postgres = int((folder / "postgres" / "postmaster.pid").read_text().splitlines()[0])
    parents = [psutil.Process(pid), psutil.Process(postgres)]
    return parents + [child for parent in parents for child in parent.children(recursive=True)]


def _cpu(processes: Sequence[psutil.Process]) -> float:
    """Return the processor time of processes in seconds."""
    seconds = 0.0
    for process in processes:
        with suppress(psutil.Error):
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds


def _uss(process: psutil.Process) -> float:
    """Return the private memory of a process in MiB."""
    try:
        return float(process.memory_full_info().uss / 2**20)
    except psutil.Error:
        return 0.0


def definition_and_base(folder: Path, epochs: int) -> tuple[Any, Any, Any]:
    """Return the definition of ``sweeps/search.py``, a base configuration, and a demo data set."""
    import runpy

    from fgst.config import PRESETS
    from fgst.data.synthetic import make_demo

    dataset = make_demo(folder / "demo", clips=48, classes=4)
    base = PRESETS["tiny"].with_values({"data.dataset": str(dataset.path), "train.epochs": epochs})
    return runpy.run_path(str(ROOT / "sweeps" / "search.py"))["definition"], base, dataset


def measure_search(folder: Path, trials: int, epochs: int, seeds: int) -> list[dict[str, float]]:
    """Measure the processor time of a suggestion, of the report of an epoch and of the end of a trial.

    The study is stored in SQLite and grows with the number of trials.
    """
    from fgst.sweep.definition import TrialFactory
    from fgst.sweep.search import Search
    from fgst.sweep.spec import EarlyStopping, build_spec

    definition, base, dataset = definition_and_base(folder, epochs)
    spec = build_spec(definition, base, dataset, limit=trials, early_stop=EarlyStopping(1, 3), seeds=seeds)
    search = Search(spec, TrialFactory(definition, spec.base, dataset), f"sqlite:///{folder}/optuna.db", "scale")
    times: dict[str, list[float]] = {"ask": [], "result": [], "tell": []}

    def timed(name: str, call: Any, *arguments: Any) -> Any:
        start = time.process_time()  # independent of other load on the machine, unlike wall time
        result = call(*arguments)
        times[name].append(time.process_time() - start)
        return result

    rows, marks, finished = [], [max(1, int(share * trials)) for share in MARKS], 0
    while (trial := timed("ask", search.ask)) is not None:
        status, metrics = TrialStatus.FINISHED, {}
        for epoch in range(1, epochs + 1):
            metrics = {"val/top1": accuracy(trial, epoch)}
            if timed("result", search.on_result, trial.trial_id, epoch, metrics):
                status = TrialStatus.PRUNED
                break
        timed("tell", search.tell, trial.trial_id, status, metrics, trial)
        finished += 1
        if finished in marks:
            row = {"trials": float(finished)} | {
                f"{name}_cpu_ms": 1000 * statistics.median(seconds[-30:]) for name, seconds in times.items()
            }
            rows.append(row)
            print(json.dumps({k: round(v, 1) for k, v in row.items()}), file=sys.stderr, flush=True)
    return rows


def measure_sweep(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run a sweep on a virtual cluster, and measure its resources, its delays and the time of reading its results."""
    from fgst.sweep.backends.ray import RayBackend
    from fgst.sweep.backends.resources import Resources
    from fgst.sweep.callbacks import MlflowReport, ProgressDisplay, TablePrinter
    from fgst.sweep.definition import TrialFactory
    from fgst.sweep.opening import create_sweep
    from fgst.sweep.spec import EarlyStopping, build_spec
    from fgst.tracking.store import TrackingStore

    definition, base, dataset = definition_and_base(folder, options.epochs)
    stop = EarlyStopping(1, 3) if options.early_stop else None
    spec = build_spec(definition, base, dataset, limit=options.trials, early_stop=stop, search=options.search)
    log = folder / "log.jsonl"
    server = tracking_server(folder / "server") if options.store == "server" else nullcontext((None, None))
    with server as (uri, pid), virtual_cluster(options.nodes, options.cores) as address:
        store = TrackingStore(uri or f"sqlite:///{folder}/mlflow.db")
        session = create_sweep(
            spec, TrialFactory(definition, spec.base, dataset), store, storage_location=str(folder / "storage")
        )
        monitor = ResourceMonitor(log, [max(1, int(s * options.trials)) for s in MARKS], folder, pid)
        monitor.start()
        profile = cProfile.Profile() if options.profile else None
        start = time.monotonic()
        if profile is not None:
            profile.enable()
        simulated = SimulatedTrial(options.seconds, options.store != "none", str(log))
        resources = Resources(address, 1.0, 0.0, options.max_concurrent)
        callbacks = [ProgressDisplay(), MlflowReport(["python", "sweeps/search.py", "--resume", "…"]), TablePrinter()]
        session.run(RayBackend(resources, simulated), callbacks=callbacks)
        seconds = time.monotonic() - start
        if profile is not None:
            profile.disable()
            pstats.Stats(profile, stream=sys.stderr).sort_stats("cumulative").print_stats(70)
        monitor.stopped.set()
        monitor.join()
        results = {"seconds": seconds, "growth": monitor.rows, **delays(log, options.cores)}
        if options.store != "none":
            results["reading"] = measure_reading(session)
        return results


def delays(log: Path, cores: int) -> dict[str, Any]:
    """Evaluate the log of the trials: scheduling delays, durations of logging, and throughput.

    A scheduling delay is the time from the end of a trial, or from the report of the epoch at which it was stopped, to
    the begin of the next trial in the same process.
    """
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines.sort(key=lambda line: line["time"])
    begins = [line["time"] for line in lines if line["event"] == "begin"]
    ends: dict[str, float] = {}
    for line in lines:
        ends[line["trial_id"]] = line["time"]
    # Tune reuses a trial's process for the next trial.
    lines_by_process: dict[int, list[dict[str, Any]]] = {}
    for line in lines:
        lines_by_process.setdefault(line["pid"], []).append(line)
    pairs = [
        pair
        for process_lines in lines_by_process.values()
        for pair in itertools.pairwise(process_lines)
        if pair[1]["event"] == "begin"
    ]
    waits = [begin["time"] - end["time"] for end, begin in sorted(pairs, key=lambda pair: pair[1]["time"])]
    logging_seconds = [line["logging_seconds"] for line in lines if line["event"] == "epoch" and line["epoch"] < 9]
    # From the begin of the first trial that had to wait for a core to that of the last trial.
    steady_start, steady_end = begins[cores] if len(begins) > cores else begins[0], begins[-1]
    steady_lines = [line for line in lines if steady_start <= line["time"] <= steady_end]
    running, max_running = 0, 0
    for line in lines:
        running += (line["event"] == "begin") - (ends[line["trial_id"]] == line["time"])
        max_running = max(max_running, running)
    duration = max(1e-9, steady_end - steady_start)
    return {
        "ramp_s": steady_start - begins[0], "max_concurrent": max_running,
        "processes": len({line["pid"] for line in lines}),
        "delay_s": quantiles(waits), "delay_first_half_s": quantiles(waits[: len(waits) // 2]),
        "delay_second_half_s": quantiles(waits[len(waits) // 2 :]),
        "metric_batch_s": quantiles(logging_seconds),
        "epochs_per_s": sum(line["event"] == "epoch" for line in steady_lines) / duration,
        "trials_per_s": sum(line["event"] == "begin" for line in steady_lines) / duration,
    }  # fmt: skip


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Return median, 95th percentile and maximum; empty for fewer than two values."""
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=20)
    return {"median": cuts[9], "p95": cuts[18], "max": max(values)}


def measure_reading(session: Any) -> dict[str, float]:
    """Measure the seconds of reading all results and one learning curve from the tracking store."""
    start = time.perf_counter()
    results = session.results()
    results_end = time.perf_counter()
    for result in results[:50]:
        session.store.metric_history(result.run_id, "val/top1")
    curve_seconds = (time.perf_counter() - results_end) / len(results[:50])
    return {"trials": len(results), "trials_s": results_end - start, "curve_s": curve_seconds}


def measure_report(folder: Path, trials: int, epochs: int) -> list[dict[str, float]]:
    """Measure the processor time of each part of the report on simulated trials, and the size of its page."""
    from fgst.sweep.definition import TrialFactory
    from fgst.sweep.report.html import ReportData, write_report
    from fgst.sweep.report.tables import print_table, to_csv
    from fgst.sweep.results import TrialResult, best_result, build_rows
    from fgst.sweep.search import Search
    from fgst.sweep.spec import EarlyStopping, build_spec

    definition, base, dataset = definition_and_base(folder, epochs)
    spec = build_spec(definition, base, dataset, limit=trials, early_stop=EarlyStopping(1, 3), search="random")
    search = Search(spec, TrialFactory(definition, spec.base, dataset), None, "report")
    all_results, curves = [], {}
    while (trial := search.ask()) is not None:
        values: dict[int, float] = {}
        for epoch in range(1, epochs + 1):
            values[epoch] = accuracy(trial, epoch)
            if stopped := search.on_result(trial.trial_id, epoch, {"val/top1": values[epoch]}):
                break
        status, seed = TrialStatus.PRUNED if stopped else TrialStatus.FINISHED, trial.config.train.seed
        metrics = {"val/top1": values[epoch], "test/top1": values[epoch], "minutes": 1.0, "device_seconds": 60.0}
        search.tell(trial.trial_id, status, metrics, trial)
        all_results.append(
            TrialResult(trial.trial_id, trial.label, seed, dict(trial.params), trial.trial_id, status, metrics)
        )
        curves[trial.trial_id] = {"val/top1": values, "train/loss": {e: 100 - v for e, v in values.items()}}
    rows = []
    for share in MARKS[1:]:
        results = all_results[: int(share * len(all_results))]
        times = {"trials": float(len(results))}

        def timed(name: str, call: Any, times: dict[str, float] = times) -> Any:
            start = time.process_time()
            result = call()
            times[name] = time.process_time() - start
            return result

        def write_all_parts(results: list[TrialResult] = results, timed: Any = timed) -> Path:
            table = timed("rows_s", lambda: build_rows(spec, results))
            timed("best_s", lambda: best_result(spec, results))
            with (folder / "table.txt").open("w") as file, redirect_stdout(file):
                timed("table_s", lambda: print_table(spec, table, None))
            timed("csv_s", lambda: to_csv(spec, table))
            data = ReportData(spec, results, curves, search.study, "0" * 32, ["python", "…"])
            return timed("page_s", lambda: write_report(data, folder / "page"))

        times["page_kb"] = write_all_parts().stat().st_size / 1000
        rows.append(times)
        print(json.dumps({k: round(v, 3) for k, v in times.items()}), file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000, help="number of trials (default: %(default)s)")
    parser.add_argument("--cores", type=int, default=64, help="virtual cores of all nodes (default: %(default)s)")
    parser.add_argument("--max-concurrent", type=int, help="limit of concurrent trials; default: all cores")
    parser.add_argument("--nodes", type=int, default=4, help="number of virtual nodes (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=9, help="epochs of a trial (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of an epoch (default: %(default)s)")
    parser.add_argument(
        "--seeds", type=int, default=1, help="seeds of a trial, with --only search (default: %(default)s)"
    )
    parser.add_argument(
        "--search", default="optuna", choices=("optuna", "random"), help="search algorithm (default: %(default)s)"
    )
    parser.add_argument("--early-stop", action=argparse.BooleanOptionalAction, default=True, help="stop trials early")
    parser.add_argument("--store", choices=("server", "sqlite", "none"), default="server", help="tracking store")
    parser.add_argument("--only", choices=("search", "report", "sweep"), help="part to measure; default: all")
    parser.add_argument("--profile", action="store_true", help="profile the driver")
    parser.add_argument("--dir", help="folder for all files; default: a temporary folder")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = Path(options.dir or tempfile.mkdtemp(prefix="fgst-scale-")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # if this process runs as root, PostgreSQL runs as another user
    measurements: dict[str, Any] = {}
    try:
        if options.only in (None, "search"):
            (folder / "search").mkdir()
            measurements["search"] = measure_search(folder / "search", options.trials, options.epochs, options.seeds)
        if options.only in (None, "report"):
            (folder / "report").mkdir()
            measurements["report"] = measure_report(folder / "report", options.trials, options.epochs)
        if options.only in (None, "sweep"):
            measurements |= measure_sweep(folder, options)
    finally:
        if not options.dir:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(measurements, indent=1))


if __name__ == "__main__":
    main()
