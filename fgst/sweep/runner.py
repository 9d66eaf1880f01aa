"""A sweep from its beginning, or from where it was, to what it leaves: runs in MLflow, table, page, next command."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import secrets
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fgst.data.cache import is_remote
from fgst.errors import InputError, Interrupted, is_disk_full
from fgst.sweep import storage
from fgst.sweep.backends.ray import Progress, Resources, RunTrial, run_local, run_on_ray
from fgst.sweep.background import BackgroundWorker
from fgst.sweep.definition import SweepDefinition, SweepSpec, TrialFactory
from fgst.sweep.modality_ensemble import build_ensemble, promote_ensemble, refit
from fgst.sweep.progress import ProgressView
from fgst.sweep.report.tables import print_table, to_csv, to_markdown
from fgst.sweep.results import TrialResult, baseline_label, best_result, build_rows
from fgst.sweep.search import Search
from fgst.sweep.stopping import Budget
from fgst.sweep.trial import SPOOLS, TrialContext, run_trial
from fgst.tracking.spool import TrackingServerUnavailable
from fgst.tracking.store import TrackedRun, TrackingStore
from fgst.tracking.tags import Tags

CURVES = ("val/top1", "train/loss")  # that the report draws
_ENDED = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted"}


def begin(spec: SweepSpec, args: argparse.Namespace, *, known: bool = False, **tags: str) -> SweepRunner:
    """Open the sweep's run, with its specification inside, so that it can be taken up from its id alone.

    Args:
        known: trials that an earlier sweep trained to their end are taken from there.
        tags: more of them for its run.
    """
    store = TrackingStore(args.tracking_uri)
    root = storage.resolve(args.storage)
    for_study = Path.home() / ".local" / "share" / "fgst" if is_remote(root) else Path(root)
    experiment = store.experiment(spec.experiment)
    name = f"{spec.name} {spec.base.data.modality}"
    tags |= {
        Tags.KIND: "sweep",
        "mlflow.source.name": f"sweeps/{spec.name}.py",
        Tags.SWEEP: spec.name,
        Tags.DATASET_DIGEST: spec.dataset_digest,
        Tags.PROTOCOL: spec.base.data.protocol,
    }
    parent = store.start(experiment, f"{spec.name}-{time.time_ns()}", name, tags)
    place = f"{root}/{parent.run_id}"
    try:
        storage.prepare(place)
        storage.prepare(str(for_study))
    except InputError as error:
        parent.finish("FAILED", str(error))
        raise
    study = args.study_storage or f"sqlite:///{for_study / 'optuna.db'}"
    parent.set_tags({Tags.STORAGE: place, Tags.STUDY_STORAGE: study})
    if known:
        found = {trial.trial_id: store.finished(experiment, trial.trial_id) for trial in spec.trials}
        parent.set_tags(
            {Tags.REUSED_TRIAL + trial_id: run.info.run_id for trial_id, run in found.items() if run is not None}
        )
    varied = {p.name: list(p.values) if p.values else f"{p.low} to {p.high}" for p in spec.parameters}
    parent.log_params(
        {"sweep": spec.name, "search": spec.search, "trials": spec.total, "seeds": spec.seeds}
        | {f"values.{name.replace('/', '-')}": values for name, values in varied.items()}
    )
    with tempfile.TemporaryDirectory(prefix="fgst-sweep-") as folder:
        (Path(folder) / "sweep.json").write_text(spec.to_json())
        parent.log_artifacts(Path(folder))
    return SweepRunner(spec, store, experiment, parent, place, study)


def begun(question: SweepDefinition, sweep_id: str, ignored: Sequence[str], args: argparse.Namespace) -> SweepRunner:
    """A sweep that was begun, by the id of its run.

    Raises:
        InputError: if there is no such sweep, it is another question's, or options were given that it cannot follow.
    """
    store = TrackingStore(args.tracking_uri)
    run = store.run(sweep_id)
    if run.data.tags.get(Tags.KIND) != "sweep" or Tags.STORAGE not in run.data.tags:
        raise InputError(f"run {sweep_id} is not a sweep; --resume takes the id that the sweep printed at its start")
    with store.artifacts(sweep_id, "sweep.json") as file:
        spec = SweepSpec.from_json(file.read_bytes())
    if spec.name != question.name:
        raise InputError(f"run {sweep_id} is a sweep of sweeps/{spec.name}.py; resume it with that script")
    if ignored:
        raise InputError(f"--resume goes on with the sweep as it was begun; leave {', '.join(ignored)} out")
    if args.trials:
        if spec.search == "grid":
            raise InputError("--trials is for a search, and this sweep is a grid")
        spec = dataclasses.replace(spec, limit=args.trials)
    place = run.data.tags[Tags.STORAGE]
    storage.prepare(place)
    study = (
        args.study_storage or run.data.tags.get(Tags.STUDY_STORAGE) or f"sqlite:///{Path(place).parent / 'optuna.db'}"
    )
    if study.startswith("sqlite:///"):
        Path(study.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return SweepRunner(spec, store, run.info.experiment_id, store.open_run(sweep_id), place, study, resumed=True)


@dataclass
class SweepRunner:
    """A sweep, its run in MLflow, its folder or URI for checkpoints, and its study."""

    spec: SweepSpec
    store: TrackingStore
    experiment: str
    parent: TrackedRun
    storage: str
    study: str
    resumed: bool = False
    heard: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)  # by key, metric and epoch

    def results(self) -> list[TrialResult]:
        """How all trials stand that were begun, in the order in which they were; first those of earlier sweeps."""
        self.store.flush_spools(storage.on_this_node(self.storage) / SPOOLS)
        found = []
        mine = {Tags.REUSED_TRIAL + trial.trial_id: trial for trial in self.spec.trials}
        for tag, run_id in sorted(self.store.run(self.parent.run_id).data.tags.items()):
            if tag in mine:
                trial, run = mine[tag], self.store.run(run_id)
                found.append(
                    TrialResult(
                        trial.trial_id, trial.label, trial.config.train.seed, dict(trial.params), run_id, "finished",
                        run.data.metrics, used_micro_batches=Tags.MICRO_BATCHES in run.data.tags,
                    )
                )  # fmt: skip
        for run in self.store.children(self.parent.run_id):
            tags = run.data.tags
            params = dict(json.loads(tags.get(Tags.PARAMS, "[]")))
            status = tags.get(Tags.STATUS) or _ENDED.get(run.info.status, "running")
            found.append(
                TrialResult(
                    tags.get(Tags.TRIAL_ID, ""), tags.get(Tags.LABEL, ""), int(tags.get(Tags.SEED, "0")), params,
                    run.info.run_id, status, run.data.metrics, tags.get(Tags.REASON, ""), Tags.MICRO_BATCHES in tags,
                )
            )  # fmt: skip
        return found

    def run(self, trials: TrialFactory, args: argparse.Namespace, again: str, run: RunTrial = run_trial) -> None:
        """Run what is not done yet, and tell what came of all.

        Args:
            run: what a trial on Ray is.

        Raises:
            Interrupted: if something is left to do that the user has to ask for again.
        """
        spec, before = self.spec, self.results()
        done = sum(result.status in ("finished", "pruned") for result in before)
        try:
            history = (lambda run_id: self.store.metric_history(run_id, "val/top1")) if self.resumed else None
            search = Search(spec, trials, self.study, self.parent.run_id, before, history)
        except InputError as error:
            self.parent.finish("FAILED", str(error))
            raise
        self.store.client.update_run(self.parent.run_id, status="RUNNING")
        print(
            f"{spec.title} {spec.total} trials on {spec.experiment}"
            + (f", {done} of them finished before" if done else "")
            + f"\nsweep {self.parent.run_id} in {self.store.uri}\nto look: {self.store.ui_url(self.experiment)}",
            file=sys.stderr,
        )
        budget = Budget(args.max_hours, args.max_trials, args.until_top1)
        context = TrialContext(
            self.store.uri, self.experiment, self.parent.run_id, self.storage,
            price_per_hour=args.price_per_hour, latency="latency" in spec.objectives,
            system_metrics=args.system_metrics, driver=secrets.token_hex(4),
        )  # fmt: skip
        interrupted = False
        try:
            if not search.exhausted:
                with ProgressView(spec, done) as view, BackgroundWorker() as aside:

                    def listen(progress: Progress) -> None:
                        self._hear(progress)
                        aside.do(lambda: self._settle(progress))
                        view.listen(progress)

                    self._train(search, context, budget, listen, args, run)
                    if aside.disk_full_at_the_end():
                        budget.disk_full()
        except KeyboardInterrupt:
            interrupted = True
        except TrackingServerUnavailable as error:
            raise Interrupted(f"{error}. Go on with: {again}") from None
        except Exception as error:
            self.parent.finish("FAILED", f"{type(error).__name__}: {error}")
            raise
        try:
            self._conclude(search, trials, budget, again, interrupted, args)
        except TrackingServerUnavailable as error:
            raise Interrupted(f"{error}. Go on with: {again}") from None
        except Exception as error:
            if not is_disk_full(error):
                raise
            raise Interrupted(f"a full disk: make room, then go on with: {again}") from None

    def _train(
        self,
        search: Search,
        context: TrialContext,
        budget: Budget,
        listen: Any,
        args: argparse.Namespace,
        run: RunTrial,
    ) -> None:
        if args.local:
            cores = len(os.sched_getaffinity(0))
            threads = int(args.cpus_per_trial or cores)
            run_local(search, dataclasses.replace(context, threads=threads, devices=threads), budget, listen)
            return
        gpus = args.gpus_per_trial
        if gpus == "auto":
            gpus = _measured_share(search.spec)
        resources = Resources(args.address, args.cpus_per_trial, gpus, args.max_concurrent)
        run_on_ray(search, context, resources, budget, listen, search.spec.total, run)

    def _hear(self, progress: Progress) -> None:
        """Keep what the report draws."""
        if progress.state == "running":
            heard, epoch = self.heard.setdefault(progress.trial.trial_id, {}), int(progress.metrics["epoch"])
            for metric in CURVES:
                if metric in progress.metrics:
                    heard.setdefault(metric, {})[epoch] = progress.metrics[metric]

    def _settle(self, progress: Progress) -> None:
        """Write down how a trial ended, where the trial itself could not."""
        if progress.state in ("running", "finished"):
            return
        trial = progress.trial
        if progress.state == "failed" and not progress.reason:
            return  # it has said so itself
        self.store.flush_spools(storage.on_this_node(self.storage) / SPOOLS)
        run = self.store.start(
            self.experiment, trial.trial_id, trial.name,
            {Tags.LABEL: trial.label, Tags.PARAMS: json.dumps(list(trial.params)), Tags.KIND: "trial",
             Tags.SEED: str(trial.config.train.seed)},
            self.parent.run_id,
        )  # fmt: skip
        if progress.state == "failed":
            run.finish("FAILED", progress.reason)
        elif progress.state == "pruned":
            run.finish("KILLED", f"stopped early after epoch {progress.metrics.get('epoch', 0):g}")
            storage.TrialStorage(self.storage, trial.trial_id).remove()
        else:
            run.finish("KILLED")
        run.set_tags({Tags.STATUS: progress.state})

    def _conclude(
        self,
        search: Search,
        trials: TrialFactory,
        budget: Budget,
        again: str,
        interrupted: bool,
        args: argparse.Namespace,
    ) -> None:
        spec, now = self.spec, self.results()
        results = [dataclasses.replace(o, status="interrupted") if o.status == "running" else o for o in now]
        best, baseline = best_result(spec, results), baseline_label(spec, results)
        marked = best.label if best is not None and "val/top1" in best.metrics else None
        print_table(spec, build_rows(spec, results), marked, baseline)
        for result in now:
            if result.status == "running":
                self.store.client.set_terminated(result.run_id, "KILLED")
                self.store.client.set_tag(result.run_id, Tags.STATUS, "interrupted")
        if self.store.remote and any(Tags.SPOOLED in run.data.tags for run in self.store.children(self.parent.run_id)):
            told = (
                f"the tracking server was away meanwhile; nothing is missing (see the trials with tag {Tags.SPOOLED})"
            )
            print(told, file=sys.stderr)
        failed = [result for result in results if result.status == "failed"]
        begun_again = [result for result in results if result.status == "interrupted"]
        left = begun_again or not search.exhausted
        notes = [f"stopped by {budget.stopped}"] if budget.stopped else []
        self._report(results, search, again, notes)
        for result in failed:
            print(f"failed: {result.label} s{result.seed}: {result.reason}", file=sys.stderr)
        disk_full = "disk" in budget.stopped
        if left and (interrupted or disk_full or not budget.stopped):
            self.parent.finish("KILLED", budget.stopped or "interrupted")
            what = f"{len(begun_again)} trials are in the middle" if begun_again else "not all trials were begun"
            raise Interrupted(f"{budget.stopped + ': ' if disk_full else ''}{what}. Go on with: {again}")
        if budget.stopped and left:
            self.parent.set_tags({Tags.STOP_REASON: budget.stopped})
        elif Tags.STOP_REASON in self.store.run(self.parent.run_id).data.tags:  # an earlier run of it was
            self.store.client.delete_tag(self.parent.run_id, Tags.STOP_REASON)
        self.parent.finish("FINISHED" if best is not None else "FAILED")
        if not failed and not left:
            storage.remove(self.storage)  # all of it is in MLflow now
        if left:
            print(f"stopped by {budget.stopped}; what is left goes on with: {again}", file=sys.stderr)
        if best is None:
            sys.exit(1)
        if failed:
            print(f"{len(failed)} of {len(results)} trials failed; try them again with: {again}", file=sys.stderr)
        fused = build_ensemble(self, results) if spec.builds_ensemble and not left and not failed else ""
        if fused and spec.refit:
            refit(self, trials, fused, args, again)  # it has its own last word
            return
        if fused:
            promote_ensemble(self, fused)
        uri = f" --tracking-uri {args.tracking_uri}" if args.tracking_uri else ""
        if fused:
            print(f"the ensemble:\npython -m fgst.evaluate --run-id {fused}{uri}", flush=True)
            return
        chosen = "val/top1" in best.metrics
        print("the best trial by validation:" if chosen else "a trial (nothing was held out to choose by):")
        print(f"python -m fgst.evaluate --run-id {best.run_id}{uri}", flush=True)
        if failed:
            sys.exit(1)

    def _curves(self, result: TrialResult) -> dict[str, dict[int, float]]:
        """A trial's curves, as they were heard; from the store where an earlier run of the sweep heard a part of them.

        Reading all of them takes two requests a trial, minutes for a thousand trials on a server.
        """
        heard = self.heard.get(result.trial_id, {})
        curves = {}
        for metric in CURVES:
            values = heard.get(metric, {})
            last = max(values, default=0)
            whole = len(values) == last and values.get(last) == result.metrics.get(metric)
            curves[metric] = values if whole else self.store.metric_history(result.run_id, metric)
        return curves

    def _report(self, results: list[TrialResult], search: Search, again: str, notes: list[str]) -> None:
        """Table, page and pictures into the sweep's run; the best's figures as its own."""
        from fgst.sweep.report.html import ReportData, write_report

        spec = self.spec
        rows = build_rows(spec, results)
        best = best_result(spec, results)
        used_micro_batches = [o.label for o in results if o.used_micro_batches]
        notes = notes + [f"out of memory, so half the batch at a time: {', '.join(used_micro_batches)}"] * bool(
            used_micro_batches
        )
        histories = {result.run_id: self._curves(result) for result in results}
        told = ReportData(spec, results, histories, search.study, self.parent.run_id, shlex.split(again), notes)
        with tempfile.TemporaryDirectory(prefix="fgst-report-") as name:
            folder = Path(name)
            (folder / "table.csv").write_text(to_csv(spec, rows))
            write_report(told, folder)
            self.parent.log_artifacts(folder)
        marked = best.label if best is not None and "val/top1" in best.metrics else None
        self.parent.set_tags({"mlflow.note.content": to_markdown(spec, rows, marked)})
        if best is not None:
            # Under the trials' own names: MLflow's list shows sweeps folded, and sorts them by the same columns.
            summary = {name: best.metrics[name] for name in ("val/top1", "test/top1") if name in best.metrics}
            for name in ("device_seconds", "cost"):
                if any(name in o.metrics for o in results):
                    summary[name] = sum(o.metrics.get(name, 0.0) for o in results)
            for status in ("finished", "pruned", "failed"):
                summary[f"trials_{status}"] = sum(o.status == status for o in results)
            self.parent.log_metrics(summary, step=0)
            self.parent.set_tags({Tags.BEST_RUN: best.run_id, Tags.BEST_LABEL: best.label})


def _measured_share(spec: SweepSpec) -> float:
    """The share of this machine's GPU that a trial gets, by measurement."""
    import torch

    from fgst.sweep.planning.gpu_sharing import choose_share, measure_throughput

    if not torch.cuda.is_available():
        raise InputError("--gpus-per-trial auto measures on this machine, and PyTorch sees no GPU here; give a number")
    print("measuring how many trials share the GPU best", file=sys.stderr)
    config = spec.trials[0].config if spec.trials else spec.base
    measured: dict[int, tuple[float, float]] = {}

    def throughput(count: int) -> float:
        if count not in measured:
            measured[count] = measure_throughput(config, config.data.dataset, "cuda", count)
        return measured[count][0]

    throughput(1)
    memory = measured[1][1]
    share = choose_share(memory, torch.cuda.get_device_properties(0).total_memory / 2**30, throughput)
    told = ", ".join(f"{count}: {rate:,.0f} clips/s" for count, (rate, _) in measured.items())
    print(f"--gpus-per-trial {share:g} ({told}; {memory:.1f} GiB a trial)", file=sys.stderr)
    return share
