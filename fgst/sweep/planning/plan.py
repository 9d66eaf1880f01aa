"""Plan of a sweep for ``--dry-run``: its trials, their sizes, and an estimate of time, money, disk and memory.

Time is extrapolated from a few training steps that are measured here. Nothing is started and nothing is written.
"""

from __future__ import annotations

import heapq
import math
import random
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fgst import terminal
from fgst.config import TrialConfig, resolve
from fgst.data.dataset import ArrowDataset
from fgst.data.loader import EVALUATION_BATCH, choose_device
from fgst.errors import InputError
from fgst.sweep.definition import Parameter, Params, Trial, TrialFactory
from fgst.sweep.planning import cost
from fgst.sweep.spec import EarlyStopping, SweepSpec

SAMPLES = 50  # random points that represent the space of a search
MAX_ATTEMPTS = 20 * SAMPLES  # to draw them: some combinations are invalid
# Python with PyTorch, Ray and MLflow, as measured. A CUDA context is of the same order.
PROCESS_BYTES = 2**29
# Peak memory of a training step, as a multiple of the bytes that the forward pass saves: 1.3 to 1.6 on the CPU.
PEAK_FACTOR = 1.6
PICTURE_BYTES = 150_000  # of the pictures among a run's artifacts
FORWARD_SHARE = 1 / 3  # of a training step's time; the backward pass takes the rest


@dataclass(frozen=True)
class TrialEstimate:
    """Estimated size and cost of one trial.

    Attributes:
        name: name of the trial, or its label if it represents several trials.
        epochs: number of epochs.
        size: parameters and FLOPs of the network.
        minutes: duration of the whole training, alone on its device.
        memory_bytes: peak memory; GPU memory if the device is a GPU.
        checkpoint_bytes: size of the checkpoint that the trial resumes from.
        artifact_bytes: size of the artifacts that remain in MLflow.
    """

    name: str
    epochs: int
    size: cost.ModelCost
    minutes: float
    memory_bytes: float
    checkpoint_bytes: int
    artifact_bytes: int


@dataclass(frozen=True)
class Plan:
    """Estimate of a whole sweep.

    Attributes:
        spec: the sweep.
        trials: all trials of a grid; for a search, random points of its space.
        initial_points: the points that a search tries first.
        unit: unit of ``device_hours``: "GPU" or "core".
        device_hours: sum over all trials, without early stopping.
        wall_hours: duration with ``concurrency`` trials at a time that do not slow each other down.
        concurrency: trials at a time.
        price: cost of the device hours; ``None`` without a price per hour.
        expected_fraction: fraction of the time that remains with early stopping; ``None`` without it.
        disk_bytes: artifacts of all trials, and checkpoints of the running ones.
        common_settings: settings that all trials share, by flat name.
        method: how time was estimated, in a sentence.
    """

    spec: SweepSpec
    trials: tuple[TrialEstimate, ...]
    initial_points: tuple[TrialEstimate, ...]
    unit: str
    device_hours: float
    wall_hours: float
    concurrency: int
    price: float | None
    expected_fraction: float | None
    disk_bytes: float
    common_settings: Mapping[str, Any]
    method: str


def make_plan(
    spec: SweepSpec,
    trials: TrialFactory,
    *,
    device: str,
    threads: int | None,
    concurrency: int,
    price_per_hour: float | None,
) -> Plan:
    """Estimate the cost of a sweep; takes seconds.

    Args:
        spec: the sweep.
        trials: makes the trials that a search may suggest.
        device: device of a trial: cpu, cuda …
        threads: CPU threads of a trial; ``None`` keeps PyTorch's setting.
        concurrency: trials at a time.
        price_per_hour: price of a GPU, or of a core on the CPU.

    Raises:
        InputError: if the device is not available, or no point of the space is valid.
    """
    on_gpu, dataset = choose_device(device).type == "cuda", trials.dataset
    planned = sample_trials(spec, trials) if spec.limit else list(spec.trials)
    initial = [trials.make(dict(params), spec.base.train.seed) for params in spec.initial_points]
    everything = planned + initial
    threads_before = torch.get_num_threads()
    threads = threads or threads_before
    torch.set_num_threads(threads)
    try:
        calibration = cost.calibrate((initial or planned)[0].config, dataset, device)
        estimates = [
            estimate_trial(t.label if spec.limit else t.name, t.config, dataset, calibration, on_gpu)
            for t in everything
        ]  # fmt: skip
    finally:
        torch.set_num_threads(threads_before)
    trial_estimates, concurrency = estimates[: len(planned)], min(concurrency, spec.total)
    minutes = [estimate.minutes for estimate in trial_estimates]
    fraction = None
    if spec.early_stop:
        remaining = [e.minutes * expected_fraction(e.epochs, spec.early_stop) for e in trial_estimates]
        fraction = sum(remaining) / sum(minutes)
    if spec.limit:  # the sampled points are not the ones that the search will train, but have the same distribution
        minutes = [statistics.fmean(minutes)] * spec.total
    device_hours = sum(minutes) / 60 * (1 if on_gpu else threads)
    device_name = device if on_gpu else f"{device} with {threads} thread{'s' * (threads > 1)}"
    return Plan(
        spec=spec,
        trials=tuple(trial_estimates),
        initial_points=tuple(estimates[len(planned) :]),
        unit="GPU" if on_gpu else "core",
        device_hours=device_hours,
        wall_hours=makespan(minutes, concurrency) / 60,
        concurrency=concurrency,
        price=None if price_per_hour is None else price_per_hour * device_hours,
        expected_fraction=fraction,
        # While a checkpoint is written, its predecessor still exists.
        disk_bytes=spec.total * statistics.fmean(e.artifact_bytes for e in trial_estimates)
        + 2 * concurrency * max(e.checkpoint_bytes for e in estimates),
        common_settings=_common_settings(everything, has_seeds=spec.seeds > 1),
        method=f"Times are ±30 %: a step of {calibration.clips} clips of the first trial, alone on {device_name}, took "
        f"{calibration.seconds:.2g} s; other trials are scaled by FLOPs and memory. Starting a trial takes seconds "
        "more.",
    )


def _common_settings(trials: Sequence[Trial], *, has_seeds: bool) -> dict[str, Any]:
    flat = [trial.config.flat() for trial in trials]
    return {
        name: value
        for name, value in flat[0].items()
        if all(settings[name] == value for settings in flat) and not (name in ("train.seed", "data.fold") and has_seeds)
    }


def estimate_trial(
    name: str, config: TrialConfig, dataset: ArrowDataset, calibration: cost.Calibration, on_gpu: bool
) -> TrialEstimate:
    """Estimate time, memory and disk space of one trial from a timed training step."""
    config = resolve(config, dataset)
    size, train, splits = cost.model_cost(config, dataset), config.train, dataset.splits_for(config.data)
    assert train.repeat is not None
    steps = train.epochs * len(splits.train) * train.repeat / train.batch_size
    # Validation clips are scored each epoch, test clips once.
    scored_batches = (train.epochs * len(splits.val) + len(splits.test)) / EVALUATION_BATCH
    work = cost.work_per_clip(config, dataset)
    seconds = steps * calibration.step_seconds(train.batch_size, work)
    seconds += FORWARD_SHARE * scored_batches * calibration.step_seconds(EVALUATION_BATCH, work)
    weights = 4 * size.parameters  # gradients, each moment of the optimizer and a moving average are of the same size
    copies = (2 if train.optimizer == "sgd" else 3) + bool(train.ema)  # in a checkpoint; at most, with Muon
    memory = PEAK_FACTOR * train.batch_size * cost.activation_bytes(config, dataset)
    memory += PROCESS_BYTES + weights * (1 + copies) + on_gpu * cost.data_bytes(config.data, dataset)
    scores = len(splits.test) * 4 * (dataset.num_classes + 3) + sum(map(len, dataset.clip_ids[splits.test]))
    return TrialEstimate(
        name=name,
        epochs=train.epochs,
        size=size,
        minutes=seconds / 60,
        memory_bytes=memory,
        checkpoint_bytes=weights * copies,
        artifact_bytes=weights + scores + PICTURE_BYTES,
    )


def expected_fraction(epochs: int, early_stop: EarlyStopping) -> float:
    """Compute the fraction of epochs that are trained if exactly 1 / reduction of the trials pass each rung."""
    trained, share, previous_rung, rung = 0.0, 1.0, 0, early_stop.grace_period
    while rung < epochs:
        trained += share * (rung - previous_rung)
        share, previous_rung, rung = share / early_stop.reduction_factor, rung, rung * early_stop.reduction_factor
    return (trained + share * (epochs - previous_rung)) / epochs


def makespan(durations: Sequence[float], concurrency: int) -> float:
    """Compute the total duration if each job, in order, starts as soon as fewer than ``concurrency`` jobs run."""
    ends = [0.0] * concurrency
    for duration in durations:
        heapq.heapreplace(ends, ends[0] + duration)
    return max(ends)


def sample_trials(spec: SweepSpec, trials: TrialFactory) -> list[Trial]:
    """Sample trials at random points of a search's space, the same ones in each call; invalid points are skipped.

    Raises:
        InputError: if every sampled point is invalid.
    """
    generator, sampled, reason = random.Random(spec.base.train.seed), [], ""
    for _ in range(MAX_ATTEMPTS):
        try:
            sampled.append(trials.make(sample_params(spec.parameters, generator), spec.base.train.seed))
        except InputError as error:
            reason = str(error)
        if len(sampled) == SAMPLES:
            break
    if not sampled:
        raise InputError(f"none of {MAX_ATTEMPTS} random points is valid; the last one: {reason}")
    return sampled


def sample_params(parameters: Sequence[Parameter], generator: random.Random) -> Params:
    """Sample a value for every parameter that exists: uniform, or log-uniform where the range is logarithmic."""
    params: Params = {}
    for parameter in parameters:
        low, high = parameter.low, parameter.high
        if not parameter.applies(params):
            continue
        if parameter.values:
            params[parameter.name] = generator.choice(parameter.values)
        elif low is not None and high is not None:
            if parameter.log:
                value = math.exp(generator.uniform(math.log(low), math.log(high)))
            else:
                value = generator.uniform(low, high)
            value = min(max(value, low), high)  # the exponential may exceed an end by a rounding error
            params[parameter.name] = round(value) if parameter.integer else value
    return params


def print_plan(plan: Plan) -> None:
    """Print the plan as tables on stdout, 100 columns wide unless stdout is a terminal."""
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 100)
    is_search, on_gpu = bool(plan.spec.limit), plan.unit == "GPU"
    console.print(f"{plan.spec.title} On {plan.spec.experiment}:")
    headings = ("M parameters", "GFLOPs per clip", "minutes")
    if listed := plan.initial_points if is_search else plan.trials:
        table = _make_table("tried first" if is_search else "trial", "epochs", *headings)
        for estimate in listed:
            table.add_row(estimate.name, str(estimate.epochs), *map(_format_number, _columns(estimate)))
        terminal.print_table(console, table)
    if is_search:
        table = _make_table(f"{len(plan.trials)} random points", "minimum", "median", "maximum")
        for heading, values in zip(headings, zip(*map(_columns, plan.trials), strict=True), strict=True):
            table.add_row(heading, *map(_format_number, (min(values), statistics.median(values), max(values))))
        terminal.print_table(console, table)
    # Trials that share a GPU do slow each other down.
    qualifier = "at least " if on_gpu and plan.concurrency > 1 else ""
    memory = _format_bytes(max(e.memory_bytes for e in plan.trials + plan.initial_points))
    table = Table(show_header=False, box=None)
    table.add_row("trials", f"{'at most ' * (is_search or plan.spec.race)}{plan.spec.total}")
    if plan.spec.held_out:
        table.add_row("validation", plan.spec.held_out)
    table.add_row(f"{plan.unit} hours", _format_number(plan.device_hours))
    table.add_row("time", f"{qualifier}{_format_hours(plan.wall_hours)}, {plan.concurrency} at a time")
    if plan.expected_fraction is not None:
        table.add_row("early stopping", f"reduces this to about {100 * plan.expected_fraction:.0f} %")
    if plan.price is not None:
        table.add_row("cost", f"{plan.price:,.2f}")
    table.add_row("disk", f"at most {_format_bytes(plan.disk_bytes)}")
    table.add_row("memory", f"{memory} per trial{', on the GPU' * on_gpu}")
    terminal.print_table(console, table)
    settings = ", ".join(f"{name}={str(value).replace(' ', '')}" for name, value in plan.common_settings.items())
    console.print(f"Common settings: {settings}")
    console.print(plan.method)


def _make_table(first: str, *others: str) -> Table:
    table = Table(first)
    for heading in others:
        table.add_column(heading, justify="right")
    return table


def _columns(estimate: TrialEstimate) -> tuple[float, float, float]:
    return estimate.size.parameters / 1e6, estimate.size.gflops, estimate.minutes


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _format_hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.2g} min"


def _format_bytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
