"""What a result was obtained with: the columns of every comparison of results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

from fgst.config import PRESETS, TrialConfig

COLUMNS = ("data set", "protocol", "modality", "preset", "passes", "seeds")
_MAX_NAMED_CHANGES = 2  # of a preset; more are counted
_MAX_CHANGES = 6  # settings that differ in more fields from every preset are not called a changed preset
# Columns of their own, and what the data set decides.
_IGNORED = ("train.seed", "train.epochs", "train.repeat")


@dataclass(frozen=True)
class ResultSetting:
    """What a result was obtained with, as text for tables.

    Attributes:
        data: data set and benchmark.
        protocol: "validation", or "paper" for trainings on all training clips.
        modality: what the network sees.
        preset: network and training; see :func:`preset_name`.
        passes: passes over the training clips, or "not stated".
        seeds: number of trainings of each configuration, or "not stated".
    """

    data: str
    protocol: str
    modality: str
    preset: str
    passes: str
    seeds: str

    @classmethod
    def of(cls, config: TrialConfig, data: str, seeds: int | str) -> ResultSetting:
        """Describe results of a configuration whose fields are filled in; see :func:`fgst.config.resolve`."""
        passes = config.train.epochs * (config.train.repeat or 1)
        return cls(data, config.data.protocol, config.data.modality, preset_name(config), str(passes), str(seeds))

    def cells(self) -> tuple[str, ...]:
        """The values in the order of :data:`COLUMNS`."""
        return astuple(self)

    def in_words(self) -> str:
        """Everything in one line, e.g. ``demo x-sub, protocol validation, joint, preset tiny, 15 passes, 3 seeds``."""
        seeds = f"{self.seeds} {'seed' if self.seeds == '1' else 'seeds'}"
        if not self.seeds.isdigit():
            seeds = f"seeds {self.seeds}"
        return (
            f"{self.data}, protocol {self.protocol}, {self.modality.replace('_', ' ')}, preset {self.preset}, "
            f"{self.passes} {'pass' if self.passes == '1' else 'passes'}, {seeds}"
        )


def preset_name(config: TrialConfig) -> str:
    """Name the preset that a configuration is closest to, with what was changed: ``small``, ``small (lr=0.1)``.

    Seed, modality, data set, protocol and number of passes are not part of it. Settings that are far from every preset
    are called ``own``.
    """
    closest = min(PRESETS, key=lambda name: len(_changes(config, PRESETS[name])))
    changes = _changes(config, PRESETS[closest])
    if not changes:
        return closest
    if len(changes) > _MAX_CHANGES:
        return "own"
    if len(changes) > _MAX_NAMED_CHANGES:
        return f"{closest} ({len(changes)} changes)"
    return f"{closest} ({', '.join(f'{name}={_text(value)}' for name, value in changes.items())})"


def _changes(config: TrialConfig, preset: TrialConfig) -> Mapping[str, Any]:
    """Settings of network and training that differ from a preset's, by the last part of their names."""
    values, expected = config.flat(), preset.flat()
    compared = [name for name in values if name.startswith(("model.", "train.")) and name not in _IGNORED]
    if expected["data.frames"] is not None:  # otherwise the data set decides
        compared.append("data.frames")
    return {name.partition(".")[2]: values[name] for name in compared if values[name] != expected[name]}


def _text(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, list) else str(value)
