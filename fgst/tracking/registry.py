"""The model registry: the best ensemble for a data set, as a model that can be loaded and served without this project.

A registered model consists of code and safetensors files. No pickle is written, and none is read when it is loaded.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fgst.errors import InputError
from fgst.evaluation.ensemble import EnsembleCard
from fgst.tracking.store import TrackingStore
from fgst.tracking.tags import Tags

CHAMPION = "champion"
"""Alias of the best version of a registered model."""
MODEL = "model"
"""Folder of the packaged model among a run's artifacts."""
_PACKAGE = Path(__file__).parents[1]
_REQUIREMENTS = ("mlflow", "msgspec", "numpy", "pandas", "pyarrow", "safetensors", "torch")


def model_name(experiment: str) -> str:
    """Name of the registered model for an experiment, e.g. ``fgst-nw-ucla-x-view`` for ``nw-ucla x-view``."""
    return "fgst-" + re.sub(r"[^A-Za-z0-9]+", "-", experiment).strip("-").lower()


def promote_if_better(store: TrackingStore, run_id: str, experiment: str, val_top1: float, split: str) -> str:
    """Register an ensemble as its data set's champion if its validation accuracy is higher than the current champion's.

    Args:
        store: the tracking store.
        run_id: the ensemble's run.
        experiment: the experiment's name.
        val_top1: validation top-1 in %; for a refit ensemble, that of the ensemble whose weights it uses.
        split: identifies the validation clips. Ensembles that were validated on different clips are not compared.

    Returns:
        A message that says what was done and why.
    """
    name = model_name(experiment)
    current = champion(store, name)
    if current is not None:
        current_top1 = float(current.tags.get(Tags.VAL_TOP1, "-inf"))
        title = f"champion of {name} (version {current.version})"
        if current.run_id == run_id:
            return f"not registered: this ensemble is already the {title}"
        if current.tags.get(Tags.VALIDATION_SPLIT) != split:
            return f"not registered: the {title} was chosen on other validation clips, so the two cannot be compared"
        if val_top1 <= current_top1:
            return f"not registered: the {title} has validation top-1 {current_top1:.2f} %, this one {val_top1:.2f} %"
    log_model(store, run_id)
    number = store.register(name, run_id, MODEL, {Tags.VAL_TOP1: repr(val_top1), Tags.VALIDATION_SPLIT: split})
    store.client.set_registered_model_alias(name, CHAMPION, number)
    return f"registered: {name} version {number}, alias {CHAMPION} (validation {val_top1:.2f} %)"


def champion(store: TrackingStore, name: str) -> Any:
    """Return the model version with the alias "champion", or ``None``."""
    return store.model_version(name, CHAMPION)


def resolve_model(store: TrackingStore, model: str) -> str:
    """Return the run id behind a registered model.

    Args:
        store: the tracking store.
        model: ``NAME@ALIAS``, ``NAME/VERSION``, or ``NAME`` for its champion; or ``champion`` if only one model is
            registered.

    Raises:
        InputError: if there is no such model or version, or if ``champion`` is ambiguous.
    """
    name, separator, which = model.partition("@")
    if not separator:
        name, separator, which = model.partition("/")
    if not separator:
        names = [registered.name for registered in store.client.search_registered_models()]
        if model != CHAMPION and model not in names:
            raise InputError(f"--model {model}: there is no such model; registered: {', '.join(names) or 'none'}")
        if model == CHAMPION and len(names) != 1:
            raise InputError(
                f"--model {CHAMPION}: name the model as NAME@{CHAMPION}; registered: {', '.join(names) or 'none'}"
            )
        name, which = (names[0] if model == CHAMPION else model), CHAMPION
    registered = store.model_version(name, which)
    if registered is None:
        raise InputError(f"--model {model}: {name} has no version {which} in {store.uri}")
    return str(registered.run_id)


def log_model(store: TrackingStore, run_id: str) -> None:
    """Package the networks of a run as a self-contained MLflow model, and upload it to the run's artifacts."""
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import save_model

    from fgst.tracking import serving  # lazy: it defines the served model, and imports torch

    logging.getLogger("mlflow").setLevel(logging.WARNING)

    with tempfile.TemporaryDirectory(prefix="fgst-model-") as name:
        networks, upload, code = (Path(name) / folder for folder in ("networks", "upload", "fgst"))
        networks.mkdir()
        download_networks(store, run_id, networks)
        shutil.copytree(_PACKAGE, code, ignore=shutil.ignore_patterns("__pycache__"))
        upload.mkdir()
        save_model(
            str(upload / MODEL),
            python_model=os.fspath(serving.__file__),  # models from code: no object is pickled
            artifacts={"networks": str(networks)},
            code_paths=[str(code)],
            signature=ModelSignature(inputs=serving.INPUTS, outputs=serving.OUTPUTS),
            input_example=serving.input_example(networks),
            pip_requirements=[f"{package}=={version(package)}" for package in _REQUIREMENTS],
        )
        store.open_run(run_id).log_artifacts(upload)


def download_networks(store: TrackingStore, run_id: str, folder: Path) -> None:
    """Download the networks of a run, in the layout that :meth:`fgst.evaluation.inference.Predictor.load` reads.

    Args:
        store: the tracking store.
        run_id: a training or an ensemble.
        folder: an existing, empty folder. It receives a training's checkpoint, or an ensemble's ``ensemble.json`` and a
            checkpoint per modality.

    Raises:
        InputError: if the run is a sweep, or if a network or its weights are missing.
    """
    kind = store.run(run_id).data.tags.get(Tags.KIND)
    if kind == "sweep":
        raise InputError(f"run {run_id} is a sweep; name one of its trials or its ensemble")
    if kind != "ensemble":
        with store.artifacts(run_id, "checkpoint") as checkpoint:
            shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
        return
    with store.artifacts(run_id, "ensemble.json") as file:
        card = EnsembleCard.read(file)
    card.write(folder / "ensemble.json")
    for member in card.members:
        with store.artifacts(store.run(member.run_id).info.run_id, "checkpoint") as checkpoint:
            shutil.copytree(checkpoint, folder / member.modality)
