"""Errors of MLflow's client that say what to do, e.g. how to restore deleted runs, which MLflow keeps."""

from __future__ import annotations

import re
import shlex
from typing import Any

from mlflow.entities import Experiment, LifecycleStage, Run
from mlflow.exceptions import MlflowException

from fgst.errors import DeletedInMlflow, InputError
from fgst.network import HIDDEN, redact

_NOT_ACTIVE = re.compile(r"The (run|experiment) (\w+) must be in the 'active' state")


class ExplainingClient:
    """Wrap MLflow's client so that a call that cannot succeed raises an error that says why.

    Writing to what was deleted raises :class:`~fgst.errors.DeletedInMlflow`, writing to a read-only database an
    :class:`~fgst.errors.InputError`.

    Args:
        client: the client to wrap.
        uri: URI of its tracking store, for the command that restores what was deleted.
    """

    def __init__(self, client: Any, uri: str) -> None:
        self._client, self._uri = client, uri

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._client, name)
        if not callable(attribute):
            return attribute

        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return attribute(*args, **kwargs)
            except MlflowException as error:
                if match := _NOT_ACTIVE.search(str(error)):
                    raise self._deleted(*match.groups()) from None
                if "readonly database" in str(error):
                    raise InputError(
                        f"the tracking store {redact(self._uri)} is read-only for this user; change its permissions, "
                        "or name another one with --tracking-uri"
                    ) from None
                raise

        return call

    def _deleted(self, kind: str, identifier: str) -> DeletedInMlflow:
        if kind == "run":
            run = self._client.get_run(identifier)
            return deleted_run(self._client, self._uri, run)
        return deleted_experiment(self._uri, self._client.get_experiment(identifier))


def is_deleted(entity: Run | Experiment) -> bool:
    """Whether a run or an experiment was deleted."""
    stage = entity.info.lifecycle_stage if isinstance(entity, Run) else entity.lifecycle_stage
    return bool(stage == LifecycleStage.DELETED)


def deleted_run(client: Any, uri: str, run: Run) -> DeletedInMlflow:
    """The error for a deleted run; it names the experiment if that was deleted with all of its runs."""
    experiment = client.get_experiment(run.info.experiment_id)
    if is_deleted(experiment):
        return deleted_experiment(uri, experiment)
    run_id = run.info.run_id
    return DeletedInMlflow(
        f"run {run_id} ({run.info.run_name}) was deleted in MLflow; restore it with: "
        + _mlflow_command(uri, "runs", "restore", "--run-id", run_id)
    )


def deleted_experiment(uri: str, experiment: Experiment) -> DeletedInMlflow:
    """The error for a deleted experiment."""
    return DeletedInMlflow(
        f"experiment {experiment.name!r} was deleted in MLflow; restore it and its runs with: "
        + _mlflow_command(uri, "experiments", "restore", "--experiment-id", experiment.experiment_id)
    )


def _mlflow_command(uri: str, *words: str) -> str:
    uri = redact(uri)
    # With a password, the user's environment has the whole URI already.
    setting = "" if HIDDEN in uri else f"MLFLOW_TRACKING_URI={shlex.quote(uri)} "
    return setting + shlex.join(["mlflow", *words])
