"""One trial of a sweep, in a process of its own: begin it, or go on with it.

A trial keeps its checkpoint in the sweep's storage and writes into the MLflow run that carries its key, and both are
found again by that key. So it may be killed and started again at any moment, by anybody: it goes on where it was.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import os
import resource
from collections.abc import Callable
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fgst.errors import Preempted, is_disk_full
from fgst.sweep.definition import Trial
from fgst.tracking.spool import TrackingServerUnavailable
from fgst.tracking.tags import Tags
from fgst.training import preemption

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fgst.data.dataset import ArrowDataset
    from fgst.sweep.storage import TrialStorage
    from fgst.tracking.run import TrackedRun
    from fgst.training.trainer import EpochResult

SPOOLS = "spool"  # in a sweep's storage: what its trials write while the tracking server is away
MOST_STARTS = 4


class StopTrial(Exception):
    """Raised by whoever listens to a trial that is not to go on; its argument is how it ends: pruned, interrupted."""


@dataclass(frozen=True)
class TrialContext:
    """Where a trial belongs.

    Attributes:
        tracking_uri, experiment, parent: its store, experiment and sweep's run.
        storage: the folder for its checkpoint, shared by all nodes, or a URI.
        threads: CPU threads; ``None`` leaves them as they are.
        devices: GPUs, or cores on the CPU, that it has; for its account.
        price_per_hour: of a GPU, or of a core on the CPU.
        latency: measure how long the network takes for one clip.
        system_metrics: log the machine's load.
        driver: an id of the process that drives the sweep.
    """

    tracking_uri: str
    experiment: str
    parent: str
    storage: str
    threads: int | None = None
    devices: float = 1.0
    price_per_hour: float | None = None
    latency: bool = False
    system_metrics: bool = False
    driver: str = ""


def run_trial(
    trial: Trial, context: TrialContext, report: Callable[[dict[str, float]], None] = lambda metrics: None
) -> str:
    """Train ``trial`` to its end, telling ``report`` the metrics of each epoch.

    A training that fails by itself (bad data, a loss that is no number, memory) is FAILED in MLflow with its reason,
    and the sweep goes on: to start it again would only fail again. Out of memory is tried once more with half the
    clips at a time. What kills the process is another matter: whoever started it starts it again, and only a trial that
    comes no further for several starts in a row has failed.

    Returns:
        "finished"; "failed"; what ``report`` stopped it as; "interrupted", where the tracking server was waited for in
        vain; "disk full on NODE", where it may go on when there is room; "left", where this process was told to end.
    """
    import torch

    from fgst.data.dataset import ArrowDataset
    from fgst.sweep.storage import TrialStorage, on_this_node
    from fgst.tracking.store import TrackingStore
    from fgst.tracking.training import trial_tags

    if context.threads:
        torch.set_num_threads(context.threads)
    store = TrackingStore(context.tracking_uri, wait=True)
    before = store.find(context.experiment, trial.trial_id, context.parent)
    if before is not None and before.info.status == "FINISHED":
        return "finished"  # the process died between its last word and its end
    config = trial.config
    tags = {
        Tags.KIND: "trial",
        Tags.LABEL: trial.label,
        Tags.PARAMS: json.dumps(list(trial.params)),
        "mlflow.source.name": f"sweep {context.parent[:8]}",
    }
    micro_batches = int(before.data.tags.get(Tags.MICRO_BATCHES, "1")) if before is not None else 1
    run = None
    kept = TrialStorage(context.storage, trial.trial_id)
    try:
        kept.fetch()
        dataset = ArrowDataset(config.data.dataset)
        tags |= trial_tags(config, dataset.name, dataset.digest)
        run = store.start(context.experiment, trial.trial_id, trial.name, tags, context.parent)
        run.enable_spool(on_this_node(context.storage) / SPOOLS)
        run.set_tags({Tags.STARTS: _count_start(before, kept, context)})
        run.log_params(config.flat())
        run.log_dataset(dataset.name, dataset.digest, dataset.location)
        with run.system_metrics() if context.system_metrics else nullcontext():
            _train(trial, context, run, dataset, report, micro_batches, kept)
    except StopTrial as stop:
        return str(stop)
    except Preempted:
        return "left"
    except TrackingServerUnavailable:
        return "interrupted"
    except Exception as error:
        if is_disk_full(error):
            return f"disk full on {os.uname().nodename}"
        if run is None:  # it did not come as far as opening its run
            run = store.start(context.experiment, trial.trial_id, trial.name, tags, context.parent)
        run.finish("FAILED", f"{type(error).__name__}: {error}")
        run.set_tags({Tags.STATUS: "failed"})
        return "failed"
    run.set_tags({Tags.STATUS: "finished"})
    kept.remove()
    return "finished"


def _count_start(before: Any, kept: TrialStorage, context: TrialContext) -> str:
    """What to write down of this start; a process that dies whenever it is started must not be started for ever.

    Args:
        before: the trial's run, if it was begun.

    Raises:
        RuntimeError: if the trial came no further in the last starts.
    """
    from fgst.training.checkpoint import latest_checkpoint

    found = latest_checkpoint(kept.folder)
    at = f"{context.driver} {found.name if found is not None else 'the beginning'}"
    last, _, count = (before.data.tags.get(Tags.STARTS, "") if before is not None else "").rpartition(" x")
    starts = int(count) + 1 if last == at else 1
    if starts > MOST_STARTS:
        where = found.name if found is not None else "its first epoch"
        raise RuntimeError(f"its process died {MOST_STARTS} times at {where}")
    return f"{at} x{starts}"


def give_back_memory() -> None:
    """Hand what a trial has freed back to the system, before the next one in the same process.

    Trials run in threads of their own, and glibc keeps an arena per thread: without this a process that trains one
    trial after another grows by 0.1 to 0.2 GiB with each.
    """
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _train(
    trial: Trial,
    context: TrialContext,
    run: TrackedRun,
    dataset: ArrowDataset,
    report: Callable[[dict[str, float]], None],
    micro_batches: int,
    kept: TrialStorage,
) -> None:
    """Train and write it all down; out of memory, once more with half the clips at a time."""
    import torch

    from fgst.sweep.planning.cost import model_cost
    from fgst.tracking.training import track
    from fgst.training.trainer import fit

    shape: dict[str, float] = {}

    def account(result: EpochResult) -> EpochResult:
        if not shape:  # after the first epoch: counting imports half of PyTorch's compiler
            cost = model_cost(trial.config, dataset)
            shape.update({"model/parameters": cost.parameters, "model/gflops": cost.gflops})
            if context.latency:
                shape["model/latency_ms"] = _latency(trial, dataset)
        return _accounted(result, context, shape)

    def copied(training: Iterator[EpochResult]) -> Iterator[EpochResult]:
        """Each epoch's checkpoint goes to the storage before anybody hears of the epoch."""
        try:
            for result in training:
                if not result.is_replay and (problem := kept.keep()):
                    run.set_tags({Tags.CHECKPOINT_NOT_COPIED: problem[:5000]})
                yield result
        except Preempted:
            kept.keep(at_once=True)
            raise

    while True:
        training = fit(
            trial.config, dataset=dataset, checkpoints=kept.folder, micro_batches=micro_batches, leave=preemption.asked
        )
        try:
            with (
                preemption.under_way(),
                closing(track(run, map(account, copied(training)), dataset.classes)) as results,
            ):
                for result in results:
                    report({"epoch": result.epoch, **result.metrics})
            return
        except (MemoryError, RuntimeError) as error:
            if micro_batches > 1 or not _out_of_memory(error):
                raise
        micro_batches = 2
        run.set_tags({Tags.MICRO_BATCHES: "2"})
        run.reopen()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _accounted(result: EpochResult, context: TrialContext, shape: dict[str, float]) -> EpochResult:
    """An epoch's result with what it cost so far."""
    import torch

    seconds = 60 * result.metrics["minutes"] * context.devices
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_reserved() / 2**30
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    extra = {"device_seconds": seconds, "peak_memory_gib": peak, **shape}
    if context.price_per_hour is not None:
        extra["cost"] = seconds / 3600 * context.price_per_hour
    return dataclasses.replace(result, metrics={**result.metrics, **extra})


def _latency(trial: Trial, dataset: ArrowDataset) -> float:
    """Milliseconds that the trial's network takes for one clip here."""
    import numpy as np

    from fgst.data.loader import ClipLoader, choose_device
    from fgst.model import FGSTFormer
    from fgst.sweep.planning.cost import latency_ms

    device = choose_device()
    store = ClipLoader(dataset, np.arange(1), trial.config.data, device)
    model = FGSTFormer(trial.config.model, dataset.skeleton, dataset.num_classes, frames=store.frames).to(device)
    return latency_ms(model, store.batch(np.arange(1)))


def _out_of_memory(error: BaseException) -> bool:
    import torch

    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    words = str(error)
    return "not enough memory" in words or "can't allocate memory" in words or "out of memory" in words
