"""Where trials run: Ray Tune, on this machine or on a cluster.

Ray decides when and where a trial runs and starts it again if its process dies. What a trial is, what it has done
and where it goes on is not Ray's: see ``trial.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgst.errors import InputError
from fgst.sweep.cluster import RESTARTS, ray_session
from fgst.sweep.spec import Trial
from fgst.sweep.trial import TrialContext, run_trial


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
    """What a trial has just done; ``state`` is "running", "FINISHED" or "FAILED"."""

    trial: Trial
    state: str
    metrics: dict[str, float]


def run_on_ray(
    trials: Sequence[Trial],
    context: TrialContext,
    resources: Resources,
    listen: Callable[[Progress], None],
    died: Callable[[Trial, str], None],
) -> None:
    """Run trials to their end, or to Ctrl-C: what is not finished then can be run again, and goes on.

    Args:
        listen: told of every epoch and every end.
        died: told of a trial whose process died too often, with the reason.

    Raises:
        InputError: if no cluster answers at the address, or it can never give a trial what it asks for.
    """
    with ray_session(resources.address):
        import ray
        from ray import tune

        each = shares(ray.cluster_resources(), resources, len(trials))
        threads = max(1, int(each["CPU"])) if not each["GPU"] else None
        own_context = TrialContext(context.tracking_uri, context.experiment, context.parent, context.storage, threads)
        by_key = {trial.key: trial for trial in trials}

        def trainable(config: dict[str, Any]) -> dict[str, Any]:
            # Ray pickles this function with the trials in it; they are small.
            def report(metrics: dict[str, float]) -> None:
                tune.report({**metrics, "state": "running"})

            return {"state": run_trial(by_key[config["key"]], own_context, report)}

        # Ray's own files; nothing of ours is read from them again.
        folder = Path(context.storage) / "ray"
        folder.mkdir(parents=True, exist_ok=True)
        tuner = tune.Tuner(
            tune.with_resources(trainable, each),
            param_space={"key": tune.grid_search([trial.key for trial in trials])},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=resources.max_concurrent,
                trial_dirname_creator=lambda trial: trial.config["key"],
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(folder),
                failure_config=tune.FailureConfig(max_failures=RESTARTS),
                callbacks=[_listener(by_key, listen, died)],
                verbose=0,
            ),
        )
        tuner.fit()


def _listener(by_key: dict[str, Trial], listen: Callable[[Progress], None], died: Callable[[Trial, str], None]) -> Any:
    """A Tune callback that passes on what trials do."""
    from ray import tune

    class Listener(tune.Callback):
        def __reduce__(self) -> Any:
            # Tune writes its settings down, this among them; the listeners have files and locks, and stay here.
            return (tune.Callback, ())

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
            metrics = {k: v for k, v in result.items() if isinstance(v, int | float)}
            listen(Progress(by_key[trial.config["key"]], str(result.get("state", "running")), metrics))

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            died(by_key[trial.config["key"]], f"its process died {RESTARTS + 1} times")
            listen(Progress(by_key[trial.config["key"]], "FAILED", {}))

    return Listener()


def shares(available: Mapping[str, float], resources: Resources, trials: int) -> dict[str, float]:
    """What each trial gets of a cluster: ``{"CPU": cores, "GPU": GPUs or a fraction}``.

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
        cpu = 1.0 if gpu else max(1.0, float(int(cpus // together)))
    if cpu > cpus:
        raise InputError(f"--cpus-per-trial is {cpu:g}, but there are {cpus:g} cores")
    return {"CPU": cpu, "GPU": gpu}
