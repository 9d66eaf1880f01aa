"""What a sweep is, apart from where its trials run: frozen, checked, and with an identity of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fgst.config import TrialConfig
from fgst.dataset import ArrowDataset
from fgst.errors import InputError
from fgst.skeleton import Skeleton
from fgst.training import resolve


@dataclass(frozen=True)
class Question:
    """What a script in ``sweeps/`` asks.

    Attributes:
        name: of the script, e.g. ``focal_k``.
        title: the question in words.
        axis: heading of the swept setting, e.g. ``K``.
        settings: the fields that one value stands for, e.g. ``lambda k: {"model.focal_joints": k}``.
        values: the values asked for by default, for a skeleton.
        read: one value from a command line's text.
        published: the paper's top-1 in %, by value.
        source: where these stand, e.g. "Table 2 (NTU-60 X-Sub, joint)".
    """

    name: str
    title: str
    axis: str
    settings: Callable[[Any], Mapping[str, Any]]
    values: Callable[[Skeleton], Sequence[Any]]
    read: Callable[[str], Any] = int
    published: Mapping[Any, float] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class Trial:
    """One training of a sweep. ``key`` is the same whenever the same trial is meant, also after a resume."""

    label: str
    config: TrialConfig
    key: str

    @property
    def name(self) -> str:
        """What a person reads in the MLflow UI, e.g. ``K=15 joint s0``."""
        return f"{self.label} {self.config.data.modality} s{self.config.train.seed}"


@dataclass(frozen=True)
class SweepSpec:
    """A sweep: its trials, in order, and what its table says beside them. JSON all through."""

    name: str
    title: str
    axis: str
    trials: tuple[Trial, ...]
    published: tuple[tuple[str, float], ...]
    source: str
    dataset_name: str
    dataset_digest: str

    @property
    def experiment(self) -> str:
        """The MLflow experiment: one per data set and benchmark."""
        return f"{self.dataset_name} {self.trials[0].config.data.benchmark}"

    @property
    def labels(self) -> tuple[str, ...]:
        """The swept values, each once, in order."""
        return tuple(dict.fromkeys(trial.label for trial in self.trials))

    def to_json(self) -> str:
        content = {
            "name": self.name,
            "title": self.title,
            "axis": self.axis,
            "trials": [{"label": t.label, "key": t.key, "config": t.config.flat()} for t in self.trials],
            "published": [list(pair) for pair in self.published],
            "source": self.source,
            "dataset": {"name": self.dataset_name, "digest": self.dataset_digest},
        }
        return json.dumps(content, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> SweepSpec:
        """The inverse of :meth:`to_json`.

        Raises:
            InputError: if the text is something else.
        """
        try:
            content = json.loads(text)
            return cls(
                name=content["name"],
                title=content["title"],
                axis=content["axis"],
                trials=tuple(
                    Trial(t["label"], TrialConfig.from_flat(t["config"]), t["key"]) for t in content["trials"]
                ),
                published=tuple((str(label), float(figure)) for label, figure in content["published"]),
                source=content["source"],
                dataset_name=content["dataset"]["name"],
                dataset_digest=content["dataset"]["digest"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the sweep's specification cannot be read ({error!r})") from None


def make_spec(
    question: Question, base: TrialConfig, dataset: ArrowDataset, values: Sequence[Any] | None, seeds: int
) -> SweepSpec:
    """The grid of a question: each value with each of ``seeds`` seeds, the seeds of ``base`` and those after it.

    Raises:
        InputError: if a value does not fit the network or the data set, or occurs twice; before anything is started.
    """
    chosen = list(question.values(dataset.skeleton)) if values is None else list(values)
    if len(set(chosen)) != len(chosen):
        raise InputError(f"--values names a value twice: {', '.join(map(str, chosen))}")
    trials = []
    for value in chosen:
        for seed in range(base.train.seed, base.train.seed + seeds):
            settings = {**question.settings(value), "train.seed": seed}
            config = resolve(base.with_values(settings), dataset)
            identity = json.dumps([config.digest(without=("data.dataset",)), dataset.digest])
            key = hashlib.sha256(identity.encode()).hexdigest()[:32]
            trials.append(Trial(f"{question.axis}={value}", config, key))
    return SweepSpec(
        name=question.name,
        title=question.title,
        axis=question.axis,
        trials=tuple(trials),
        published=tuple((f"{question.axis}={v}", f) for v, f in question.published.items() if v in chosen),
        source=question.source,
        dataset_name=dataset.name,
        dataset_digest=dataset.digest,
    )
