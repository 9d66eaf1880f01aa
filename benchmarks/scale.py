"""What a sweep of a thousand trials costs its driver, its tracking server and its report; what grows, and how fast.

The engine, the search, MLflow and the report are the real ones; the trials sleep through their epochs, and the cluster
is a virtual one of several nodes on this machine, whose cores are pretended. So 64 trials run at a time on two cores.

  python -m benchmarks.scale                                       # 1,000 trials, 64 at a time, PostgreSQL: 15 minutes
  python -m benchmarks.scale --trials 250 --store none             # without MLflow: what Ray Tune and the search take
  python -m benchmarks.scale --only search --trials 1000           # Optuna alone
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
MARKS = (0.05, 0.25, 0.5, 0.75, 1.0)  # of the trials, where growth is measured


@contextmanager
def tracking_server(folder: Path) -> Iterator[tuple[str, int]]:
    """PostgreSQL and MLflow, as ``make server`` starts them: the URI, and the process's id."""
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
def virtual_cluster(nodes: int, together: int) -> Iterator[str]:
    """A Ray cluster of ``nodes`` nodes that pretend to have ``together`` cores in all; its address."""
    from ray.cluster_utils import Cluster

    from fgst.sweep.backends.ray_session import quieten

    quieten()
    patient = {
        "worker_register_timeout_seconds": 600,  # two cores start 64 processes at once
        "prestart_worker_first_driver": False,
    }
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": patient},
    )
    try:
        for number in range(nodes):
            cluster.add_node(num_cpus=together // nodes + (number < together % nodes))
        yield cluster.address
    finally:
        cluster.shutdown()


class Watch(threading.Thread):
    """Looks at the driver, and at what serves it, each time that so many more trials have ended."""

    def __init__(self, log: Path, marks: Sequence[int], folder: Path, server: int | None) -> None:
        super().__init__(daemon=True)
        self._log, self._marks, self._folder, self._server = log, list(marks), folder, server
        self._began, self.over = time.monotonic(), threading.Event()
        self.rows: list[dict[str, Any]] = []

    def run(self) -> None:
        while self._marks and not self.over.wait(0.5):
            begun = self._log.read_bytes().count(b'"begin"') if self._log.exists() else 0
            if begun >= self._marks[0]:
                self._marks.pop(0)
                self.rows.append(self._look(begun))

    def _look(self, begun: int) -> dict[str, Any]:
        driver = psutil.Process()
        row: dict[str, Any] = {"trials": begun, "seconds": time.monotonic() - self._began}
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
    name = process.name()
    if name.startswith("ray::"):
        return "trials"
    return name if name in ("gcs_server", "raylet") else "other"


def _server_processes(pid: int, folder: Path) -> list[psutil.Process]:
    """MLflow's and PostgreSQL's, which are nobody's children."""
    postgres = int((folder / "postgres" / "postmaster.pid").read_text().splitlines()[0])
    family = [psutil.Process(pid), psutil.Process(postgres)]
    return family + [child for parent in family for child in parent.children(recursive=True)]


def _cpu(processes: Sequence[psutil.Process]) -> float:
    seconds = 0.0
    for process in processes:
        with suppress(psutil.Error):
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds


def _uss(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().uss / 2**20)
    except psutil.Error:
        return 0.0


def question_and_base(folder: Path, epochs: int) -> tuple[Any, Any, Any]:
    """A joint search on the demo's skeleton: eight parameters, as ``sweeps/search.py`` has them."""
    import runpy

    from fgst.config import PRESETS
    from fgst.data.synthetic import make_demo

    dataset = make_demo(folder / "demo", clips=48, classes=4)
    base = PRESETS["tiny"].with_values({"data.dataset": str(dataset.path), "train.epochs": epochs})
    return runpy.run_path(str(ROOT / "sweeps" / "search.py"))["definition"], base, dataset


def measure_search(folder: Path, trials: int, epochs: int, seeds: int) -> list[dict[str, float]]:
    """Processor time of a suggestion, of an epoch's report and of an end, as the study in sqlite grows."""
    from fgst.sweep.definition import TrialFactory
    from fgst.sweep.search import Search
    from fgst.sweep.spec import EarlyStopping, build_spec

    question, base, dataset = question_and_base(folder, epochs)
    spec = build_spec(question, base, dataset, limit=trials, early_stop=EarlyStopping(1, 3), seeds=seeds)
    search = Search(spec, TrialFactory(question, spec.base, dataset), f"sqlite:///{folder}/optuna.db", "scale")
    times: dict[str, list[float]] = {"ask": [], "result": [], "tell": []}

    def timed(what: str, call: Any, *arguments: Any) -> Any:
        began = time.process_time()  # other work on the machine comes and goes
        answer = call(*arguments)
        times[what].append(time.process_time() - began)
        return answer

    rows, marks, done = [], [max(1, int(share * trials)) for share in MARKS], 0
    while (trial := timed("ask", search.ask)) is not None:
        status, metrics = TrialStatus.FINISHED, {}
        for epoch in range(1, epochs + 1):
            metrics = {"val/top1": accuracy(trial, epoch)}
            if timed("result", search.on_result, trial.trial_id, epoch, metrics):
                status = TrialStatus.PRUNED
                break
        timed("tell", search.tell, trial.trial_id, status, metrics, trial)
        done += 1
        if done in marks:
            row = {"trials": float(done)} | {
                f"{what}_cpu_ms": 1000 * statistics.median(seconds[-30:]) for what, seconds in times.items()
            }
            rows.append(row)
            print(json.dumps({k: round(v, 1) for k, v in row.items()}), file=sys.stderr, flush=True)
    return rows


def measure_sweep(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The sweep itself; then its report, piece by piece."""
    from fgst.sweep.backends.ray import RayBackend
    from fgst.sweep.backends.resources import Resources
    from fgst.sweep.callbacks import MlflowReport, ProgressDisplay, TablePrinter
    from fgst.sweep.definition import TrialFactory
    from fgst.sweep.runner import create_sweep
    from fgst.sweep.spec import EarlyStopping, build_spec
    from fgst.tracking.store import TrackingStore

    question, base, dataset = question_and_base(folder, options.epochs)
    stop = EarlyStopping(1, 3) if options.early_stop else None
    spec = build_spec(question, base, dataset, limit=options.trials, early_stop=stop, search=options.search)
    log = folder / "log.jsonl"
    server = tracking_server(folder / "server") if options.store == "server" else nullcontext((None, None))
    with server as (uri, pid), virtual_cluster(options.nodes, options.together) as address:
        store = TrackingStore(uri or f"sqlite:///{folder}/mlflow.db")
        session = create_sweep(
            spec, TrialFactory(question, spec.base, dataset), store, storage_location=str(folder / "storage")
        )
        watch = Watch(log, [max(1, int(s * options.trials)) for s in MARKS], folder, pid)
        watch.start()
        profile = cProfile.Profile() if options.profile else None
        began = time.monotonic()
        if profile is not None:
            profile.enable()
        simulated = SimulatedTrial(options.seconds, options.store != "none", str(log))
        resources = Resources(address, 1.0, 0.0, options.max_concurrent)
        callbacks = [ProgressDisplay(), MlflowReport(["python", "sweeps/search.py", "--resume", "…"]), TablePrinter()]
        session.run(RayBackend(resources, simulated), callbacks=callbacks)
        seconds = time.monotonic() - began
        if profile is not None:
            profile.disable()
            pstats.Stats(profile, stream=sys.stderr).sort_stats("cumulative").print_stats(70)
        watch.over.set()
        watch.join()
        found = {"seconds": seconds, "growth": watch.rows, **delays(log, options.together)}
        if options.store != "none":
            found["reading"] = measure_reading(session)
        return found


def delays(log: Path, together: int) -> dict[str, Any]:
    """From a trial's end, or the report of the epoch at which it was stopped, to the next one's begin."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines.sort(key=lambda line: line["at"])
    begins = [line["at"] for line in lines if line["what"] == "begin"]
    last: dict[str, float] = {}
    for line in lines:
        last[line["key"]] = line["at"]
    # Tune keeps a trial's process for the next one: a process is a place.
    places: dict[int, list[dict[str, Any]]] = {}
    for line in lines:
        places.setdefault(line["pid"], []).append(line)
    pairs = [pair for place in places.values() for pair in itertools.pairwise(place) if pair[1]["what"] == "begin"]
    waits = [later["at"] - before["at"] for before, later in sorted(pairs, key=lambda pair: pair[1]["at"])]
    writing = [line["writing"] for line in lines if line["what"] == "epoch" and line["epoch"] < 9]
    steady = (begins[together] if len(begins) > together else begins[0], begins[-1])
    inside = [line for line in lines if steady[0] <= line["at"] <= steady[1]]
    running, most = 0, 0
    for line in lines:
        running += (line["what"] == "begin") - (last[line["key"]] == line["at"])
        most = max(most, running)
    span = max(1e-9, steady[1] - steady[0])
    return {
        "ramp_s": steady[0] - begins[0], "at_once": most, "processes": len({line["pid"] for line in lines}),
        "delay_s": quantiles(waits), "delay_first_half_s": quantiles(waits[: len(waits) // 2]),
        "delay_second_half_s": quantiles(waits[len(waits) // 2 :]),
        "metric_batch_s": quantiles(writing),
        "epochs_per_s": sum(line["what"] == "epoch" for line in inside) / span,
        "trials_per_s": sum(line["what"] == "begin" for line in inside) / span,
    }  # fmt: skip


def quantiles(values: Sequence[float]) -> dict[str, float]:
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=20)
    return {"median": cuts[9], "p95": cuts[18], "max": max(values)}


def measure_reading(session: Any) -> dict[str, float]:
    """Seconds in which what the report needs is read from the store."""

    began = time.perf_counter()
    results = session.results()
    read = time.perf_counter()
    for result in results[:50]:
        session.store.metric_history(result.run_id, "val/top1")
    a_curve = (time.perf_counter() - read) / len(results[:50])
    return {"trials": len(results), "trials_s": read - began, "a_curve_s": a_curve}


def measure_report(folder: Path, trials: int, epochs: int) -> list[dict[str, float]]:
    """Processor time of each piece of the report on so many made-up trials, and the page's size."""
    from fgst.sweep.definition import TrialFactory
    from fgst.sweep.report.html import ReportData, write_report
    from fgst.sweep.report.tables import print_table, to_csv
    from fgst.sweep.results import TrialResult, best_result, build_rows
    from fgst.sweep.search import Search
    from fgst.sweep.spec import EarlyStopping, build_spec

    question, base, dataset = question_and_base(folder, epochs)
    spec = build_spec(question, base, dataset, limit=trials, early_stop=EarlyStopping(1, 3), search="random")
    search = Search(spec, TrialFactory(question, spec.base, dataset), None, "report")
    everything, curves = [], {}
    while (trial := search.ask()) is not None:
        values: dict[int, float] = {}
        for epoch in range(1, epochs + 1):
            values[epoch] = accuracy(trial, epoch)
            if stopped := search.on_result(trial.trial_id, epoch, {"val/top1": values[epoch]}):
                break
        status, seed = TrialStatus.PRUNED if stopped else TrialStatus.FINISHED, trial.config.train.seed
        metrics = {"val/top1": values[epoch], "test/top1": values[epoch], "minutes": 1.0, "device_seconds": 60.0}
        search.tell(trial.trial_id, status, metrics, trial)
        everything.append(
            TrialResult(trial.trial_id, trial.label, seed, dict(trial.params), trial.trial_id, status, metrics)
        )
        curves[trial.trial_id] = {"val/top1": values, "train/loss": {e: 100 - v for e, v in values.items()}}
    rows = []
    for share in MARKS[1:]:
        results = everything[: int(share * len(everything))]
        times = {"trials": float(len(results))}

        def timed(what: str, call: Any, into: dict[str, float] = times) -> Any:
            began = time.process_time()
            answer = call()
            into[what] = time.process_time() - began
            return answer

        def pieces(results: list[TrialResult] = results, timed: Any = timed) -> Path:
            table = timed("rows_s", lambda: build_rows(spec, results))
            timed("best_s", lambda: best_result(spec, results))
            with (folder / "table.txt").open("w") as file, redirect_stdout(file):
                timed("table_s", lambda: print_table(spec, table, None))
            timed("csv_s", lambda: to_csv(spec, table))
            told = ReportData(spec, results, curves, search.study, "0" * 32, ["python", "…"])
            return timed("page_s", lambda: write_report(told, folder / "page"))

        times["page_kb"] = pieces().stat().st_size / 1000
        rows.append(times)
        print(json.dumps({k: round(v, 3) for k, v in times.items()}), file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000, help="(default: %(default)s)")
    parser.add_argument("--together", type=int, default=64, help="pretended cores of all nodes (default: %(default)s)")
    parser.add_argument("--max-concurrent", type=int, help="as of a sweep; default: what fits")
    parser.add_argument("--nodes", type=int, default=4, help="virtual ones (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=9, help="(default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of an epoch (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="with --only search (default: %(default)s)")
    parser.add_argument("--search", default="optuna", choices=("optuna", "random"), help="(default: %(default)s)")
    parser.add_argument("--early-stop", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--store", choices=("server", "sqlite", "none"), default="server", help="where trials write")
    parser.add_argument("--only", choices=("search", "report", "sweep"), help="a part (default: all)")
    parser.add_argument("--profile", action="store_true", help="where the driver's time goes")
    parser.add_argument("--dir", help="keep everything there; default: a folder that is removed")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = Path(options.dir or tempfile.mkdtemp(prefix="fgst-scale-")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)  # PostgreSQL runs as another user where this is root
    found: dict[str, Any] = {}
    try:
        if options.only in (None, "search"):
            (folder / "search").mkdir()
            found["search"] = measure_search(folder / "search", options.trials, options.epochs, options.seeds)
        if options.only in (None, "report"):
            (folder / "report").mkdir()
            found["report"] = measure_report(folder / "report", options.trials, options.epochs)
        if options.only in (None, "sweep"):
            found |= measure_sweep(folder, options)
    finally:
        if not options.dir:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
