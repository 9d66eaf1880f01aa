"""Command-line options shared by several commands: trial, data set, device and tracking store."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from fgst.config import MODALITIES, PRESETS, PROTOCOLS, TrialConfig
from fgst.data.cache import read_size
from fgst.errors import InputError


def add_trial_options(parser: argparse.ArgumentParser, *, dataset_required: bool) -> None:
    """Add the options that :func:`trial_config` reads."""
    group = parser.add_argument_group("trial options")
    group.add_argument(
        "--dataset",
        required=dataset_required,
        metavar="DIR",
        help="Arrow data set prepared by python -m data_prep.nw_ucla, .ntu, .convert, .custom or .demo: a directory or "
        "a URI (s3://… gs://… file://…)"
        + ("" if dataset_required else "; default: generated motion, in datasets/demo"),
    )
    add_cache_option(group)
    group.add_argument(
        "--preset",
        choices=PRESETS,
        help="paper (§4.2 of the paper; default on a GPU), best (the network of small, with the training that "
        "validation found best for a CPU), small (half the width, 32 frames; default on a CPU), tiny (4 narrow "
        "layers) or demo (seconds; default for the generated motion)",
    )
    group.add_argument("--epochs", type=positive(int), metavar="E", help="number of epochs; default: the preset's")
    group.add_argument("--modality", choices=MODALITIES, help="input modality; default: joint")
    group.add_argument(
        "--benchmark", metavar="NAME", help="benchmark, e.g. x-sub or x-view; default: the data set's first one"
    )
    group.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        help="validation (default): hold out training clips for model selection; paper: train on all training clips",
    )
    group.add_argument(
        "--seed", type=natural, metavar="S", help="seed of weights, clip order and augmentation; default: 0"
    )
    add_override_option(group)


def add_override_option(parser: argparse._ActionsContainer) -> None:
    """Add ``--set``, whose values :func:`read_overrides` parses."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        dest="overrides",
        help="change any field of the configuration; repeatable, "
        "e.g. --set model.focal_joints=12 --set model.dilations=1,3",
    )


def add_cache_option(parser: argparse._ActionsContainer) -> None:
    """Add ``--cache-limit``, which takes effect through the environment."""
    parser.add_argument(
        "--cache-limit",
        action=_CacheLimit,
        metavar="SIZE",
        help="size limit, e.g. 50G, of the local copies of data sets opened by URI, in $FGST_CACHE (default: "
        "~/.cache/fgst); the least recently used are removed; default: $FGST_CACHE_LIMIT, else no limit",
    )


class _CacheLimit(argparse.Action):
    """Set the environment variable that the cache reads, in this process and in the processes that it starts."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        read_size(values, option_string or "")
        os.environ["FGST_CACHE_LIMIT"] = values


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that run a network in their own process."""
    parser.add_argument("--device", default="auto", help="device: auto (default), cpu, cuda, cuda:1 …")
    parser.add_argument("--threads", type=positive(int), metavar="N", help="number of CPU threads; default: all cores")


def add_tracking_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--tracking-uri``."""
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow tracking store; default: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the working directory",
    )


def add_table_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--latex`` and ``--csv``; see :func:`fgst.table_files.write_tables`."""
    parser.add_argument("--latex", metavar="FILE", help="write the tables to this file in LaTeX (booktabs)")
    parser.add_argument(
        "--csv", metavar="FILE", help="write the tables to this file, and files with similar names, as CSV"
    )


def add_figure_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--format``."""
    parser.add_argument(
        "--format",
        choices=("png", "svg", "pdf"),
        default="png",
        help="format of the figures; svg and pdf are vector graphics with text as text (default: png)",
    )


def add_system_metrics_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--system-metrics``."""
    parser.add_argument(
        "--system-metrics",
        action="store_true",
        help="log CPU, memory, disk, network and GPU usage to MLflow every ten seconds",
    )


class TrialOptions(Protocol):
    """The values of the options of :func:`add_trial_options`; ``None`` where an option is not given."""

    @property
    def preset(self) -> str | None: ...
    @property
    def epochs(self) -> int | None: ...
    @property
    def modality(self) -> str | None: ...
    @property
    def benchmark(self) -> str | None: ...
    @property
    def protocol(self) -> str | None: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def overrides(self) -> Sequence[str]: ...


def trial_config(
    options: TrialOptions | argparse.Namespace, dataset: str, *, has_gpu: bool, base: TrialConfig | None = None
) -> TrialConfig:
    """Build the trial's configuration from the options; report a preset chosen by default on stderr.

    Args:
        options: the parsed options of :func:`add_trial_options`.
        dataset: directory or URI of the data set.
        has_gpu: whether trials run on a GPU; determines the default preset.
        base: configuration that the options modify, instead of a preset.

    Raises:
        InputError: if a value is invalid; the message names the option or the field.
    """
    if base is None:
        preset = options.preset
        if preset is None:
            preset = "paper" if has_gpu else "small"
            print(
                f"preset {preset} ({'GPU available' if has_gpu else 'no GPU'}); change it with --preset",
                file=sys.stderr,
            )
        base = PRESETS[preset]
    values: dict[str, Any] = {"data.dataset": dataset}
    for name, value in (
        ("train.epochs", options.epochs),
        ("data.modality", options.modality),
        ("data.benchmark", options.benchmark),
        ("data.protocol", options.protocol),
        ("train.seed", options.seed),
    ):
        if value is not None:
            values[name] = value
    if options.benchmark not in (None, base.data.benchmark):
        values["data.validation_by"] = "auto"  # recorded settings name the scheme of another benchmark
    return base.with_values(values | read_overrides(options.overrides))


def read_overrides(overrides: Sequence[str]) -> dict[str, str]:
    """Split the values of ``--set``, ``["model.focal_joints=12", …]`` → ``{"model.focal_joints": "12", …}``.

    Raises:
        InputError: if a value does not have the form FIELD=VALUE.
    """
    values = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise InputError(f"--set {override}: must be FIELD=VALUE, e.g. --set model.focal_joints=12")
        values[name.strip()] = text.strip()
    return values


def positive(kind: type) -> Callable[[str], Any]:
    """Return an argparse type: a finite number greater than 0."""

    def convert(text: str) -> Any:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} must be greater than 0")
        return value

    convert.__name__ = "number"  # argparse prints the name of the type
    return convert


def natural(text: str) -> int:
    """Parse a natural number, 0, 1, 2 …, as an argparse type."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} must not be negative")
    return value
