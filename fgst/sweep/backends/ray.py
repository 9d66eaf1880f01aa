"""Trials on Ray Tune: on this machine or on a cluster.

Ray decides when and where a trial runs and restarts it if its process or node dies. The
:class:`~fgst.sweep.scheduler.TrialScheduler` decides which trial is next and which one stops; the classes below connect
it to Tune.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.tune.trainable import wrap_function

from fgst.data.cache import is_remote
from fgst.sweep.backends.base import RunTrial
from fgst.sweep.backends.preflight import alive_nodes, cluster_capacity, is_autoscaling
from fgst.sweep.backends.ray_session import call_interruptibly, ray_session
from fgst.sweep.backends.resources import Resources, max_concurrent_trials, resources_per_trial
from fgst.sweep.definition import Trial
from fgst.sweep.scheduler import TrialScheduler, UpdateListener
from fgst.sweep.search import Search
from fgst.sweep.status import StopReason, TrialExit, TrialStatus
from fgst.sweep.stopping import Budget
from fgst.sweep.trial import TrialContext, give_back_memory, run_trial
from fgst.training import preemption

logger = logging.getLogger(__name__)

# Restarts of a process by Ray. A trial counts its starts without progress itself (see trial.py); this limit is for
# processes that die before they can count.
MAX_RESTARTS = 50


@dataclass(frozen=True)
class RayBackend:
    """Runs trials on Ray.

    Attributes:
        resources: what trials get, and the address of the cluster.
        run_trial: runs a trial, e.g. a simulated one; Ray pickles it.
    """

    resources: Resources
    run_trial: RunTrial = run_trial

    def run(self, search: Search, context: TrialContext, budget: Budget, on_update: UpdateListener) -> None:
        """See :meth:`fgst.sweep.backends.base.Backend.run`.

        Raises:
            InputError: if no cluster answers at the address, or if it cannot provide the resources of a trial.
        """
        with ExitStack() as stack:
            stack.enter_context(ray_session(self.resources.address))
            # lazy: a process that simulates trials needs no torch, which the storage of checkpoints imports
            from fgst.sweep.storage import has_room

            nodes = cluster_capacity()
            per_trial = resources_per_trial(nodes, self.resources, search.spec.total)
            fitting = max_concurrent_trials(nodes, per_trial)
            threads = max(1, int(per_trial["CPU"])) if not per_trial["GPU"] else None
            context = dataclasses.replace(context, threads=threads, devices=per_trial["GPU"] or per_trial["CPU"])

            def has_capacity_excluding(full: set[str]) -> bool:
                if not has_room(context.storage):  # then every node is full
                    return False
                return is_autoscaling() or max_concurrent_trials(alive_nodes(excluding=full), per_trial) > 0

            scheduler = TrialScheduler(search, budget, on_update, has_capacity_excluding)
            limit = self.resources.max_concurrent
            if limit is None and (is_autoscaling() or not self.resources.address):
                limit = fitting  # otherwise no limit: nodes may be added by hand
            # Ray's own files. They stay on the driver's machine, because fgst does not read them.
            if is_remote(context.storage):
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fgst-ray-")))
            else:
                folder = Path(context.storage) / "ray"
                folder.mkdir(parents=True, exist_ok=True)
            stopper = InterruptStopper()
            tuner = tune.Tuner(
                tune.with_resources(
                    make_trainable(self.run_trial, context), functools.partial(_placement_group, per_trial)
                ),
                tune_config=tune.TuneConfig(
                    search_alg=SchedulerSearcher(scheduler),
                    scheduler=StoppingScheduler(scheduler),
                    num_samples=-1,
                    max_concurrent_trials=limit,
                    reuse_actors=True,
                    trial_dirname_creator=_trial_id,
                ),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=str(folder),
                    failure_config=tune.FailureConfig(max_failures=MAX_RESTARTS),
                    callbacks=[SchedulerCallback(scheduler, stopper)],
                    stop=stopper,
                    verbose=0,
                ),
            )
            with _max_pending_trials(limit or max(1, fitting // 4)):
                if not call_interruptibly(tuner.fit, stopper.stop):
                    budget.stop(StopReason.INTERRUPTED, "Ray's processes died")


def make_trainable(run: RunTrial, context: TrialContext) -> type:
    """Return the class that Ray runs in one process per concurrent trial; pickled with ``run`` and ``context``."""

    base: Any = wrap_function(functools.partial(_run_in_worker, run=run, context=context))

    class Trainable(base):
        def setup(self, config: dict[str, Any]) -> None:
            preemption.install_handler()  # in the process's main thread; the trial runs in another one
            super().setup(config)

    return Trainable


def _run_in_worker(
    config: dict[str, Any], run: RunTrial | None = None, context: TrialContext | None = None
) -> dict[str, Any]:
    """Run one trial in a worker process; returns Tune's last result of it."""
    assert run is not None
    assert context is not None

    def report(metrics: dict[str, float]) -> None:
        tune.report({**metrics, "state": TrialStatus.RUNNING.value})

    trial = Trial.from_json(config["trial"])
    exit = run(trial, context, report)
    if exit == TrialExit.PREEMPTED:
        os._exit(preemption.EXIT_CODE)  # Ray restarts the trial on a node with free resources
    give_back_memory()
    # Tune requires the metric of its search algorithm ("epoch") in every result.
    return {
        "state": TrialExit(exit).value,
        "node": ray.get_runtime_context().get_node_id(),
        "host": os.uname().nodename,
        "epoch": trial.config.train.epochs,
    }


class SchedulerSearcher(Searcher):
    """Tune's search algorithm: passes on the trials of a :class:`TrialScheduler`."""

    def __init__(self, scheduler: TrialScheduler) -> None:
        super().__init__(metric="epoch", mode="max")  # required by Tune; nothing is compared by it
        self._scheduler = scheduler

    def suggest(self, trial_id: str) -> Any:
        trial = self._scheduler.next_trial()
        if trial is not None:
            return {"trial": json.dumps(trial.to_dict()), "avoid": ",".join(sorted(self._scheduler.full_nodes))}
        return Searcher.FINISHED if self._scheduler.is_finished else None

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """Do nothing: :class:`SchedulerCallback` handles the ends of trials."""

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_bytes(b"")  # the state is in the study and in MLflow

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError

    def __reduce__(self) -> Any:
        return (Searcher, ())  # Tune pickles its settings; the study with its database stays in this process


class StoppingScheduler(FIFOScheduler):
    """Tune's trial scheduler: first in, first out; stops trials when the :class:`TrialScheduler` decides so."""

    def __init__(self, scheduler: TrialScheduler) -> None:
        super().__init__()
        self._scheduler = scheduler

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        # The inherited method goes through all trials of the sweep on every event.
        waiting = (trial for trial in tune_controller.get_live_trials() if trial.status == trial.PENDING)
        return min(waiting, key=lambda trial: self._scheduler.order[_trial_id(trial)], default=None)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if result.get("state") != TrialStatus.RUNNING:
            return str(FIFOScheduler.CONTINUE)
        metrics = {k: v for k, v in result.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        stop = self._scheduler.on_result(_trial_id(trial), metrics)
        return str(FIFOScheduler.STOP if stop else FIFOScheduler.CONTINUE)

    def __reduce__(self) -> Any:
        return (FIFOScheduler, ())


class InterruptStopper(tune.Stopper):
    """Tune's stopper: stops all trials at once after :meth:`stop`."""

    def __init__(self) -> None:
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True

    def stop_all(self) -> bool:
        return self.stopped

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self.stopped


class SchedulerCallback(tune.Callback):
    """Tune's callback: reports the ends of trials to a :class:`TrialScheduler`.

    After the stopper has stopped Tune, nothing is reported: the driver may already be recording the end of the sweep.
    """

    def __init__(self, scheduler: TrialScheduler, stopper: InterruptStopper) -> None:
        self._scheduler, self._stopper = scheduler, stopper

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        if self._stopper.stopped:
            return
        result = trial.last_result or {}
        state = str(result.get("state", TrialExit.FAILED))
        exit = TrialExit.INTERRUPTED if state == TrialStatus.RUNNING else TrialExit(state)
        self._scheduler.on_trial_end(
            _trial_id(trial), exit, node=str(result.get("node", "")), host=str(result.get("host", ""))
        )

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        if self._stopper.stopped:
            return
        name = self._scheduler.trials[_trial_id(trial)].name
        logger.warning("%s: worker or node died; restarting the trial%s", name, _error_of(trial))

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        if self._stopper.stopped:
            return
        reason = f"worker died {MAX_RESTARTS + 1} times{_error_of(trial)}"
        self._scheduler.on_trial_end(_trial_id(trial), TrialExit.FAILED, reason)

    def __reduce__(self) -> Any:
        return (tune.Callback, ())


def _placement_group(per_trial: Mapping[str, float], config: dict[str, Any]) -> Any:
    """Return what a trial requests from Ray: its resources, on any node except those that it must avoid."""
    bundle = {kind: amount for kind, amount in per_trial.items() if amount}
    if not config.get("avoid"):
        return tune.PlacementGroupFactory([bundle])
    return tune.PlacementGroupFactory([bundle], bundle_label_selector=[{"ray.io/node-id": f"!in({config['avoid']})"}])


@contextmanager
def _max_pending_trials(count: int) -> Iterator[None]:
    """Let Tune keep this many trials pending within the context.

    By default Tune requests resources for one trial at a time, and for the next one only after that process has
    started: filling 64 slots would take minutes, and a cluster would grow one node at a time.
    """
    name = "TUNE_MAX_PENDING_TRIALS_PG"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(count)
    try:
        yield
    finally:
        del os.environ[name]


def _trial_id(trial: Any) -> str:
    """The trial id (see :class:`~fgst.sweep.definition.Trial`) of one of Tune's trials."""
    return str(json.loads(trial.config["trial"])["trial_id"])


def _error_of(trial: Any) -> str:
    """The last line of a failed Tune trial's Python error in parentheses; "" if the process died without one."""
    try:
        lines = Path(trial.error_file or "").read_text().strip().splitlines()
    except OSError:
        return ""
    match = re.fullmatch(r"(?:\w+\.)*\w+(?:Error|Exception)\b.*", lines[-1]) if lines else None
    return f" ({match[0]})" if match else ""
