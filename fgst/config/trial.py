"""The configuration of a trial, in nested and in flat form."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fgst.config.data import RECIPE_DEFAULTS, DataConfig
from fgst.config.model import ModelConfig
from fgst.config.train import TrainConfig
from fgst.errors import InputError
from fgst.field_values import convert, field_types

if TYPE_CHECKING:
    from fgst.data.dataset import ArrowDataset


@dataclass(frozen=True)
class TrialConfig:
    """Everything that determines a trial's results on a given machine."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def flat(self) -> dict[str, Any]:
        """Return ``{"model.channels": …, "data.dataset": …, …}`` with JSON values (tuples as lists)."""
        sections = dataclasses.asdict(self)
        return {
            # A float given as 1 becomes 1.0, so that equal configurations have equal text and equal digests.
            f"{section}.{name}": float(value) if _FIELD_TYPES[section][name] is float else json.loads(json.dumps(value))
            for section, fields in sections.items()
            for name, value in fields.items()
        }

    def with_values(self, values: Mapping[str, Any]) -> TrialConfig:
        """Return a copy with some fields changed.

        Args:
            values: new values by flat name; a string is parsed as the field's type.

        Raises:
            InputError: if a field does not exist, or if its value has the wrong type or is invalid.
        """
        changes: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            section, _, attribute = name.partition(".")
            annotations = _FIELD_TYPES.get(section, {})
            if attribute not in annotations:
                raise InputError(f"unknown setting {name!r}{_suggestion(name)}")
            changes.setdefault(section, {})[attribute] = convert(name, value, annotations[attribute])
        return dataclasses.replace(
            self, **{s: dataclasses.replace(getattr(self, s), **fields) for s, fields in changes.items()}
        )

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> TrialConfig:
        """Invert :meth:`flat`; a missing field takes the value that is equivalent to versions without the field."""
        return cls().with_values({**_BEFORE_FIELD, **values})

    def digest(self, *, without: tuple[str, ...] = ()) -> str:
        """Return the SHA-256 of the flat configuration in hex, excluding the fields named in ``without``."""
        values = {name: value for name, value in self.flat().items() if name not in without}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def resolve(config: TrialConfig, dataset: ArrowDataset) -> TrialConfig:
    """Fill in the fields that the configuration leaves to the data set, and check that the network fits it.

    Idempotent: a configuration that is already resolved against ``dataset`` is returned unchanged.

    Raises:
        InputError: if the configuration does not fit the data set; the message names the field.
    """
    config.model.check_skeleton(dataset.skeleton)
    return resolve_data_defaults(config, dataset)


def resolve_data_defaults(config: TrialConfig, dataset: ArrowDataset) -> TrialConfig:
    """Fill in benchmark, validation scheme, recipe, frames, repeat and the data set's absolute location.

    Unlike :func:`resolve`, this does not check the network: the base configuration of a sweep need not fit the skeleton
    before the sweep has set its parameters.

    Raises:
        InputError: if the data set has no such benchmark.
    """
    recipe = config.data.recipe or dataset.recipe
    scheme = config.data.validation_by
    data = dataclasses.replace(
        config.data,
        dataset=dataset.location,
        benchmark=dataset.benchmark(config.data.benchmark or "").name,
        recipe=recipe,
        frames=config.data.frames or RECIPE_DEFAULTS[recipe].frames,
        validation_by=dataset.validation_scheme(config.data.benchmark or "") if scheme == "auto" else scheme,
    )
    train = dataclasses.replace(config.train, repeat=config.train.repeat or RECIPE_DEFAULTS[recipe].repeat)
    return dataclasses.replace(config, data=data, train=train)


# Values that are equivalent to versions without a field, where these are not the defaults. They apply to configurations
# in model cards and sweeps.
_BEFORE_FIELD = {"model.final_norm": False, "data.validation_by": "subject"}
_SECTIONS = {"model": ModelConfig, "data": DataConfig, "train": TrainConfig}
_FIELD_TYPES: dict[str, dict[str, Any]] = {name: field_types(kind) for name, kind in _SECTIONS.items()}


def _suggestion(name: str) -> str:
    """Return the end of the message about an unknown setting: the closest name, or all names."""
    names = [f"{section}.{attribute}" for section, fields in _FIELD_TYPES.items() for attribute in fields]
    attribute = name.rpartition(".")[2]
    matches = [n for n in names if n.endswith("." + attribute)] or difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {matches[0]}?" if matches else f"; the settings are {', '.join(names)}"
