"""The configuration of a trial: frozen, validated dataclasses for the network, the data and the training.

A :class:`TrialConfig` contains everything that determines a trial's results on a given machine, including its seed.
In flat form (``{"model.focal_joints": 15, …}``) it is what ``--set`` changes, what MLflow records as a run's
parameters, and what a checkpoint's ``config.json`` contains.
"""

from fgst.config.data import (
    MODALITIES,
    PROTOCOLS,
    RECIPE_DEFAULTS,
    RECIPES,
    DataConfig,
    Modality,
    Recipe,
    RecipeName,
    SplitProtocol,
    ValidationBy,
    ValidationScheme,
)
from fgst.config.model import FocalOrder, ModelConfig, Norm, Temporal
from fgst.config.presets import PRESETS
from fgst.config.train import Optimizer, Precision, Schedule, TrainConfig
from fgst.config.trial import TrialConfig, resolve, resolve_data_defaults

__all__ = [
    "MODALITIES",
    "PRESETS",
    "PROTOCOLS",
    "RECIPES",
    "RECIPE_DEFAULTS",
    "DataConfig",
    "FocalOrder",
    "Modality",
    "ModelConfig",
    "Norm",
    "Optimizer",
    "Precision",
    "Recipe",
    "RecipeName",
    "Schedule",
    "SplitProtocol",
    "Temporal",
    "TrainConfig",
    "TrialConfig",
    "ValidationBy",
    "ValidationScheme",
    "resolve",
    "resolve_data_defaults",
]
