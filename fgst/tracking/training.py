"""Logging of a training to its run, epoch by epoch."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fgst.config import TrialConfig
from fgst.errors import Preempted
from fgst.evaluation import plots
from fgst.tracking.run import TrackedRun
from fgst.tracking.tags import Tags

if TYPE_CHECKING:  # the caller has imported torch; the type alone should not
    from fgst.training.trainer import EpochResult


def trial_tags(config: TrialConfig, dataset_name: str, dataset_digest: str) -> dict[str, str]:
    """Return the tags of a trial's run that say what it is trained on."""
    return {
        Tags.KIND: "trial",
        Tags.DATASET: dataset_name,
        Tags.DATASET_DIGEST: dataset_digest,
        Tags.BENCHMARK: str(config.data.benchmark),
        Tags.PROTOCOL: config.data.protocol,
        Tags.MODALITY: config.data.modality,
        Tags.SEED: str(config.train.seed),
    }


def track(
    run: TrackedRun, results: Iterator[EpochResult], classes: tuple[str, ...]
) -> Generator[EpochResult, None, None]:
    """Log a training's epochs to its run and yield them.

    The run's status is always set at the end: FINISHED; FAILED, with the error as its reason; or KILLED if the training
    is interrupted, preempted, or if the consumer closes the generator.

    Args:
        run: the training's run. Epochs that it contains already are not logged twice.
        results: results of :func:`fgst.training.trainer.fit`.
        classes: class names, for the confusion matrix.

    Yields:
        The results, each after it was logged. After the last one, the run also contains the checkpoint, the scores and
        the figures.
    """
    try:
        last_logged = max(run.metric_history("train/loss"), default=0)  # a resumed training repeats logged epochs
        for result in results:
            if result.epoch > last_logged:
                run.log_metrics(result.metrics, result.epoch)
            if result.test is not None:
                _log_final_artifacts(run, result, classes)
            yield result
        run.finish()
    except GeneratorExit:
        run.finish("KILLED")  # the consumer that closed the generator records why
        raise
    except Preempted:
        run.finish("KILLED", "preempted: the node is about to be shut down")
        raise
    except KeyboardInterrupt:
        run.finish("KILLED", "interrupted")
        raise
    except BaseException as error:
        run.finish("FAILED", f"{type(error).__name__}: {error}")
        raise


def _log_final_artifacts(run: TrackedRun, result: EpochResult, classes: tuple[str, ...]) -> None:
    assert result.test is not None
    with tempfile.TemporaryDirectory(prefix="fgst-artifacts-") as name:
        folder = Path(name)
        if result.checkpoint is not None:
            (folder / "checkpoint").mkdir()
            for file in ("model.safetensors", "config.json"):
                shutil.copy2(result.checkpoint / file, folder / "checkpoint" / file)
        (folder / "scores").mkdir()
        result.test.save(folder / "scores" / "test.arrow")
        if result.val is not None:
            result.val.save(folder / "scores" / "val.arrow")
        (folder / "figures").mkdir()
        plots.confusion(result.test, classes, folder / "figures" / "confusion.png")
        metrics = ("train/loss", "val/loss", "train/top1", "val/top1", "test/top1")
        curves = {metric: run.metric_history(metric) for metric in metrics}
        plots.learning_curves(curves, folder / "figures" / "learning_curves.png")
        run.log_artifacts(folder)
