"""Where trials run: Ray Tune, on this machine or on a cluster; or this very process, one after another.

Which trial is next, and which one stops early, is the search's to say; what a trial is, what it has done and where it
goes on is not the engine's either: see ``search.py`` and ``trial.py``. Ray decides when and where a trial runs, and
starts it again if its process or its node dies. Both places give the same figures.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgst.errors import InputError, is_disk_full
from fgst.remote import is_remote
from fgst.sweep import leaving
from fgst.sweep.budget import Budget
from fgst.sweep.cluster import ray_session
from fgst.sweep.nodes import capacity, grows, most_cores
from fgst.sweep.search import Search
from fgst.sweep.spec import Trial
from fgst.sweep.trial import StopTrial, TrialContext, give_back_memory, run_trial


@dataclass(frozen=True)
class Resources:
    """What trials get. ``None`` is decided from the machine or cluster.

    Attributes:
        address: of a running Ray cluster ("auto" finds it); ``None`` starts one on this machine.
        cpus_per_trial: cores and threads of a trial.
        gpus_per_trial: GPUs of a trial; 0.25 lets four share one.
        max_concurrent: trials at a time, at most.
    """

    address: str | None = None
    cpus_per_trial: float | None = None
    gpus_per_trial: float | None = None
    max_concurrent: int | None = None


@dataclass(frozen=True)
class Progress:
    """What a trial has just done; ``state`` is "running" after an epoch, else how it ended."""

    trial: Trial
    state: str
    metrics: dict[str, float]
    reason: str = ""


Listener = Callable[[Progress], None]
# A trial itself counts the starts that bring it no further; so many is for processes that do not come so far.
_RESTARTS = 50


class _Course:
    """What the engine and the search tell each other, the same for both places."""

    def __init__(self, search: Search, budget: Budget, listen: Listener) -> None:
        self._search, self._budget, self._listen = search, budget, listen
        self.trials: dict[str, Trial] = {}
        self._last: dict[str, dict[str, float]] = {}
        self._stopped: dict[str, str] = {}

    def next(self) -> Trial | None:
        """The trial to begin now, if there is one."""
        trial = None
        if self._budget.may_begin():
            with self._room():
                trial = self._search.ask()
        if trial is not None:
            self._budget.began()
            self.trials[trial.key] = trial
        return trial

    @property
    def over(self) -> bool:
        """Whether :meth:`next` will never give another trial."""
        return self._search.exhausted or not self._budget.may_begin()

    def epoch(self, key: str, metrics: dict[str, float]) -> str:
        """Take note of an epoch; how the trial is to end now, or "" if it is to go on."""
        self._last[key] = metrics
        with self._room():
            self._listen(Progress(self.trials[key], "running", metrics))
            if self._search.result(key, int(metrics["epoch"]), metrics):
                self._stopped[key] = "pruned"
        if self._budget.must_stop() and int(metrics["epoch"]) < self.trials[key].config.train.epochs:
            self._stopped.setdefault(key, "interrupted")
        return self._stopped.get(key, "")

    def end(self, key: str, ending: str, reason: str = "") -> None:
        """Take note of an end: as the trial says, unless it was stopped."""
        ending = self._stopped.get(key, ending)
        metrics = self._last.get(key, {})
        if ending.startswith("disk full"):
            self._budget.disk_full(ending.removeprefix("disk full"))
            ending = "interrupted"
        if ending == "finished":
            self._budget.finished(metrics)
        with self._room():
            self._search.tell(key, ending, metrics, self.trials[key])
        with self._room():
            self._listen(Progress(self.trials[key], ending, metrics, reason))

    @contextmanager
    def _room(self) -> Iterator[None]:
        """What cannot be written for want of room is no reason to break off: it ends the sweep, which can go on."""
        try:
            yield
        except Exception as error:
            if not is_disk_full(error):
                raise
            self._budget.disk_full()


def run_here(search: Search, context: TrialContext, budget: Budget, listen: Listener) -> None:
    """Run trials in this process, one after another."""
    course = _Course(search, budget, listen)
    while (trial := course.next()) is not None:

        def report(metrics: dict[str, float], key: str = trial.key) -> None:
            if ending := course.epoch(key, metrics):
                raise StopTrial(ending)

        course.end(trial.key, run_trial(trial, context, report))


def run_on_ray(
    search: Search, context: TrialContext, resources: Resources, budget: Budget, listen: Listener, total: int
) -> None:
    """Run trials to their end, or to Ctrl-C: what is not finished then can be run again, and goes on.

    Args:
        listen: told of every epoch and every end.
        total: how many trials there may be.

    Raises:
        InputError: if no cluster answers at the address, or it can never give a trial what it asks for.
    """
    with ExitStack() as stack:
        stack.enter_context(ray_session(resources.address))
        from ray import tune
        from ray.tune.trainable import wrap_function

        available = capacity()
        each = shares(available, resources, total, most_cores())
        threads = max(1, int(each["CPU"])) if not each["GPU"] else None
        own = dataclasses.replace(context, threads=threads, devices=each["GPU"] or each["CPU"])
        course = _Course(search, budget, listen)

        def trainable(config: dict[str, Any]) -> dict[str, Any]:
            # Ray pickles this function with the context in it; it is small.
            def report(metrics: dict[str, float]) -> None:
                tune.report({**metrics, "state": "running"})

            trial = Trial.from_dict(json.loads(config["trial"]))
            state = run_trial(trial, own, report)
            if state == "left":
                os._exit(leaving.EXIT)  # as it was told to; Ray starts the trial again, where there is a place for it
            give_back_memory()
            # Tune wants the search algorithm's metric in every result.
            return {"state": state, "epoch": trial.config.train.epochs}

        class Trainable(wrap_function(trainable)):  # type: ignore[misc]
            def setup(self, config: dict[str, Any]) -> None:
                leaving.listen()  # here, in the process's main thread; the trial has another
                super().setup(config)

        # Ray's own files; nothing of ours is read from them again, so they stay with the driver.
        if is_remote(context.storage):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fgst-ray-")))
        else:
            folder = Path(context.storage) / "ray"
            folder.mkdir(parents=True, exist_ok=True)
        together = resources.max_concurrent
        if grows():  # with one trial waiting at a time it would start node after node
            together = together or fitting(available, each)
            os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(together)
        elif not resources.address:
            together = together or fitting(available, each)
        tuner = tune.Tuner(
            tune.with_resources(Trainable, each),
            tune_config=tune.TuneConfig(
                search_alg=_searcher(course),
                scheduler=_scheduler(course),
                num_samples=-1,
                max_concurrent_trials=together,  # none on a cluster to which somebody may add a node
                reuse_actors=True,
                trial_dirname_creator=_key,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(folder),
                failure_config=tune.FailureConfig(max_failures=_RESTARTS),
                callbacks=[_callback(course)],
                verbose=0,
            ),
        )
        tuner.fit()


def _key(trial: Any) -> str:
    """The key of ours that a trial of Tune's has."""
    return str(json.loads(trial.config["trial"])["key"])


def _searcher(course: _Course) -> Any:
    """A Tune search algorithm that passes on our own."""
    from ray.tune.search import Searcher

    class Asker(Searcher):
        def __init__(self) -> None:
            super().__init__(metric="epoch", mode="max")  # Tune asks for some; nothing is compared by them

        def suggest(self, trial_id: str) -> Any:
            trial = course.next()
            if trial is not None:
                return {"trial": json.dumps(trial.to_dict())}
            return Searcher.FINISHED if course.over else None

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            pass  # the callback hears it

        def save(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).write_bytes(b"")  # what it knows is in the study and in MLflow

        def restore(self, checkpoint_path: str) -> None:
            raise NotImplementedError

        def __reduce__(self) -> Any:
            return (Searcher, ())  # Tune writes its settings down; the study has a database, and stays here

    return Asker()


def _scheduler(course: _Course) -> Any:
    """A Tune scheduler that stops the trials which are to stop."""
    from ray.tune.schedulers import FIFOScheduler

    class Stops(FIFOScheduler):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if result.get("state") != "running":
                return str(FIFOScheduler.CONTINUE)
            metrics = {k: v for k, v in result.items() if isinstance(v, int | float) and not isinstance(v, bool)}
            stop = course.epoch(_key(trial), metrics)
            return str(FIFOScheduler.STOP if stop else FIFOScheduler.CONTINUE)

        def __reduce__(self) -> Any:
            return (FIFOScheduler, ())

    return Stops()


def _callback(course: _Course) -> Any:
    """A Tune callback that takes note of ends."""
    from ray import tune

    class Ends(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            state = str((trial.last_result or {}).get("state", "failed"))
            course.end(_key(trial), state if state != "running" else "interrupted")

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            course.end(_key(trial), "failed", f"its process died {_RESTARTS + 1} times")

        def __reduce__(self) -> Any:
            return (tune.Callback, ())

    return Ends()


def shares(
    available: Mapping[str, float], resources: Resources, trials: int, most_cores: float = 0.0
) -> dict[str, float]:
    """What each trial gets of a cluster: ``{"CPU": cores, "GPU": GPUs or a fraction}``.

    Args:
        most_cores: of one node; 0 if that is not known. A trial has one node.

    Raises:
        InputError: if the cluster can never give that; Ray would wait for ever.
    """
    cpus, gpus = available.get("CPU", 0.0), available.get("GPU", 0.0)
    gpu = resources.gpus_per_trial if resources.gpus_per_trial is not None else (1.0 if gpus else 0.0)
    if gpu and not gpus:
        raise InputError(f"--gpus-per-trial is {gpu:g}, but Ray sees no GPU here; leave it out to train on the CPU")
    if gpu > gpus:
        raise InputError(f"--gpus-per-trial is {gpu:g}, but there are {gpus:g} GPUs")
    cpu = resources.cpus_per_trial
    if cpu is None:
        # On a GPU a core feeds a trial. On the CPU all cores are divided among the trials that run together.
        together = min(trials, resources.max_concurrent or trials, max(1, int(cpus)))
        cpu = 1.0 if gpu else max(1.0, float(int(min(cpus // together, most_cores or cpus))))
    elif most_cores and cpu > most_cores:
        raise InputError(f"--cpus-per-trial is {cpu:g}, but no node has more than {most_cores:g} cores")
    if cpu > cpus:
        raise InputError(f"--cpus-per-trial is {cpu:g}, but there are {cpus:g} cores")
    return {"CPU": cpu, "GPU": gpu}


def fitting(available: Mapping[str, float], each: Mapping[str, float]) -> int:
    """How many trials fit at a time."""
    return max(1, int(min(available.get(kind, 0.0) / share for kind, share in each.items() if share) + 1e-9))
