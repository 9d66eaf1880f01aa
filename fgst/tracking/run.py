"""An MLflow run that is being written."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunStatus, RunTag
from mlflow.exceptions import MlflowException

from fgst import durable
from fgst.errors import DeletedInMlflow
from fgst.network import redact
from fgst.tracking.connection import Connection, is_server_unavailable, local_artifacts
from fgst.tracking.spool import Record, Spool
from fgst.tracking.tags import Tags


class TrackedRun:
    """A run that is being written.

    Without a spool, each call blocks while the tracking server is unavailable. With one
    (see :meth:`enable_spool`), records are buffered on disk instead.

    Args:
        connection: the tracking store.
        run_id: an existing run.
    """

    def __init__(self, connection: Connection, run_id: str) -> None:
        self.connection, self.run_id = connection, run_id
        self._spool: Spool | None = None

    def enable_spool(self, folder: Path) -> None:
        """Buffer records in ``folder`` while the tracking server is unavailable. Has no effect for a database.

        Records that an earlier process of this run left there are sent first, and the run is set to RUNNING again.
        """
        if self.connection.remote:
            self._spool = Spool(folder / self.run_id, self._send, is_server_unavailable)
            if self._spool.pending:
                self.drain()
                self.reopen()

    def drain(self) -> None:
        """Block until all buffered records are sent, and note in a tag how many there were.

        Raises:
            StoreUnavailable: if the server stays unavailable; the records stay in the spool.
        """
        if self._spool is not None and self._spool.pending:
            self._spool.drain()
            self._tag_spooled()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters: strings unchanged, other values as JSON. Logging the same values repeatedly is allowed."""
        self._write({"params": [[k, redact(v if isinstance(v, str) else json.dumps(v))] for k, v in params.items()]})

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        """Log the settings of a training that is started or resumed.

        MLflow does not allow changes, and the location of the data set may differ from that at the start.
        """
        logged = self._fetch().data.params
        self.log_params({name: value for name, value in settings.items() if name not in logged})

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log all metrics of a step in one request."""
        now = int(time.time() * 1000)
        # MLflow's comparison page starts with the metric that was logged first.
        names = sorted(metrics, key=lambda name: name != "val/top1")
        self._write({"metrics": [[k, float(metrics[k]), now, step] for k in names]})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, replacing earlier values; passwords in URLs are left out."""
        self._write({"tags": [[k, redact(v)] for k, v in tags.items()]})

    def log_dataset(self, name: str, digest: str, location: str) -> None:
        """Record the training data set, as MLflow shows it on a run's page."""
        source = json.dumps({"uri": location})
        # MLflow limits digests to 36 characters; the full one is among the tags.
        self._write({"dataset": [name, digest[:36], "local", source]})

    def log_artifacts(self, folder: Path) -> None:
        """Upload the contents of a folder, including its sub-folders."""
        self._write({}, folder)

    @contextmanager
    def system_metrics(self) -> Iterator[None]:
        """Log the machine's load (CPU, memory, disk, network, GPU) every ten seconds within this context."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
        resumed = any(name.startswith("system/") for name in self._fetch().data.metrics)
        monitor = SystemMetricsMonitor(self.run_id, resume_logging=resumed, tracking_uri=self.connection.uri)
        monitor.start()
        try:
            yield
        finally:
            monitor.finish()

    def metric_history(self, metric: str) -> dict[int, float]:
        """Values of a metric by step, including those that were buffered."""
        self.drain()
        return {m.step: m.value for m in self.connection.client.get_metric_history(self.run_id, metric)}

    def reopen(self) -> None:
        """Set the run to RUNNING again and remove how and why it ended before."""
        tags = self._fetch().data.tags
        self.connection.client.update_run(self.run_id, status="RUNNING")
        for tag in (Tags.REASON, Tags.STATUS):
            if tag in tags:
                self.connection.client.delete_tag(self.run_id, tag)

    def finish(self, status: str = "FINISHED", reason: str = "") -> None:
        """End the run, and block until all buffered records are sent unless the status is KILLED.

        Args:
            status: FINISHED, FAILED or KILLED.
            reason: why, as a tag.

        Raises:
            StoreUnavailable: if the server stays unavailable; the records stay in the spool.
        """
        if reason:
            self.set_tags({Tags.REASON: reason[:5000]})
        status = RunStatus.to_string(RunStatus.from_string(status))
        self._write({"status": status, "end": int(time.time() * 1000)})
        if status != "KILLED":  # interrupting a training must not block; the next process sends the records
            self.drain()

    @contextmanager
    def killed_if_interrupted(self) -> Iterator[None]:
        """Set the run to KILLED if the context is left by Ctrl-C."""
        try:
            yield
        except KeyboardInterrupt:
            self.interrupt()
            raise

    def interrupt(self) -> None:
        """Set the run to KILLED if it counts as running."""
        if self._fetch().info.status == "RUNNING":
            self.finish("KILLED", "interrupted")

    def _fetch(self) -> Run:
        return self.connection.client.get_run(self.run_id)

    def _write(self, record: Record, files: Path | None = None) -> None:
        if self._spool is None:
            self._send(record, files, self.connection.client)
            return
        pending = self._spool.pending
        self._spool.write(record, files)
        if pending and not self._spool.pending:
            self._tag_spooled()

    def _tag_spooled(self) -> None:
        assert self._spool is not None
        self._spool.write({"tags": [[Tags.SPOOLED, str(self._spool.total)]]})

    def _send(self, record: Record, files: Path | None = None, client: Any = None) -> None:
        """Send a record. Idempotent: metrics carry the time at which they were measured.

        Raises:
            DeletedInMlflow: if the run was deleted.
        """
        try:
            self._send_to(client or self.connection.raw_client, record, files)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                raise DeletedInMlflow(f"run {self.run_id} was permanently deleted in MLflow") from None
            raise

    def _send_to(self, client: Any, record: Record, files: Path | None) -> None:
        if files is not None:
            folder = local_artifacts(client.get_run(self.run_id))
            if folder is None:
                client.log_artifacts(self.run_id, str(files))
            else:  # MLflow would copy them without syncing, and replace existing ones bit by bit
                durable.copy_tree(files, folder)
        elif "status" in record:
            client.set_terminated(self.run_id, record["status"], record["end"])
        elif "dataset" in record:
            inputs = DatasetInput(Dataset(*record["dataset"]), [InputTag("mlflow.data.context", "training")])
            try:
                client.log_inputs(self.run_id, [inputs])
            except MlflowException:
                # MLflow looks the data set up and then inserts it. If two runs add the same one concurrently, the
                # second insert is rejected; at the second attempt the data set exists.
                client.log_inputs(self.run_id, [inputs])
        else:
            client.log_batch(
                self.run_id,
                [Metric(*metric) for metric in record.get("metrics", ())],
                [Param(*param) for param in record.get("params", ())],
                [RunTag(*tag) for tag in record.get("tags", ())],
            )


def flush_spools(connection: Connection, folder: Path) -> None:
    """Send all records that runs left in their spools in ``folder``.

    Raises:
        StoreUnavailable: if the server stays unavailable; the records stay in the spools.
    """
    if connection.remote:
        for records in sorted(folder.glob("*/records.jsonl")):
            run = TrackedRun(connection, records.parent.name)
            run._spool = Spool(records.parent, run._send, is_server_unavailable)
            run.drain()
