"""Where trials run: Ray Tune, on this machine or on a cluster; or this very process, one after another.

Which trial is next, and which one stops early, is the search's to say; what a trial is, what it has done and where it
goes on is not the engine's either: see ``search.py`` and ``trial.py``. Ray decides when and where a trial runs, and
starts it again if its process or its node dies. Both places give the same figures.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgst.data.cache import is_remote
from fgst.errors import is_disk_full
from fgst.sweep.backends.preflight import alive_nodes, cluster_capacity, is_autoscaling
from fgst.sweep.backends.ray_session import ray_session
from fgst.sweep.backends.resources import Resources, max_concurrent_trials, resources_per_trial
from fgst.sweep.definition import Trial
from fgst.sweep.search import Search
from fgst.sweep.stopping import Budget
from fgst.sweep.trial import StopTrial, TrialContext, give_back_memory, run_trial
from fgst.training import preemption

# Runs a trial to its end, telling the metrics of each epoch; how it ended, as run_trial says it.
RunTrial = Callable[[Trial, TrialContext, Callable[[dict[str, float]], None]], str]


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


class TrialScheduler:
    """What the engine and the search tell each other, wherever trials run.

    Args:
        elsewhere: whether trials find room without the nodes with these ids, whose disks are full.
    """

    def __init__(
        self,
        search: Search,
        budget: Budget,
        listen: Listener,
        elsewhere: Callable[[set[str]], bool] = lambda nodes: False,
    ) -> None:
        self._search, self._budget, self._listen, self._elsewhere = search, budget, listen, elsewhere
        self.trials: dict[str, Trial] = {}
        self.order: dict[str, int] = {}  # in which they were asked for, by key
        self.full: set[str] = set()  # nodes whose disks are
        self._live: set[str] = set()
        self._again: list[Trial] = []  # begun, and to go on elsewhere
        self._last: dict[str, dict[str, float]] = {}
        self._stopped: dict[str, str] = {}

    def next(self) -> Trial | None:
        """The trial to begin now, if there is one."""
        trial = None
        if self._again and not self._budget.must_stop():
            trial = self._again.pop(0)
        elif self._budget.may_begin():
            with self._room():
                trial = self._search.ask()
            if trial is not None:
                self._budget.began()
                self.trials[trial.trial_id] = trial
                self.order[trial.trial_id] = len(self.order)
        if trial is not None:
            self._live.add(trial.trial_id)
        return trial

    @property
    def over(self) -> bool:
        """Whether :meth:`next` will never give another trial."""
        if self._live or (self._again and not self._budget.must_stop()):
            return False  # one that runs may have to go on elsewhere
        return self._search.exhausted or not self._budget.may_begin()

    def epoch(self, trial_id: str, metrics: dict[str, float]) -> str:
        """Take note of an epoch; how the trial is to end now, or "" if it is to go on."""
        self._last[trial_id] = metrics
        with self._room():
            self._listen(Progress(self.trials[trial_id], "running", metrics))
            if self._search.result(trial_id, int(metrics["epoch"]), metrics):
                self._stopped[trial_id] = "pruned"
        if self._budget.must_stop() and int(metrics["epoch"]) < self.trials[trial_id].config.train.epochs:
            self._stopped.setdefault(trial_id, "interrupted")
        return self._stopped.get(trial_id, "")

    def end(self, trial_id: str, status: str, reason: str = "", node: str = "") -> None:
        """Take note of an end: as the trial says, unless it was stopped; on the node with this id."""
        self._live.discard(trial_id)
        status = self._stopped.get(trial_id, status)
        metrics = self._last.get(trial_id, {})
        if status.startswith("disk full"):
            where = status.removeprefix("disk full")
            if not self._budget.must_stop() and self._elsewhere(self.full | {node}):
                if node not in self.full:
                    print(f"the disk is full{where}: what ran there goes on elsewhere", file=sys.stderr)
                self.full.add(node)
                self._again.append(self.trials[trial_id])
                return
            self._budget.disk_full(where)
            status = "interrupted"
        if status == "finished":
            self._budget.finished(metrics)
        with self._room():
            self._search.tell(trial_id, status, metrics, self.trials[trial_id])
        with self._room():
            self._listen(Progress(self.trials[trial_id], status, metrics, reason))

    @contextmanager
    def _room(self) -> Iterator[None]:
        """What cannot be written for want of room is no reason to break off: it ends the sweep, which can go on."""
        try:
            yield
        except Exception as error:
            if not is_disk_full(error):
                raise
            self._budget.disk_full()


def run_local(search: Search, context: TrialContext, budget: Budget, listen: Listener) -> None:
    """Run trials in this process, one after another."""
    course = TrialScheduler(search, budget, listen)
    while (trial := course.next()) is not None:

        def report(metrics: dict[str, float], trial_id: str = trial.trial_id) -> None:
            if status := course.epoch(trial_id, metrics):
                raise StopTrial(status)

        course.end(trial.trial_id, run_trial(trial, context, report))


def run_on_ray(
    search: Search,
    context: TrialContext,
    resources: Resources,
    budget: Budget,
    listen: Listener,
    total: int,
    run: RunTrial = run_trial,
) -> None:
    """Run trials to their end, or to Ctrl-C: what is not finished then can be run again, and goes on.

    Args:
        listen: told of every epoch and every end.
        total: how many trials there may be.
        run: what a trial is, e.g. a simulated one; Ray pickles it.

    Raises:
        InputError: if no cluster answers at the address, or it can never give a trial what it asks for.
    """
    with ExitStack() as stack:
        stack.enter_context(ray_session(resources.address))
        import ray
        from ray import tune
        from ray.tune.trainable import wrap_function

        from fgst.sweep.storage import has_room  # here: it needs PyTorch, and a simulated trial does not

        nodes = cluster_capacity()
        each = resources_per_trial(nodes, resources, total)
        threads = max(1, int(each["CPU"])) if not each["GPU"] else None
        own = dataclasses.replace(context, threads=threads, devices=each["GPU"] or each["CPU"])

        def elsewhere(full: set[str]) -> bool:
            # Where the storage itself is full, every node is.
            return has_room(context.storage) and (
                is_autoscaling() or max_concurrent_trials(alive_nodes(besides=full), each) > 0
            )

        course = TrialScheduler(search, budget, listen, elsewhere)
        limit = resources.max_concurrent
        if limit is None and (is_autoscaling() or not resources.address):  # else there is none: somebody may add a node
            limit = max_concurrent_trials(nodes, each)

        def trainable(config: dict[str, Any]) -> dict[str, Any]:
            # Ray pickles this function with the context in it; it is small.
            def report(metrics: dict[str, float]) -> None:
                tune.report({**metrics, "state": "running"})

            trial = Trial.from_dict(json.loads(config["trial"]))
            state = run(trial, own, report)
            if state == "left":
                os._exit(
                    preemption.EXIT_CODE
                )  # as it was told to; Ray starts the trial again, where there is a place for it
            give_back_memory()
            # Tune wants the search algorithm's metric in every result.
            node = ray.get_runtime_context().get_node_id()
            return {"state": state, "node": node, "epoch": trial.config.train.epochs}

        class Trainable(wrap_function(trainable)):  # type: ignore[misc]
            def setup(self, config: dict[str, Any]) -> None:
                preemption.install_handler()  # here, in the process's main thread; the trial has another
                super().setup(config)

        # Ray's own files; nothing of ours is read from them again, so they stay with the driver.
        if is_remote(context.storage):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fgst-ray-")))
        else:
            folder = Path(context.storage) / "ray"
            folder.mkdir(parents=True, exist_ok=True)
        tuner = tune.Tuner(
            tune.with_resources(Trainable, functools.partial(_request, each)),
            tune_config=tune.TuneConfig(
                search_alg=_searcher(course),
                scheduler=_scheduler(course),
                num_samples=-1,
                max_concurrent_trials=limit,
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
        with _waiting(limit or max(1, max_concurrent_trials(nodes, each) // 4)):
            tuner.fit()


def _request(each: dict[str, float], config: dict[str, Any]) -> Any:
    """What one of Tune's trials asks Ray for: its share, on any node but those that it is to avoid."""
    from ray.tune import PlacementGroupFactory

    share = {kind: amount for kind, amount in each.items() if amount}
    if not config.get("avoid"):
        return PlacementGroupFactory([share])
    return PlacementGroupFactory([share], bundle_label_selector=[{"ray.io/node-id": f"!in({config['avoid']})"}])


@contextmanager
def _waiting(count: int) -> Iterator[None]:
    """Within it Tune lets so many trials wait for a place.

    By itself it asks for one, and for the next when that one's process has started: it would take minutes to fill 64
    places, and a cluster would grow by one node after another.
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


def _key(trial: Any) -> str:
    """The key of ours that a trial of Tune's has."""
    return str(json.loads(trial.config["trial"])["trial_id"])


def _reason(trial: Any) -> str:
    """What Python said last in a trial of Tune's that failed, in brackets; "" where a process just ended."""
    try:
        said = Path(trial.error_file or "").read_text().strip().splitlines()
    except OSError:
        return ""
    found = re.fullmatch(r"(?:\w+\.)*\w+(?:Error|Exception)\b.*", said[-1]) if said else None
    return f" ({found[0]})" if found else ""


def _searcher(course: TrialScheduler) -> Any:
    """A Tune search algorithm that passes on our own."""
    from ray.tune.search import Searcher

    class Asker(Searcher):
        def __init__(self) -> None:
            super().__init__(metric="epoch", mode="max")  # Tune asks for some; nothing is compared by them

        def suggest(self, trial_id: str) -> Any:
            trial = course.next()
            if trial is not None:
                return {"trial": json.dumps(trial.to_dict()), "avoid": ",".join(sorted(course.full))}
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


def _scheduler(course: TrialScheduler) -> Any:
    """A Tune scheduler that stops the trials which are to stop."""
    from ray.tune.schedulers import FIFOScheduler

    class Stops(FIFOScheduler):
        def choose_trial_to_run(self, tune_controller: Any) -> Any:
            # Tune's own looks through all trials that ever were, at every event.
            waiting = (trial for trial in tune_controller.get_live_trials() if trial.status == trial.PENDING)
            return min(waiting, key=lambda trial: course.order[_key(trial)], default=None)

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            if result.get("state") != "running":
                return str(FIFOScheduler.CONTINUE)
            metrics = {k: v for k, v in result.items() if isinstance(v, int | float) and not isinstance(v, bool)}
            stop = course.epoch(_key(trial), metrics)
            return str(FIFOScheduler.STOP if stop else FIFOScheduler.CONTINUE)

        def __reduce__(self) -> Any:
            return (FIFOScheduler, ())

    return Stops()


def _callback(course: TrialScheduler) -> Any:
    """A Tune callback that takes note of ends."""
    from ray import tune

    class Ends(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            result = trial.last_result or {}
            state = str(result.get("state", "failed"))
            course.end(_key(trial), state if state != "running" else "interrupted", node=str(result.get("node", "")))

        def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            name = course.trials[_key(trial)].name
            print(f"{name}: its process or its node is gone, and it is started again{_reason(trial)}", file=sys.stderr)

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            course.end(_key(trial), "failed", f"its process died {_RESTARTS + 1} times{_reason(trial)}")

        def __reduce__(self) -> Any:
            return (tune.Callback, ())

    return Ends()
