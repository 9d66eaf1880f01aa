"""Everything MLflow: where runs are kept, and what a training writes into its run.

A sweep is a parent run, a trial a child run. A run is found again by the key of its trial, so a trial that was
interrupted goes on in the run it began. But for the registry and the served model, this is the only module that imports
mlflow.
"""

from __future__ import annotations

import getpass
import logging
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from fgst.tracking.tags import Tags

# Before the import: the library would report its use to its makers, and waits for an answer where there is no network.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # where our own last line is the next command
# Nor may a training stand still for the minutes through which the library tries again: see spool.py.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from fgst.errors import InputError
from fgst.network import require_server
from fgst.tracking.run import (
    TrackedRun,
    http_status,
    is_server_unavailable,
    track,
    trial_tags,
)
from fgst.tracking.spool import RetryingClient, Spool, TrackingServerUnavailable, retry_while_unavailable

if TYPE_CHECKING:  # PyTorch comes with them: seconds, and 0.1 GiB, that looking at runs does not need
    from fgst.evaluation.metrics import Scores
    from fgst.model.card import ModelCard

__all__ = ["TrackedRun", "TrackingStore", "existing", "is_server_unavailable", "resolve_uri", "track", "trial_tags"]
_RUN_ID = re.compile(r"[0-9a-f]{32}")


def resolve_uri(uri: str | None = None) -> str:
    """The tracking store: the one given, else ``MLFLOW_TRACKING_URI``, else ``mlflow.db`` in the working directory.

    Paths become absolute, since a trial runs in a directory of its own.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    for scheme in ("sqlite:///", "file://"):
        if uri.startswith(scheme) and not uri.removeprefix(scheme).startswith(("/", "?")):
            return scheme + str(Path(uri.removeprefix(scheme)).absolute())
    return uri if "://" in uri else f"sqlite:///{Path(uri).absolute()}"


def existing(uri: str | None = None) -> str:
    """The tracking store as :func:`resolve_uri` has it, for commands that only look: none is made for them.

    Raises:
        InputError: if it is a database that is not there.
    """
    resolved = resolve_uri(uri)
    if resolved.startswith("sqlite:///"):
        database = Path(resolved.removeprefix("sqlite:///").partition("?")[0])
        if not database.is_file():
            raise InputError(f"{database}: there is no tracking store; --tracking-uri names another")
    return resolved


class TrackingStore:
    """A tracking store, opened; creates and migrates an sqlite one, so open it once before processes share it.

    Once it is open, ``client`` waits for a server that goes away.

    Args:
        wait: also for a server that is away now: this is a process in the middle of something.

    Raises:
        InputError: if it cannot be reached or opened.
        ServerAway: if its server was waited for in vain.
    """

    def __init__(self, uri: str | None = None, *, wait: bool = False) -> None:
        self.uri = resolve_uri(uri)
        self.remote = self.uri.startswith(("http://", "https://"))
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it tells what it raises, at length
        if self.uri.startswith("sqlite:///"):
            database = Path(self.uri.removeprefix("sqlite:///").partition("?")[0])
            if not database.parent.is_dir():
                raise InputError(f"{self.uri}: there is no directory {database.parent} to keep the database in")
            if not database.exists():
                _create_database(database)
        if self.remote and not wait:
            require_server(self.uri, "the tracking server")
        try:
            self.raw_client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            self.client: Any = (
                RetryingClient(self.raw_client, is_server_unavailable) if self.remote else self.raw_client
            )
            (self.client if wait else self.raw_client).search_experiments(max_results=1)
        except TrackingServerUnavailable:
            raise
        except Exception as error:  # the library raises whatever its database driver or HTTP client does
            if http_status(error) in (401, 403):
                raise InputError(
                    f"the tracking server {self.uri} refuses these credentials: "
                    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN)"
                ) from None
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"the tracking store {self.uri} does not answer: {message}") from None

    def experiment(self, name: str) -> str:
        """The id of the experiment of that name, created if need be."""
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        location = None
        if self.uri.startswith("sqlite:///"):
            # Beside the database, not wherever the process happens to be.
            database = Path(self.uri.removeprefix("sqlite:///").partition("?")[0])
            location = (database.parent / "mlruns" / name.replace("/", "-").replace(" ", "-")).as_uri()
        try:
            kind = {"mlflow.experimentKind": "custom_model_development"}  # not of chat traces
            return self.client.create_experiment(name, artifact_location=location, tags=kind)
        except MlflowException:
            found = self.client.get_experiment_by_name(name)  # somebody else was faster
            if found is None:
                raise
            return found.experiment_id

    def ui_url(self, experiment: str) -> str:
        """How a person sees an experiment's runs; MLflow's front page shows chat traces instead."""
        page = f"#/experiments/{experiment}/runs?workflowType=machine_learning"
        if self.uri.startswith(("http://", "https://")):
            return f"{self.uri.rstrip('/')}/{page}"
        return f"make ui, then http://127.0.0.1:5000/{page}"

    def run(self, run_id: str) -> Run:
        """The run of that id.

        Raises:
            InputError: if there is none in this store.
        """
        if not _RUN_ID.fullmatch(run_id):
            raise InputError(f"run id {run_id!r} is not 32 hexadecimal digits")
        try:
            return self.client.get_run(run_id)
        except MlflowException:
            raise InputError(f"there is no run {run_id} in {self.uri}; --tracking-uri names another store") from None

    def start(
        self, experiment: str, key: str, name: str, tags: Mapping[str, str], parent: str | None = None
    ) -> TrackedRun:
        """The run of a trial: the one with this key under this parent if it was begun before, or a new one."""
        everything = {**_source_tags(), **tags, Tags.TRIAL_ID: key, **({Tags.PARENT: parent} if parent else {})}

        def find_or_create() -> TrackedRun:  # a request that timed out may have made it: look again, each time
            found = self.find(experiment, key, parent) if parent else None
            if found is not None:
                return self.reopen(found)
            created = self.raw_client.create_run(experiment, run_name=name, tags=everything)
            return TrackedRun(self, created.info.run_id)

        return retry_while_unavailable(find_or_create, is_server_unavailable)

    def open_run(self, run_id: str) -> TrackedRun:
        """A handle for writing into an existing run."""
        return TrackedRun(self, run_id)

    def metric_history(self, run_id: str, metric: str) -> dict[int, float]:
        """Values of a run's metric by step."""
        return {m.step: m.value for m in self.client.get_metric_history(run_id, metric)}

    def find(self, experiment: str, key: str, parent: str) -> Run | None:
        """The child run with this key, if it was begun."""
        wanted = f"tags.`{Tags.TRIAL_ID}` = '{key}' and tags.`{Tags.PARENT}` = '{parent}'"
        return next(iter(self.client.search_runs([experiment], wanted, max_results=1)), None)

    def reopen(self, run: Run) -> TrackedRun:
        """Go on writing into a run that was ended, or whose process was killed."""
        self.client.update_run(run.info.run_id, status="RUNNING")
        for tag in (Tags.REASON, Tags.STATUS):
            if tag in run.data.tags:
                self.client.delete_tag(run.info.run_id, tag)
        return TrackedRun(self, run.info.run_id)

    def finished(self, experiment: str, key: str) -> Run | None:
        """The newest run of that key, of whichever sweep, that was trained to its end and kept its scores."""
        wanted = f"tags.`{Tags.TRIAL_ID}` = '{key}' and attributes.status = 'FINISHED'"
        found = self.client.search_runs([experiment], wanted, order_by=["start_time DESC"])
        for run in found:
            if Tags.WEIGHTS_REMOVED in run.data.tags:  # an ensemble would need its weights
                continue
            kept = {file.path for file in self.client.list_artifacts(run.info.run_id, "scores")}
            if "scores/test.arrow" in kept and ("scores/val.arrow" in kept or "val/top1" not in run.data.metrics):
                return run
        return None

    def model_card(self, run_id: str) -> ModelCard:
        """What a training's network is.

        Raises:
            InputError: if the run kept none.
        """
        from fgst.model.card import ModelCard

        with self.artifacts(run_id, "checkpoint/config.json") as file:
            return ModelCard.read(file)

    def scores(self, run_id: str, split: str) -> Scores:
        """The scores of "val" or "test" that a run kept.

        Raises:
            InputError: if it kept none.
        """
        from fgst.evaluation.metrics import Scores

        with self.artifacts(run_id, f"scores/{split}.arrow") as file:
            return Scores.load(file)

    def model_version(self, name: str, which: str) -> Any:
        """A registered version, by its alias or its number; ``None`` if there is none."""
        try:
            if which.isdigit():
                return self.client.get_model_version(name, which)
            return self.client.get_model_version_by_alias(name, which)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def register(self, name: str, run_id: str, path: str, tags: Mapping[str, str]) -> str:
        """A new version of a registered model, from the folder ``path`` of a run's artifacts; returns its number."""
        with suppress(MlflowException):  # it is there already
            self.client.create_registered_model(name)
        created = self.client.create_model_version(name, f"runs:/{run_id}/{path}", run_id, tags=dict(tags))
        return str(created.version)

    def children(self, parent: str) -> list[Run]:
        """All trials of a sweep, in the order in which they were begun."""
        experiment = self.run(parent).info.experiment_id
        found: list[Run] = []
        token = None
        while True:
            page = self.client.search_runs(
                [experiment],
                f"tags.`{Tags.PARENT}` = '{parent}' and tags.`{Tags.KIND}` = 'trial'",
                ViewType.ACTIVE_ONLY,
                1000,
                ["start_time ASC"],
                token,
            )
            found += page
            token = page.token
            if not token:
                return found

    def experiments(self) -> dict[str, str]:
        """Names of all experiments by id."""
        found: dict[str, str] = {}
        token = None
        while True:
            page = self.client.search_experiments(page_token=token)
            found |= {experiment.experiment_id: experiment.name for experiment in page}
            token = page.token
            if not token:
                return found

    def runs(self, experiments: Sequence[str], where: str = "") -> list[Run]:
        """All runs of these experiments that are not deleted, the newest first."""
        found: list[Run] = []
        token = None
        while experiments:
            page = self.client.search_runs(
                list(experiments), where, ViewType.ACTIVE_ONLY, 1000, ["start_time DESC"], token
            )
            found += page
            token = page.token
            if not token:
                break
        return found

    def registered_runs(self) -> set[str]:
        """Ids of the runs that any version of a registered model is of."""
        found: set[str] = set()
        token = None
        while True:
            page = self.client.search_model_versions(max_results=1000, page_token=token)
            found |= {version.run_id for version in page if version.run_id}
            token = page.token
            if not token:
                return found

    def artifact_sizes(self, run_id: str, path: str) -> dict[str, int]:
        """Bytes of the files directly in a folder of a run's artifacts, by name; empty if there is none."""
        files = self.client.list_artifacts(run_id, path)
        return {Path(file.path).name: file.file_size or 0 for file in files if not file.is_dir}

    def local_artifacts(self, run: Run) -> Path | None:
        """The folder of a run's artifacts, where they lie in this machine's file system."""
        place = urlsplit(str(run.info.artifact_uri))
        if place.scheme not in ("", "file") or place.netloc not in ("", "localhost"):
            return None
        return Path(unquote(place.path) if place.scheme else str(run.info.artifact_uri))

    def unfinished(self, experiment: str, key: str) -> list[str]:
        """Ids of runs of their own with this key that did not finish, the newest first."""
        found = self.client.search_runs([experiment], f"tags.`{Tags.TRIAL_ID}` = '{key}'", order_by=["start_time DESC"])
        return [r.info.run_id for r in found if r.info.status != "FINISHED" and Tags.PARENT not in r.data.tags]

    def flush_spools(self, folder: Path) -> None:
        """Send what runs left in their spools in ``folder`` when they ended."""
        for left in sorted(folder.glob("*/records.jsonl")) if self.remote else []:
            run = TrackedRun(self, left.parent.name)
            run.spool = Spool(left.parent, run._send, is_server_unavailable)
            run._drain()

    @contextmanager
    def artifacts(self, run_id: str, path: str) -> Iterator[Path]:
        """A folder or file of a run's artifacts, as a local copy that is removed afterwards.

        Raises:
            InputError: if the run has no such artifact.
        """
        if path == "checkpoint" and Tags.WEIGHTS_REMOVED in self.run(run_id).data.tags:
            raise InputError(
                f"run {run_id} was not the best of its sweep, and python -m fgst.runs gc has removed its weights; "
                "its settings, figures and scores are still there"
            )
        with tempfile.TemporaryDirectory(prefix="fgst-artifacts-") as folder:
            try:
                local = Path(self.client.download_artifacts(run_id, path, folder))
            except TrackingServerUnavailable:
                raise
            except Exception as error:  # depends on where artifacts are kept: OSError, MlflowException, HTTP errors
                raise InputError(
                    f"run {run_id} has no artifact {path!r} ({str(error).splitlines()[0]}); did its training finish?"
                ) from None
            yield local


def _create_database(database: Path) -> None:
    """Make an sqlite store whole or not at all: MLflow takes seconds, and cannot go on with one that was cut short."""
    print(f"making the tracking store {database} (once)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix=f".{database.name}-", dir=database.parent) as folder:
        whole = Path(folder) / database.name
        MlflowClient(tracking_uri=f"sqlite:///{whole}").search_experiments(max_results=1)
        with suppress(FileExistsError):  # somebody else was faster
            os.link(whole, database)


def _source_tags() -> dict[str, str]:
    """Who ran what, where, from which code; the commit only in a git checkout."""
    tags = {Tags.HOST: socket.gethostname(), "mlflow.source.type": "LOCAL"}
    with suppress(KeyError, OSError):  # a container without an entry for the user
        tags["mlflow.user"] = getpass.getuser()
    return tags | _git_tags()


def _git_tags() -> dict[str, str]:
    """The commit of this code and whether it was changed since; nothing where it is no git checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        changes = subprocess.run(
            ["git", "status", "--porcelain", "--", "."],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": commit, Tags.GIT_DIRTY: str(bool(changes)).lower()}
