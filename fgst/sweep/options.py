"""Options of a sweep's command line as one frozen dataclass.

The metadata of each field declares how the option is written, its help text, and its meaning for a resumed sweep
(:class:`Scope`). The parser, the check of the options on ``--resume`` and the printed resume command are derived from
these declarations, so an option is added in one place.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from fgst.errors import InputError
from fgst.network import redact
from fgst.parsing import decode_json
from fgst.sweep.definition import OBJECTIVES, SEARCHES, Params
from fgst.sweep.race import DEFAULT_ROUNDS

DEFAULT_TRIALS = 20  # number of trainings of a search
DEFAULT_STORAGE = "ray_results"
SEARCHABLE_OBJECTIVES = tuple(name for name in OBJECTIVES if name != "test_top1")


class Scope(Enum):
    """What an option means when the sweep is resumed."""

    SWEEP = auto()
    """Describes the sweep: recorded in its run, and cannot be changed on resume."""
    ENVIRONMENT = auto()
    """Where and how trials run: repeated in the command that resumes the sweep."""
    CALL = auto()
    """Affects only this invocation."""


class Group(Enum):
    """Headings of ``--help``."""

    SWEEP = "the sweep"
    STOPPING = "stopping"
    ENVIRONMENT = "execution"


@dataclass(frozen=True)
class Option:
    """How a field of :class:`SweepOptions` appears on the command line.

    Attributes:
        scope: what it means for a resumed sweep.
        group: heading in ``--help``; ``None`` for options that training and sweeps share, which
            :mod:`fgst.cli.options` adds to the parser.
        help: explanation; ``{search}`` is replaced by the search of the sweep's definition.
        parse: converts one value; raises ``ValueError`` for an invalid one.
        metavar, choices: as in ``argparse``.
        flag: "yes" for an option without a value, "negatable" for one that also has a ``--no-`` form.
        repeatable: the option may be given several times; its values form a list.
        ensemble_only: the option exists only for sweeps that build an ensemble.
    """

    scope: Scope
    group: Group | None = None
    help: str = ""
    parse: Callable[[str], Any] = str
    metavar: str | None = None
    choices: Sequence[str] | None = None
    flag: str = ""
    repeatable: bool = False
    ensemble_only: bool = False


def option(scope: Scope, group: Group | None = None, help: str = "", *, default: Any = None, **details: Any) -> Any:
    """A dataclass field with an :class:`Option` in its metadata."""
    return field(default=default, metadata={"option": Option(scope, group, help, **details)})


def positive_int(text: str) -> int:
    """A whole number above 0."""
    value = int(text)
    if value <= 0:
        raise ValueError(f"{text} is not above 0")
    return value


def positive_float(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError(f"{text} is not above 0")
    return value


def gpu_share(text: str) -> float | str:
    """A number of GPUs, a fraction of one, or "auto", which is replaced by a measurement before the sweep starts."""
    if text == "auto":
        return text
    value = float(text)
    if not 0 <= value < math.inf:
        raise ValueError(f"{text} is below 0")
    return value


@dataclass(frozen=True)
class SweepOptions:
    """Options of ``python sweeps/NAME.py``. ``None`` means that an option was not given."""

    # The sweep.
    values: str | None = option(
        Scope.SWEEP, Group.SWEEP,
        "values to try, separated by commas, or by semicolons if they contain commas; default: the script's",
        metavar="V,V,…",
    )  # fmt: skip
    seeds: int | None = option(
        Scope.SWEEP, Group.SWEEP, "trainings per configuration; with two or more, tables show mean ± std (default: 1)",
        parse=positive_int, metavar="N",
    )  # fmt: skip
    folds: int | None = option(
        Scope.SWEEP, Group.SWEEP,
        "divide the training side into this many folds; each seed holds out another one, and tables pool their "
        "validation clips; sets --seeds to this number",
        parse=positive_int, metavar="F",
    )  # fmt: skip
    resolve: float | None = option(
        Scope.SWEEP, Group.SWEEP,
        "choose --seeds so that differences of this many points to the baseline are found with a power of 80 %% on "
        "these clips, by the noise of earlier trainings of the data set",
        parse=positive_float, metavar="POINTS",
    )  # fmt: skip
    race: bool = option(
        Scope.SWEEP, Group.SWEEP,
        "give further seeds only to values that may still be the best, up to --seeds (default here: "
        f"{DEFAULT_ROUNDS})", default=False, flag="yes",
    )  # fmt: skip
    search: str | None = option(
        Scope.SWEEP, Group.SWEEP,
        "grid: every combination; optuna: TPE; random; nsga2: two objectives; default: the script's ({search})",
        choices=SEARCHES,
    )  # fmt: skip
    trials: int | None = option(
        Scope.CALL, Group.SWEEP, f"maximum number of trainings of a search (default: {DEFAULT_TRIALS})",
        parse=positive_int, metavar="N",
    )  # fmt: skip
    objectives: str | None = option(
        Scope.SWEEP, Group.SWEEP,
        f"one or two objectives of a search: {', '.join(SEARCHABLE_OBJECTIVES)}; two give a Pareto front",
        metavar="O,O",
    )  # fmt: skip
    enqueue: tuple[str, ...] | None = option(
        Scope.SWEEP, Group.SWEEP,
        "parameter values that a search tries first, or none; repeatable; default: the paper's setting",
        metavar="NAME=V,…", repeatable=True,
    )  # fmt: skip
    also: str | None = option(
        Scope.SWEEP, Group.SWEEP, "also vary these optional parameters of the script", metavar="NAME,…"
    )
    from_run: str | None = option(
        Scope.SWEEP, Group.SWEEP, "use the settings and data set of this training instead of a preset", metavar="RUN_ID"
    )
    sweep: str | None = option(
        Scope.SWEEP, Group.SWEEP,
        "use the settings and data set of the best trial (by validation) of this sweep instead of a preset",
        metavar="SWEEP_RUN_ID",
    )  # fmt: skip
    refit: bool = option(
        Scope.SWEEP, Group.SWEEP,
        "afterwards retrain all networks on all training clips and fuse them with the fitted weights",
        default=False, flag="yes", ensemble_only=True,
    )  # fmt: skip
    refit_seeds: int | None = option(
        Scope.SWEEP, Group.SWEEP, "trainings of each network by --refit; default: --seeds",
        parse=positive_int, metavar="N", ensemble_only=True,
    )  # fmt: skip
    resume: str | None = option(
        Scope.CALL, Group.SWEEP,
        "resume an interrupted sweep; auto: the newest sweep of this script with the same settings, or a new one if "
        "there is none", metavar="SWEEP_RUN_ID",
    )  # fmt: skip
    dry_run: bool = option(
        Scope.CALL, Group.SWEEP, "print trials, sizes and estimated cost, and exit", default=False, flag="yes"
    )
    simulate: str | None = option(
        Scope.CALL, Group.SWEEP,
        "test the search on recorded learning curves (python -m fgst.runs curves); trains and writes nothing",
        metavar="CURVES",
    )  # fmt: skip
    repeats: int | None = option(
        Scope.CALL, Group.SWEEP, "number of simulated searches, with different random draws (default: 20; grid: 1)",
        parse=positive_int, metavar="N",
    )  # fmt: skip

    latex: str | None = option(
        Scope.CALL, Group.SWEEP, "write the tables to this file in LaTeX; also with --resume of a finished sweep",
        metavar="FILE",
    )  # fmt: skip
    csv: str | None = option(
        Scope.CALL, Group.SWEEP, "write the tables to this file, and files with similar names, as CSV", metavar="FILE"
    )

    # Stopping.
    early_stop: bool | None = option(
        Scope.SWEEP, Group.STOPPING,
        "successive halving (ASHA) on epochs, by validation accuracy; default: all trials run to the last epoch",
        flag="negatable",
    )  # fmt: skip
    grace: int | None = option(
        Scope.SWEEP,
        Group.STOPPING,
        "epochs before the first comparison (rung); default: 1/9 of all epochs",
        parse=positive_int,
        metavar="E",
    )
    reduction: int | None = option(
        Scope.SWEEP, Group.STOPPING, "1/R of the trials continue after each rung (default: 3)",
        parse=positive_int, metavar="R",
    )  # fmt: skip
    max_hours: float | None = option(
        Scope.CALL, Group.STOPPING, "stop after this time and keep all results", parse=positive_float, metavar="H"
    )
    max_trials: int | None = option(
        Scope.CALL, Group.STOPPING, "start at most this many trials in this invocation",
        parse=positive_int, metavar="N",
    )  # fmt: skip
    until_top1: float | None = option(
        Scope.CALL, Group.STOPPING, "stop when a trial reaches this validation top-1 in %%",
        parse=positive_float, metavar="P",
    )  # fmt: skip

    # The trial: added to the parser by fgst.cli.options.
    dataset: str | None = option(Scope.SWEEP)
    preset: str | None = option(Scope.SWEEP)
    epochs: int | None = option(Scope.SWEEP)
    modality: str | None = option(Scope.SWEEP)
    benchmark: str | None = option(Scope.SWEEP)
    protocol: str | None = option(Scope.SWEEP)
    seed: int | None = option(Scope.SWEEP)
    overrides: tuple[str, ...] = option(Scope.SWEEP, default=())
    tracking_uri: str | None = option(Scope.ENVIRONMENT)
    system_metrics: bool = option(Scope.ENVIRONMENT, default=False, flag="yes")

    # Execution.
    local: bool = option(
        Scope.ENVIRONMENT, Group.ENVIRONMENT, "run in this process, one trial after another, without Ray",
        default=False, flag="yes",
    )  # fmt: skip
    cpus_per_trial: float | None = option(
        Scope.ENVIRONMENT, Group.ENVIRONMENT, "cores per trial; default: the cores divided by the concurrent trials",
        parse=positive_float, metavar="N",
    )  # fmt: skip
    gpus_per_trial: float | str | None = option(
        Scope.ENVIRONMENT, Group.ENVIRONMENT,
        "GPUs per trial; 0.25 lets four trials share one; auto: measure the best share; default: 1 if there is a GPU",
        parse=gpu_share, metavar="N",
    )  # fmt: skip
    max_concurrent: int | None = option(
        Scope.ENVIRONMENT, Group.ENVIRONMENT, "maximum number of concurrent trials; default: as many as fit",
        parse=positive_int, metavar="N",
    )  # fmt: skip
    address: str | None = option(
        Scope.ENVIRONMENT, Group.ENVIRONMENT,
        "address of a running Ray cluster (auto: detect it); default: run on this machine",
        metavar="ADDRESS",
    )  # fmt: skip
    storage: str | None = option(
        Scope.SWEEP, Group.ENVIRONMENT,
        "where checkpoints are stored: a folder (on a cluster, one that all nodes share) or a URI such as "
        f"s3://bucket/sweeps; default: $FGST_STORAGE, else {DEFAULT_STORAGE}",
        metavar="DIR",
    )  # fmt: skip
    study_storage: str | None = option(
        Scope.ENVIRONMENT, Group.ENVIRONMENT,
        "URL of the Optuna storage, for optuna-dashboard; default: $FGST_STUDY_STORAGE, else a database of the sweep's "
        "own in studies/ in --storage, or in ~/.local/share/fgst if --storage is a URI",
        metavar="URL",
    )  # fmt: skip
    price_per_hour: float | None = option(
        Scope.ENVIRONMENT, Group.ENVIRONMENT, "price of a GPU hour (of a core hour on the CPU), to report costs",
        parse=positive_float, metavar="P",
    )  # fmt: skip

    @classmethod
    def declarations(cls) -> Iterator[tuple[str, Any, Option]]:
        """Name, default and :class:`Option` of each field."""
        for item in dataclasses.fields(cls):
            yield item.name, item.default, item.metadata["option"]

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> SweepOptions:
        """Options from parsed values by field name; values of other names are ignored, lists become tuples."""
        names = {name for name, _, _ in cls.declarations()}
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in names}
        return cls(**known)

    def given(self, scope: Scope) -> dict[str, Any]:
        """Options of one scope that were given, by the name typed on the command line."""
        return {
            flag_name(name): getattr(self, name)
            for name, default, declared in self.declarations()
            if declared.scope is scope and getattr(self, name) != default
        }

    def resume_command(self, program: Sequence[str], sweep_id: str) -> list[str]:
        """The words of the command that resumes a sweep, without the passwords in URLs.

        Args:
            program: how the script was started, e.g. ``("python", "sweeps/focal_k.py")``.
        """
        words = [*program, "--resume", sweep_id]
        for flag, value in self.given(Scope.ENVIRONMENT).items():
            words += [flag] if value is True else [flag, redact(format_number(value))]
        return words

    def evaluate_command(self, run_id: str) -> list[str]:
        """The words of the command that evaluates a run of this sweep's tracking store."""
        words = ["python", "-m", "fgst.evaluate", "--run-id", run_id]
        return words + (["--tracking-uri", redact(self.tracking_uri)] if self.tracking_uri else [])

    @property
    def storage_location(self) -> str:
        """``--storage``, with its default."""
        return self.storage or os.environ.get("FGST_STORAGE") or DEFAULT_STORAGE


def flag_name(name: str) -> str:
    """``max_hours`` → ``--max-hours``; ``overrides`` is typed as ``--set``."""
    return "--set" if name == "overrides" else f"--{name.replace('_', '-')}"


def format_number(value: Any) -> str:
    """A value as on the command line; integral floats have no decimal point."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def parse_values(text: str) -> list[Any]:
    """Parse ``5,15`` or, for values that contain commas, ``1,2;1,3``. Comma-separated numbers become numbers.

    Raises:
        InputError: if a value is empty.
    """
    separator = ";" if ";" in text else ","
    parts = [part.strip() for part in text.split(separator)]
    if not all(parts):
        raise InputError(f"--values {text}: write values separated by commas, e.g. 5,15")
    return [part if separator == ";" else _scalar(part) for part in parts]


def parse_params(text: str) -> Params:
    """``K=15,P=10`` → ``{"K": 15, "P": 10}``.

    Raises:
        InputError: if a part is not NAME=VALUE.
    """
    params = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals or not value.strip():
            raise InputError(f"--enqueue {text}: write NAME=VALUE,…, e.g. K=15,P=10")
        params[name.strip()] = _scalar(value.strip())
    return params


def _scalar(text: str) -> Any:
    try:
        return decode_json(text.encode(), int | float)  # type: ignore[arg-type]  # a union
    except ValueError:
        return text
