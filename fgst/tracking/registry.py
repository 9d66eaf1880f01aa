"""The model registry: the best ensemble of a data set as a model that anyone can load, serve and trust.

A registered model is code and safetensors: no pickle is written, and none is read when it is loaded.
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
from fgst.tracking.store import TrackedRun, TrackingStore
from fgst.tracking.tags import Tags

CHAMPION = "champion"
MODEL = "model"  # the folder among a run's artifacts
_PACKAGES = Path(__file__).parents[2]
_REQUIRED = ("mlflow", "numpy", "pandas", "pyarrow", "safetensors", "torch")


def model_name(experiment: str) -> str:
    """``fgst-nw-ucla-x-view`` for experiment ``nw-ucla x-view``."""
    return "fgst-" + re.sub(r"[^A-Za-z0-9]+", "-", experiment).strip("-").lower()


def promote_if_better(store: TrackingStore, run_id: str, experiment: str, val_top1: float, split: str) -> str:
    """Make an ensemble the champion of its data set, if it beats the one there is; says what came of it.

    Args:
        run_id: of the ensemble.
        val_top1: what it, or the one that it is trained again after, reached on the validation clips, in %.
        split: which clips these are; figures of different ones are not compared.
    """
    name = model_name(experiment)
    current = champion(store, name)
    if current is not None:
        theirs = float(current.tags.get(Tags.VAL_TOP1, "-inf"))
        which = f"champion of {name} (version {current.version})"
        if current.run_id == run_id:
            return f"it is the {which} already"
        if current.tags.get(Tags.VALIDATION_SPLIT) != split:
            return f"not registered: the {which} was chosen on other validation clips, so the two cannot be compared"
        if val_top1 <= theirs:
            return f"not registered: the {which} validates at {theirs:.2f} %, this at {val_top1:.2f} %"
    package(store, run_id)
    number = store.register(name, run_id, MODEL, {Tags.VAL_TOP1: repr(val_top1), Tags.VALIDATION_SPLIT: split})
    store.client.set_registered_model_alias(name, CHAMPION, number)
    return f"registered: {name} version {number}, alias {CHAMPION} (validation {val_top1:.2f} %)"


def champion(store: TrackingStore, name: str) -> Any:
    """The champion's model version, or ``None``."""
    return store.model_version(name, CHAMPION)


def run_of(store: TrackingStore, model: str) -> str:
    """The run behind a registered model.

    Args:
        model: ``champion`` where there is one registered model; else ``NAME@champion``, ``NAME@ALIAS`` or ``NAME/3``.

    Raises:
        InputError: if there is none, or it is not clear which is meant.
    """
    name, at, which = model.partition("@")
    if not at:
        name, slash, which = model.partition("/")
        if not slash:
            names = [found.name for found in store.client.search_registered_models()]
            if model != CHAMPION and model not in names:
                raise InputError(f"--model {model}: there is none; registered are {', '.join(names) or 'none'}")
            if model == CHAMPION and len(names) != 1:
                raise InputError(f"--model champion: of which? registered are {', '.join(names) or 'none'}")
            name, which = (names[0] if model == CHAMPION else model), CHAMPION
    found = store.model_version(name, which)
    if found is None:
        raise InputError(f"--model {model}: no version {which} of {name} is registered in {store.uri}")
    return str(found.run_id)


def package(store: TrackingStore, run_id: str) -> None:
    """Put the ensemble of a run into its artifacts as a model of MLflow's that needs nothing else."""
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import save_model

    from fgst.tracking import serving

    logging.getLogger("mlflow").setLevel(logging.WARNING)

    with tempfile.TemporaryDirectory(prefix="fgst-model-") as name:
        networks, model = Path(name) / "networks", Path(name) / MODEL
        networks.mkdir()
        collect(store, run_id, networks)
        code = []
        for package_name in ("fgst", "data_prep"):
            code.append(str(Path(name) / package_name))
            shutil.copytree(_PACKAGES / package_name, code[-1], ignore=shutil.ignore_patterns("__pycache__"))
        save_model(
            str(model),
            python_model=os.fspath(serving.__file__),  # code, not an object: nothing is pickled
            artifacts={"networks": str(networks)},
            code_paths=code,
            signature=ModelSignature(inputs=serving.INPUTS, outputs=serving.OUTPUTS),
            input_example=serving.example(networks),
            pip_requirements=[f"{required}=={version(required)}" for required in _REQUIRED],
        )
        (Path(name) / "logged").mkdir()
        model.rename(Path(name) / "logged" / MODEL)
        TrackedRun(store, run_id).log_artifacts(Path(name) / "logged")


def collect(store: TrackingStore, run_id: str, folder: Path) -> None:
    """The networks of an ensemble in one folder: ``ensemble.json``, and a checkpoint by modality; or of one training.

    Raises:
        InputError: if the run is none, or a member or its weights are not there any more.
    """
    run = store.run(run_id)
    if run.data.tags.get(Tags.KIND) == "sweep":
        raise InputError(f"run {run_id} is a sweep; name one of its trials, or its ensemble")
    if run.data.tags.get(Tags.KIND) != "ensemble":
        with store.artifacts(run_id, "checkpoint") as checkpoint:
            shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
        return
    with store.artifacts(run_id, "ensemble.json") as file:
        card = EnsembleCard.read(file)
    card.write(folder / "ensemble.json")
    for member in card.members:
        with store.artifacts(store.run(member.run_id).info.run_id, "checkpoint") as checkpoint:
            shutil.copytree(checkpoint, folder / member.modality)
