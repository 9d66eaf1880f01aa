"""A run that is being written: what a training writes into it, also while its tracking server is away.

To be imported through :mod:`fgst.tracking.store`, which sets up MLflow's environment first.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException, RestException

from fgst.errors import Preempted
from fgst.tracking.spool import Record, Spool
from fgst.tracking.tags import Tags

if TYPE_CHECKING:
    from fgst.config import TrialConfig
    from fgst.tracking.store import TrackingStore
    from fgst.training.trainer import EpochResult


@dataclass
class TrackedRun:
    """A run that is being written."""

    store: TrackingStore
    run_id: str
    spool: Spool | None = None

    def spool_in(self, folder: Path) -> None:
        """Go on while the tracking server is away: what is written meanwhile waits in ``folder``.

        What an earlier process of this run left there is sent first.
        """
        if self.store.remote:
            self.spool = Spool(folder / self.run_id, self._send, is_server_unavailable)
            if self.spool.pending:
                self._drain()
                self.go_on()

    def _write(self, record: Record, files: Path | None = None) -> None:
        if self.spool is None:
            self._send(record, files, self.store.client)
            return
        before = self.spool.pending
        self.spool.write(record, files)
        if before and not self.spool.pending:
            self._tell()

    def _drain(self) -> None:
        if self.spool is not None and self.spool.pending:
            self.spool.drain()
            self._tell()

    def _tell(self) -> None:
        assert self.spool is not None
        self.spool.write({"tags": [[Tags.SPOOLED, str(self.spool.total)]]})

    def _send(self, record: Record, files: Path | None = None, client: Any = None) -> None:
        """Write what a record says. Twice does no harm: metrics carry the time at which they were measured."""
        client = client or self.store.raw_client
        if files is not None:
            client.log_artifacts(self.run_id, str(files))
        elif "status" in record:
            client.set_terminated(self.run_id, record["status"], record["end"])
        elif "dataset" in record:
            inputs = DatasetInput(Dataset(*record["dataset"]), [InputTag("mlflow.data.context", "training")])
            try:
                client.log_inputs(self.run_id, [inputs])
            except MlflowException:
                # MLflow looks for the data set and then inserts it: of two runs that name a new one at the same
                # moment the second is refused, and finds it there when it asks again.
                client.log_inputs(self.run_id, [inputs])
        else:
            client.log_batch(
                self.run_id,
                [Metric(*metric) for metric in record.get("metrics", ())],
                [Param(*param) for param in record.get("params", ())],
                [RunTag(*tag) for tag in record.get("tags", ())],
            )

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Parameters as text: numbers as they are, lists as JSON. Writing the same ones again is fine."""
        self._write({"params": [[k, v if isinstance(v, str) else json.dumps(v)] for k, v in params.items()]})

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """All metrics of an epoch in one request."""
        now = int(time.time() * 1000)
        # MLflow's page of a comparison begins with the metric that was written first.
        names = sorted(metrics, key=lambda name: name != "val/top1")
        self._write({"metrics": [[k, float(metrics[k]), now, step] for k in names]})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._write({"tags": [[k, v] for k, v in tags.items()]})

    def log_dataset(self, name: str, digest: str, location: str) -> None:
        """What the run learns from, as MLflow's page of a run shows it."""
        source = json.dumps({"uri": location})
        # The page compares digests of at most 36 characters; the whole one is among the tags.
        self._write({"dataset": [name, digest[:36], "local", source]})

    @contextmanager
    def system_metrics(self) -> Iterator[None]:
        """Within it the machine's load (processor, memory, disk, network, GPU) is logged every ten seconds."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
        before = any(name.startswith("system/") for name in self.store.run(self.run_id).data.metrics)
        monitor = SystemMetricsMonitor(self.run_id, resume_logging=before, tracking_uri=self.store.uri)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def history(self, metric: str) -> dict[int, float]:
        """Values by step."""
        self._drain()
        return {m.step: m.value for m in self.store.client.get_metric_history(self.run_id, metric)}

    def log_artifacts(self, folder: Path) -> None:
        """Everything inside a folder, with its sub-folders."""
        self._write({}, folder)

    def go_on(self) -> None:
        """Running again, after an end that was not the last word."""
        self.store.reopen(self.store.run(self.run_id))

    def finish(self, status: str = "FINISHED", reason: str = "") -> None:
        """Close the run: FINISHED, FAILED or KILLED; the reason becomes a tag.

        Raises:
            ServerAway: if the server was waited for in vain; what was written stays in the spool.
        """
        if reason:
            self.set_tags({Tags.REASON: reason[:5000]})
        status = RunStatus.to_string(RunStatus.from_string(status))
        self._write({"status": status, "end": int(time.time() * 1000)})
        if status != "KILLED":  # whoever ends a training waits for nothing: what is left is sent by the next to open it
            self._drain()


def is_server_unavailable(error: BaseException | None) -> bool:
    """Whether an error means that the tracking server does not answer, or not now: refused, timed out, 5xx."""
    while error is not None:
        if isinstance(error, requests.ConnectionError | requests.Timeout | ConnectionError | TimeoutError):
            return True
        if isinstance(error, MlflowException) and "API request to" in str(error) and "failed" in str(error):
            return http_status(error) >= 500 or http_status(error) == 429
        if isinstance(error, RestException | requests.HTTPError):
            return http_status(error) >= 500 or http_status(error) == 429
        error = error.__cause__ or error.__context__
    return False


def http_status(error: BaseException) -> int:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return int(error.response.status_code)
    return int(error.get_http_status_code()) if isinstance(error, MlflowException) else 0


def trial_tags(config: TrialConfig, dataset_name: str, dataset_digest: str) -> dict[str, str]:
    """Tags of a trial's run: what it was trained on, from which code, where."""
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
    """Pass a training's epochs on, and write each into ``run``; at the end the model, the scores and the figures.

    The run's status is right for every end: FINISHED, FAILED with its reason, KILLED by Ctrl-C or by a consumer
    that stopped listening.
    """
    try:
        known = max(run.history("train/loss"), default=0)  # a resumed training repeats epochs that are logged
        for result in results:
            if result.epoch > known:
                run.log_metrics(result.metrics, result.epoch)
            if result.test is not None:
                _log_outcome(run, result, classes)
            yield result
        run.finish()
    except GeneratorExit:
        run.finish("KILLED")  # whoever stopped listening says why
        raise
    except Preempted:
        run.finish("KILLED", "its node was about to go")
        raise
    except KeyboardInterrupt:
        run.finish("KILLED", "interrupted")
        raise
    except BaseException as error:
        run.finish("FAILED", f"{type(error).__name__}: {error}")
        raise


def _log_outcome(run: TrackedRun, result: EpochResult, classes: tuple[str, ...]) -> None:
    from fgst.evaluation import plots

    assert result.test is not None
    with tempfile.TemporaryDirectory(prefix="fgst-outcome-") as name:
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
        curves = {m: run.history(m) for m in ("train/loss", "val/loss", "train/top1", "val/top1", "test/top1")}
        plots.learning_curves(curves, folder / "figures" / "learning_curves.png")
        run.log_artifacts(folder)
