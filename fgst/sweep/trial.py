"""One trial of a sweep, run in a process of its own: started, or resumed from its checkpoint.

A trial stores its checkpoint in the sweep's storage and logs to the MLflow run that carries its trial id; both are
found by that id. It may therefore be killed at any moment and restarted anywhere: it resumes from its last checkpoint.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import resource
from collections.abc import Callable
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fgst.errors import DeletedInMlflow, Preempted, StoreUnavailable, is_disk_full
from fgst.sweep.definition import Trial
from fgst.sweep.status import TrialExit, TrialStatus
from fgst.tracking.tags import Tags
from fgst.training import preemption

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fgst.data.dataset import ArrowDataset
    from fgst.sweep.storage import TrialStorage
    from fgst.tracking.run import TrackedRun
    from fgst.training.trainer import EpochResult

SPOOLS = "spool"  # folder in a sweep's storage for records buffered while the tracking server is unreachable
MAX_STARTS_WITHOUT_PROGRESS = 4
MAX_TAG_LENGTH = 5000


class StopTrial(Exception):
    """Raised by the ``report`` callable to stop a trial; the argument is the status that it ends with."""

    def __init__(self, status: TrialStatus) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True)
class TrialContext:
    """Information about a sweep that its trials need.

    Attributes:
        tracking_uri, experiment, parent: tracking store, experiment id, and run id of the sweep.
        storage: folder (shared by all nodes) or URI for checkpoints.
        threads: CPU threads; ``None`` keeps PyTorch's setting.
        devices: number of GPUs, or of cores on the CPU, that the trial occupies, to log its cost.
        price_per_hour: hourly price of a GPU, or of a core on the CPU.
        latency: measure the time the network takes for one clip.
        system_metrics: log the load of the machine.
        driver: id of the process that drives the sweep.
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
) -> TrialExit:
    """Train a trial to its last epoch and pass the metrics of each epoch to ``report``.

    A training that raises an error (invalid data, a loss that is not finite, out of memory) is marked FAILED in MLflow
    with the reason, and the sweep continues: a restart would fail in the same way. After running out of memory, a
    training is first retried with each batch in two parts. A killed process is restarted by the backend; a trial that
    makes no progress in ``MAX_STARTS_WITHOUT_PROGRESS`` starts is marked FAILED.

    Returns:
        How the trial ended: ``INTERRUPTED`` also if the tracking server was unreachable for too long, ``DISK_FULL`` if
        it can continue elsewhere or after space has been freed, ``PREEMPTED`` if this process received SIGTERM,
        ``DELETED`` if its run was deleted in MLflow (its checkpoint is kept).
    """
    # lazy: torch and mlflow take seconds to import, and a driver that simulates trials needs neither
    import torch

    from fgst.data.dataset import ArrowDataset
    from fgst.sweep.storage import TrialStorage, on_this_node
    from fgst.tracking.store import TrackingStore
    from fgst.tracking.training import trial_tags

    if context.threads:
        torch.set_num_threads(context.threads)
    store = TrackingStore(context.tracking_uri, wait=True)
    previous = store.find(context.experiment, trial.trial_id, context.parent)
    if previous is not None and previous.info.status == "FINISHED":
        return TrialExit.FINISHED  # the process died after finishing the run and before returning
    config = trial.config
    tags = {
        Tags.KIND: "trial",
        Tags.LABEL: trial.label,
        Tags.PARAMS: json.dumps(list(trial.params)),
        "mlflow.source.name": f"sweep {context.parent[:8]}",
    }
    micro_batches = int(previous.data.tags.get(Tags.MICRO_BATCHES, "1")) if previous is not None else 1
    run = None
    storage = TrialStorage(context.storage, trial.trial_id)
    try:
        storage.fetch()
        dataset = ArrowDataset(config.data.dataset)
        tags |= trial_tags(config, dataset.name, dataset.digest)
        run = store.start(context.experiment, trial.trial_id, trial.name, tags, context.parent)
        run.enable_spool(on_this_node(context.storage) / SPOOLS)
        run.set_tags({Tags.STARTS: _count_start(previous, storage, context)})
        run.log_settings(config.flat())
        run.log_dataset(dataset.name, dataset.digest, dataset.location)
        with run.system_metrics() if context.system_metrics else nullcontext():
            _train(trial, context, run, dataset, report, micro_batches, storage)
        run.set_tags({Tags.STATUS: TrialStatus.FINISHED.value})
    except StopTrial as stop:
        return TrialExit(stop.status.value)
    except Preempted:
        return TrialExit.PREEMPTED
    except StoreUnavailable:
        return TrialExit.INTERRUPTED
    except DeletedInMlflow:
        return TrialExit.DELETED
    except Exception as error:
        if is_disk_full(error):
            return TrialExit.DISK_FULL
        try:
            if run is None:  # it failed before its run was opened
                run = store.start(context.experiment, trial.trial_id, trial.name, tags, context.parent)
            run.finish("FAILED", f"{type(error).__name__}: {error}")
            run.set_tags({Tags.STATUS: TrialStatus.FAILED.value})
        except DeletedInMlflow:
            return TrialExit.DELETED
        return TrialExit.FAILED
    storage.remove()
    return TrialExit.FINISHED


def _count_start(previous: Any, storage: TrialStorage, context: TrialContext) -> str:
    """The value of ``Tags.STARTS`` for this start: the checkpoint it starts from and how often that happened in a row.

    A process that dies after every start must not be restarted indefinitely.

    Args:
        previous: the trial's run if it was started before.

    Raises:
        RuntimeError: if the last starts made no progress.
    """
    from fgst.training.checkpoint import latest_checkpoint  # lazy: torch takes seconds to import

    checkpoint = latest_checkpoint(storage.folder)
    at = f"{context.driver} {checkpoint.name if checkpoint is not None else 'the beginning'}"
    last, _, count = (previous.data.tags.get(Tags.STARTS, "") if previous is not None else "").rpartition(" x")
    starts = int(count) + 1 if last == at else 1
    if starts > MAX_STARTS_WITHOUT_PROGRESS:
        where = checkpoint.name if checkpoint is not None else "its first epoch"
        raise RuntimeError(f"worker died {MAX_STARTS_WITHOUT_PROGRESS} times at {where}")
    return f"{at} x{starts}"


def give_back_memory() -> None:
    """Return memory freed by a trial to the system before the next trial in the same process.

    Each trial runs in a new thread, and glibc keeps an arena per thread: without this a process that trains one trial
    after another grows by 0.1 to 0.2 GiB with each.
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
    storage: TrialStorage,
) -> None:
    """Train and log everything; after running out of memory, retry with each batch in two parts."""
    # lazy: torch and mlflow take seconds to import
    import torch

    from fgst.sweep.planning.cost import model_cost
    from fgst.tracking.training import track
    from fgst.training.trainer import fit

    shape: dict[str, float] = {}

    def account(result: EpochResult) -> EpochResult:
        if not shape:  # after the first epoch: counting FLOPs imports much of PyTorch's compiler
            cost = model_cost(trial.config, dataset)
            shape.update({"model/parameters": cost.parameters, "model/gflops": cost.gflops})
            if context.latency:
                shape["model/latency_ms"] = _latency(trial, dataset)
        return _accounted(result, context, shape)

    def copied(training: Iterator[EpochResult]) -> Iterator[EpochResult]:
        """Copy each epoch's checkpoint to the storage before the epoch is reported."""
        try:
            for result in training:
                if not result.is_replay and (problem := storage.keep()):
                    run.set_tags({Tags.CHECKPOINT_NOT_COPIED: problem[:MAX_TAG_LENGTH]})
                yield result
        except Preempted:
            storage.keep(at_once=True)
            raise

    while True:
        training = fit(
            trial.config,
            dataset=dataset,
            checkpoints=storage.folder,
            micro_batches=micro_batches,
            should_stop=preemption.should_stop,
        )
        try:
            with (
                preemption.training_in_progress(),
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
    """An epoch's result with its cost so far."""
    import torch

    seconds = 60 * result.metrics["minutes"] * context.devices
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_reserved() / 2**30
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    metrics = {"device_seconds": seconds, "peak_memory_gib": peak, **shape}
    if context.price_per_hour is not None:
        metrics["cost"] = seconds / 3600 * context.price_per_hour
    return dataclasses.replace(result, metrics={**result.metrics, **metrics})


def _latency(trial: Trial, dataset: ArrowDataset) -> float:
    """Milliseconds that the trial's network takes for one clip on this machine."""
    # lazy: torch takes seconds to import
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
    message = str(error)
    return any(text in message for text in ("not enough memory", "can't allocate memory", "out of memory"))
