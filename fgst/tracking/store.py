"""The MLflow tracking store: looking up, starting and reading runs."""

from __future__ import annotations

import getpass
import os
import re
import shlex
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from fgst.errors import DeletedInMlflow, InputError, StoreUnavailable
from fgst.evaluation.metrics import Scores
from fgst.integrity import named_in_errors
from fgst.network import redact
from fgst.tracking.connection import connect, is_server_unavailable, local_artifacts
from fgst.tracking.deletion import deleted_experiment, deleted_run, is_deleted
from fgst.tracking.relocation import artifact_location
from fgst.tracking.run import TrackedRun, flush_spools
from fgst.tracking.spool import retry_while_unavailable
from fgst.tracking.tags import Tags
from fgst.tracking.uris import database_path, resolve_existing_uri, resolve_uri

if TYPE_CHECKING:  # torch takes seconds to import, and listing runs does not need it
    from fgst.model.card import ModelCard

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_BEGINNING_OF_ID = re.compile(r"[0-9a-f]{4,31}")
_CHECKOUT = Path(__file__).parents[2]


class TrackingStore:
    """An open tracking store.

    An SQLite database is created or migrated if necessary. Do this in one process before several share the database.

    Args:
        uri: see :func:`~fgst.tracking.uris.resolve_uri` for the default.
        wait: retry while the server is unavailable, instead of raising :class:`InputError`. Use it where work is
            already in progress.

    Raises:
        InputError: if the store cannot be reached or opened.
        StoreUnavailable: with ``wait``, if the server stays unavailable.
    """

    def __init__(self, uri: str | None = None, *, wait: bool = False) -> None:
        self.connection = connect(resolve_uri(uri), wait=wait)

    @classmethod
    def existing(cls, uri: str | None = None) -> TrackingStore:
        """Open a store for a command that reads runs: a database must exist, instead of being created.

        Raises:
            InputError: if it does not exist, or cannot be opened.
        """
        return cls(resolve_existing_uri(uri))

    @property
    def uri(self) -> str:
        """The store's URI without its password, to be printed, recorded and passed to trials."""
        return redact(self.connection.uri)

    @property
    def remote(self) -> bool:
        """Whether the store is behind a tracking server."""
        return self.connection.remote

    @property
    def client(self) -> Any:
        """MLflow's client; its calls are retried while the tracking server is unavailable."""
        return self.connection.client

    @property
    def raw_client(self) -> Any:
        """MLflow's client; its calls fail at once if the tracking server is unavailable."""
        return self.connection.raw_client

    # Experiments

    def experiment(self, name: str) -> str:
        """Return the id of an experiment, which is created if it does not exist.

        Raises:
            DeletedInMlflow: if it was deleted; MLflow reserves its name.
        """
        experiment = self.client.get_experiment_by_name(name)
        if experiment is not None:
            if is_deleted(experiment):
                raise deleted_experiment(self.uri, experiment)
            return experiment.experiment_id
        location = None
        database = database_path(self.uri)
        if database is not None:
            # MLflow's default is relative to the working directory.
            location = artifact_location(database, name)
        try:
            tags = {"mlflow.experimentKind": "custom_model_development"}  # otherwise MLflow shows chat traces first
            return self.client.create_experiment(name, artifact_location=location, tags=tags)
        except MlflowException:
            experiment = self.client.get_experiment_by_name(name)  # another process may have been faster
            if experiment is None:
                raise
            return experiment.experiment_id

    def experiments(self) -> dict[str, str]:
        """Names of all experiments by id."""
        pages = _all_pages(lambda token: self.client.search_experiments(page_token=token))
        return {experiment.experiment_id: experiment.name for experiment in pages}

    def ui_url(self, experiment: str) -> str:
        """Return where MLflow's user interface shows an experiment's runs.

        Args:
            experiment: the experiment's id.

        Returns:
            The page of the tracking server; for a database, the command that starts the user interface, then the page.
        """
        # MLflow's default page of an experiment shows chat traces.
        page = f"#/experiments/{experiment}/runs?workflowType=machine_learning"
        if self.remote:
            return f"{self._server()}/{page}"
        # `make ui` opens $MLFLOW_TRACKING_URI unless it is empty; it does not resolve paths that are not URIs.
        environment = os.environ.get("MLFLOW_TRACKING_URI", "")
        is_default = self.connection.uri == resolve_uri() and (not environment or "://" in environment)
        if is_default and Path.cwd() == _CHECKOUT:  # elsewhere there is no Makefile, or another one
            return f"make ui, then http://127.0.0.1:5000/{page} (or the port that it prints)"
        return f"{shlex.join(['mlflow', 'ui', '--backend-store-uri', self.uri])}, then http://127.0.0.1:5000/{page}"

    def artifact_page(self, run_id: str, path: str) -> str | None:
        """Where a browser finds an artifact of a run: an absolute path, or the page of the tracking server.

        Returns:
            ``None`` if the artifacts are neither in this machine's file system nor on a tracking server.
        """
        run = self.run(run_id)
        folder = self.local_artifacts(run)
        if folder is not None and (folder / path).is_file():
            return str((folder / path).resolve())
        if self.remote:
            return f"{self._server()}/#/experiments/{run.info.experiment_id}/runs/{run_id}/artifacts/{path}"
        return None

    def _server(self) -> str:
        """The tracking server's URL without a password."""
        scheme, _, address = self.connection.uri.rstrip("/").partition("://")
        return f"{scheme}://{address.rpartition('@')[2]}"

    # Runs

    def run(self, run_id: str, *, allow_deleted: bool = False) -> Run:
        """Return a run.

        Args:
            run_id: 32 hexadecimal digits.
            allow_deleted: return it even if it was deleted in MLflow.

        Raises:
            InputError: if it does not exist.
            DeletedInMlflow: if it was deleted.
        """
        if not _RUN_ID.fullmatch(run_id):
            raise InputError(f"run id {run_id!r} is not 32 hexadecimal digits")
        try:
            run: Run = self.client.get_run(run_id)
        except MlflowException:
            raise InputError(
                f"there is no run {run_id} in {self.uri}; name another store with --tracking-uri"
            ) from None
        if is_deleted(run) and not allow_deleted:
            raise deleted_run(self.client, self.uri, run)
        return run

    def full_run_id(self, text: str) -> str:
        """Return the id of the only run whose id begins with ``text``, which a user has typed.

        Deleted runs count, so that the error of whatever uses the id says that the run was deleted.

        Raises:
            InputError: if ``text`` is not the beginning of a run id (four digits or more), or if no run or several runs
                begin with it.
        """
        if _RUN_ID.fullmatch(text):
            return text
        if not _BEGINNING_OF_ID.fullmatch(text):
            raise InputError(f"run id {text!r} is not 32 hexadecimal digits, or the first four or more of them")
        experiments = list(self.experiments())
        query = f"attributes.run_id LIKE '{text}%'"
        found = [run.info.run_id for run in self._search(experiments, query, "start_time DESC", ViewType.ALL)]
        if not found:
            raise InputError(
                f"there is no run whose id begins with {text} in {self.uri}; name another store with --tracking-uri"
            )
        if len(found) > 1:
            shown = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
            raise InputError(f"the ids of {len(found)} runs begin with {text}: {shown}; type more digits")
        return str(found[0])

    def start(
        self, experiment: str, trial_id: str, name: str, tags: Mapping[str, str], parent: str | None = None
    ) -> TrackedRun:
        """Start a run, or continue the one that was started before.

        Args:
            experiment: the experiment's id.
            trial_id: identity of the trial, by which the run is looked up.
            name: name of a new run.
            tags: tags of a new run, in addition to its trial id, parent, host, user and git commit.
            parent: run id of the sweep. With it, an existing run with this trial id and parent is reopened.
        """
        all_tags = {**_source_tags(), **tags, Tags.TRIAL_ID: trial_id, **({Tags.PARENT: parent} if parent else {})}

        def find_or_create() -> TrackedRun:  # a request that timed out may have created the run: look it up each time
            existing = self.find(experiment, trial_id, parent) if parent else None
            if existing is not None:
                return self.reopen(existing)
            created = self.raw_client.create_run(experiment, run_name=name, tags=all_tags)
            return self.open_run(created.info.run_id)

        return retry_while_unavailable(find_or_create, is_server_unavailable)

    def open_run(self, run_id: str) -> TrackedRun:
        """Open an existing run for writing; its status does not change."""
        return TrackedRun(self.connection, run_id)

    def reopen(self, run: Run) -> TrackedRun:
        """Set a run to RUNNING again that has ended or whose process was killed, and open it for writing."""
        tracked = self.open_run(run.info.run_id)
        tracked.reopen()
        return tracked

    def find(self, experiment: str, trial_id: str, parent: str) -> Run | None:
        """Return a sweep's run with this trial id, or ``None`` if it was not started."""
        query = f"tags.`{Tags.TRIAL_ID}` = '{trial_id}' and tags.`{Tags.PARENT}` = '{parent}'"
        return next(iter(self.client.search_runs([experiment], query, max_results=1)), None)

    def finished(self, experiment: str, trial_id: str) -> Run | None:
        """Return the newest finished run with this trial id, of any sweep, whose scores and weights are stored."""
        query = f"tags.`{Tags.TRIAL_ID}` = '{trial_id}' and attributes.status = 'FINISHED'"
        for run in self.client.search_runs([experiment], query, order_by=["start_time DESC"]):
            if Tags.WEIGHTS_REMOVED in run.data.tags:  # an ensemble would need its weights
                continue
            stored = {file.path for file in self.client.list_artifacts(run.info.run_id, "scores")}
            if "scores/test.arrow" in stored and ("scores/val.arrow" in stored or "val/top1" not in run.data.metrics):
                return run
        return None

    def unfinished(self, experiment: str, trial_id: str) -> list[str]:
        """Return ids of unfinished runs with this trial id that belong to no sweep, newest first."""
        runs = self.client.search_runs(
            [experiment], f"tags.`{Tags.TRIAL_ID}` = '{trial_id}'", order_by=["start_time DESC"]
        )
        return [r.info.run_id for r in runs if r.info.status != "FINISHED" and Tags.PARENT not in r.data.tags]

    def children(self, parent: str, *, deleted: bool = False) -> list[Run]:
        """Return all trials of a sweep in the order in which they were started.

        Args:
            parent: the sweep's run id.
            deleted: return those that were deleted in MLflow instead of the others.
        """
        experiment = self.run(parent, allow_deleted=True).info.experiment_id
        query = f"tags.`{Tags.PARENT}` = '{parent}' and tags.`{Tags.KIND}` = 'trial'"
        view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
        return self._search([experiment], query, "start_time ASC", view)

    def deletion(self, run_id: str) -> DeletedInMlflow | None:
        """The error that describes how a run was deleted in MLflow; ``None`` if it was not."""
        run = self.run(run_id, allow_deleted=True)
        return deleted_run(self.client, self.uri, run) if is_deleted(run) else None

    def runs(self, experiments: Sequence[str], query: str = "") -> list[Run]:
        """Return all runs of these experiments, newest first, except deleted ones.

        Args:
            experiments: ids.
            query: a filter in MLflow's search syntax.
        """
        return self._search(experiments, query, "start_time DESC") if experiments else []

    def _search(
        self, experiments: Sequence[str], query: str, order: str, view: int = ViewType.ACTIVE_ONLY
    ) -> list[Run]:
        return _all_pages(lambda token: self.client.search_runs(list(experiments), query, view, 1000, [order], token))

    def metric_history(self, run_id: str, metric: str) -> dict[int, float]:
        """Values of a run's metric by step."""
        return {m.step: m.value for m in self.client.get_metric_history(run_id, metric)}

    def flush_spools(self, folder: Path) -> None:
        """Send all records that runs left in their spools in ``folder``.

        Raises:
            StoreUnavailable: if the server stays unavailable; the records stay in the spools.
        """
        flush_spools(self.connection, folder)

    # Artifacts

    @contextmanager
    def artifacts(self, run_id: str, path: str) -> Iterator[Path]:
        """Download a file or folder of a run's artifacts; the local copy is removed afterwards.

        Raises:
            InputError: if the run has no such artifact.
        """
        if path == "checkpoint" and Tags.WEIGHTS_REMOVED in self.run(run_id).data.tags:
            raise InputError(
                f"run {run_id} was not the best of its sweep, and python -m fgst.runs gc has removed its weights; "
                "its settings, metrics and scores are still available"
            )
        with tempfile.TemporaryDirectory(prefix="fgst-artifacts-") as folder:
            try:
                local = Path(self.client.download_artifacts(run_id, path, folder))
            except StoreUnavailable:
                raise
            except Exception as error:  # OSError, MlflowException or HTTP errors, depending on the artifact storage
                raise InputError(
                    f"run {run_id} has no artifact {path!r} ({str(error).splitlines()[0]}); did its training finish?"
                ) from None
            with named_in_errors(local, f"run {run_id}, artifact {path}"):
                yield local

    def artifact_sizes(self, run_id: str, path: str) -> dict[str, int]:
        """Sizes in bytes, by name, of the files directly in a folder of a run's artifacts; empty if it is missing."""
        files = self.client.list_artifacts(run_id, path)
        return {Path(file.path).name: file.file_size or 0 for file in files if not file.is_dir}

    def local_artifacts(self, run: Run) -> Path | None:
        """The folder of a run's artifacts; ``None`` if it is not in this machine's file system."""
        return local_artifacts(run)

    def model_card(self, run_id: str) -> ModelCard:
        """Read the description of a training's network.

        Raises:
            InputError: if the run has none.
        """
        from fgst.model.card import ModelCard  # lazy: torch takes seconds to import

        with self.artifacts(run_id, "checkpoint/config.json") as file:
            return ModelCard.read(file)

    def scores(self, run_id: str, split: str) -> Scores:
        """Read a run's stored scores.

        Args:
            run_id: a training or an ensemble.
            split: "val" or "test".

        Raises:
            InputError: if the run has none.
        """
        with self.artifacts(run_id, f"scores/{split}.arrow") as file:
            return Scores.load(file)

    # Registered models

    def model_version(self, name: str, version: str) -> Any:
        """Return a version of a registered model by its number or alias; ``None`` if it does not exist."""
        try:
            if version.isdigit():
                return self.client.get_model_version(name, version)
            return self.client.get_model_version_by_alias(name, version)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def register(self, name: str, run_id: str, path: str, tags: Mapping[str, str]) -> str:
        """Register the folder ``path`` of a run's artifacts as a new version of a model; return the version number."""
        with suppress(MlflowException):  # the model exists already
            self.client.create_registered_model(name)
        created = self.client.create_model_version(name, f"runs:/{run_id}/{path}", run_id, tags=dict(tags))
        return str(created.version)

    def registered_runs(self) -> set[str]:
        """Ids of the runs behind all versions of all registered models."""
        versions = _all_pages(lambda token: self.client.search_model_versions(max_results=1000, page_token=token))
        return {version.run_id for version in versions if version.run_id}


def _all_pages(search: Callable[[str | None], Any]) -> list[Any]:
    """Collect all results of a paginated search, a function of the page token."""
    results: list[Any] = []
    token = None
    while True:
        page = search(token)
        results += page
        token = page.token
        if not token:
            return results


def _source_tags() -> dict[str, str]:
    """Tags that say who started a run, on which host and from which commit."""
    tags = {Tags.HOST: socket.gethostname(), "mlflow.source.type": "LOCAL"}
    with suppress(KeyError, OSError):  # a container without a passwd entry for the user
        tags["mlflow.user"] = getpass.getuser()
    return tags | _git_tags()


def _git_tags() -> dict[str, str]:
    """The commit of this code, and whether it has uncommitted changes; empty outside a git checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "--", ".")
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"mlflow.source.git.commit": commit, Tags.GIT_DIRTY: str(bool(changes)).lower()}


def _git(*arguments: str) -> str:
    # In the folder of the whole package, not only of this module.
    process = subprocess.run(
        ["git", *arguments], cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=10, check=True
    )
    return process.stdout.strip()
