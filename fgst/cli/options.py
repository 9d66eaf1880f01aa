"""Command-line options that training and sweeps share: which trial, on which data."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from fgst.config import MODALITIES, PRESETS, PROTOCOLS, TrialConfig
from fgst.data.cache import read_size
from fgst.errors import InputError


def add_trial_options(parser: argparse.ArgumentParser, *, dataset_required: bool) -> None:
    """The options that :func:`trial_config` reads."""
    group = parser.add_argument_group("the trial")
    group.add_argument(
        "--dataset",
        required=dataset_required,
        metavar="DIR",
        help="Arrow data set made by python -m data_prep.nw_ucla, .ntu or .custom: a directory, or s3://… gs://… file://…"
        + ("" if dataset_required else "; default: generated motion, prepared under datasets/demo"),
    )
    add_cache_option(group)
    group.add_argument(
        "--preset",
        choices=PRESETS,
        help="paper (§4.2; default on a GPU), best (its network, trained as validation chose), "
        "small (default on a CPU) or tiny (4 narrow layers)",
    )
    group.add_argument("--epochs", type=positive(int), metavar="E", help="default: the preset's")
    group.add_argument("--modality", choices=MODALITIES, help="default: joint")
    group.add_argument("--benchmark", metavar="NAME", help="x-sub, x-view …; default: the data set's first")
    group.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        help="validation (default): hold training subjects out to choose by; paper: train on all training clips",
    )
    group.add_argument("--seed", type=natural, metavar="S", help="default: 0")
    add_override_option(group)


def add_override_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        dest="overrides",
        help="any other setting, e.g. --set model.focal_joints=12 --set train.lr=0.05 --set model.dilations=1,3",
    )


def add_cache_option(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--cache-limit",
        action=_CacheLimit,
        metavar="SIZE",
        help="of the copies in $FGST_CACHE (~/.cache/fgst) of data sets behind a URI, e.g. 50G: those used last stay; "
        "default: $FGST_CACHE_LIMIT, else none",
    )


class _CacheLimit(argparse.Action):
    """Into the environment, where opening a data set looks, in this process and in those that it starts."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        read_size(values, option_string or "")
        os.environ["FGST_CACHE_LIMIT"] = values


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Where a command that runs a network itself runs it."""
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1 …")
    parser.add_argument("--threads", type=positive(int), metavar="N", help="CPU threads; default: all cores")


def add_tracking_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="MLflow store; default: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db in the working directory",
    )


def add_system_metrics_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--system-metrics",
        action="store_true",
        help="log the load of processors, memory, disk, network and GPU every ten seconds, for MLflow's page of a run",
    )


def trial_config(
    args: argparse.Namespace, dataset: str, *, has_gpu: bool, base: TrialConfig | None = None
) -> TrialConfig:
    """The trial that the options describe; says on stderr which preset was taken when none was named.

    Args:
        base: what the options change, in place of a preset.

    Raises:
        InputError: naming the option or field that is wrong.
    """
    if base is None:
        preset = args.preset
        if preset is None:
            preset = "paper" if has_gpu else "small"
            print(f"preset {preset} ({'there is a GPU' if has_gpu else 'no GPU'}); --preset chooses", file=sys.stderr)
        base = PRESETS[preset]
    values: dict[str, Any] = {"data.dataset": dataset}
    for name, value in (
        ("train.epochs", args.epochs),
        ("data.modality", args.modality),
        ("data.benchmark", args.benchmark),
        ("data.protocol", args.protocol),
        ("train.seed", args.seed),
    ):
        if value is not None:
            values[name] = value
    return base.with_values(values | read_overrides(args.overrides))


def read_overrides(overrides: Sequence[str]) -> dict[str, str]:
    """``["model.focal_joints=12", …]`` as they were typed after --set → ``{"model.focal_joints": "12", …}``.

    Raises:
        InputError: if one is not FIELD=VALUE.
    """
    values = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise InputError(f"--set {override}: write FIELD=VALUE, e.g. --set model.focal_joints=12")
        values[name.strip()] = text.strip()
    return values


def positive(kind: type) -> Callable[[str], Any]:
    """An argparse type: a number above 0."""

    def convert(text: str) -> Any:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    convert.__name__ = "number"  # argparse names the type in its message
    return convert


def natural(text: str) -> int:
    """An argparse type: 0, 1, 2 …"""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value
