"""What a sweep would be, before it is one: its trials, their sizes, and an estimate of time, money, disk and memory.

Time is that of a few training steps, measured here and scaled. Nothing is started, nothing is written.
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

from fgst.config import TrialConfig, resolve
from fgst.data.dataset import ArrowDataset
from fgst.data.loader import EVALUATION_BATCH, choose_device
from fgst.errors import InputError
from fgst.sweep.definition import Parameter, Params, Trial, TrialFactory
from fgst.sweep.planning import cost
from fgst.sweep.spec import EarlyStopping, SweepSpec

SAMPLE = 50  # points that stand for the space of a search
TRIES = 20 * SAMPLE
PROCESS_BYTES = 2**29  # Python with PyTorch, Ray and MLflow, as measured; a CUDA context is of that order too
PEAK = 1.6  # times what the forward pass keeps is what both passes hold at most; 1.3 to 1.6 measured on the CPU
FIGURE_BYTES = 150_000  # of the figures among a run's artifacts


@dataclass(frozen=True)
class Estimate:
    """One trial: minutes alone on its device; bytes of its memory at the peak (the GPU's where it is on one), of what
    it goes on from, and of what stays in MLflow.
    """

    name: str
    epochs: int
    size: cost.ModelCost
    minutes: float
    memory: float
    checkpoint: int
    artifacts: int


@dataclass(frozen=True)
class Plan:
    """A sweep's estimate.

    Attributes:
        spec: the sweep.
        trials: of a grid, all of them; of a search, random points of its space.
        first: points that a search begins with.
        unit: what ``device_hours`` are of, "GPU" or "core".
        device_hours, wall_hours: of all; on the wall with ``together`` at a time, none slowing another down.
        price: of the device hours, if an hour has one.
        kept: share of the time that early stopping is expected to leave; ``None`` without it.
        disk: bytes of all artifacts, and of the checkpoints while trials run.
        same: settings that all trials have in common, by flat name.
        how: time was estimated, in a sentence.
    """

    spec: SweepSpec
    trials: tuple[Estimate, ...]
    first: tuple[Estimate, ...]
    unit: str
    device_hours: float
    wall_hours: float
    together: int
    price: float | None
    kept: float | None
    disk: float
    same: Mapping[str, Any]
    how: str


def make_plan(
    spec: SweepSpec,
    trials: TrialFactory,
    *,
    device: str,
    threads: int | None,
    together: int,
    price_per_hour: float | None,
) -> Plan:
    """Estimate a sweep, in seconds.

    Args:
        trials: makes those that a search may come to.
        device: of a trial: cpu, cuda …
        threads: CPU threads of a trial; ``None`` leaves them as they are.
        together: trials at a time.
        price_per_hour: of a GPU, or of a core on the CPU.

    Raises:
        InputError: if the device is not there, or no point of the space is possible.
    """
    on_gpu, dataset = choose_device(device).type == "cuda", trials.dataset
    chosen = sample(spec, trials) if spec.limit else list(spec.trials)
    first = [trials.make(dict(params), spec.base.train.seed) for params in spec.initial_points]
    before = torch.get_num_threads()
    threads = threads or before
    torch.set_num_threads(threads)
    try:
        step = cost.calibrate((first or chosen)[0].config, dataset, device)
        every = [estimate(t.label if spec.limit else t.name, t.config, dataset, step, on_gpu) for t in chosen + first]
    finally:
        torch.set_num_threads(before)
    estimates, together = every[: len(chosen)], min(together, spec.total)
    minutes = [e.minutes for e in estimates]
    kept = None
    if spec.early_stop:
        shares = [expected_share(e.epochs, spec.early_stop) for e in estimates]
        kept = sum(map(math.prod, zip(minutes, shares, strict=True))) / sum(minutes)
    if spec.limit:  # it trains other points than these, but such ones
        minutes = [statistics.fmean(minutes)] * spec.total
    device_hours = sum(minutes) / 60 * (1 if on_gpu else threads)
    flat = [trial.config.flat() for trial in chosen + first]
    common = {
        n: v for n, v in flat[0].items() if all(f[n] == v for f in flat) and (n != "train.seed" or spec.seeds < 2)
    }
    where = device if on_gpu else f"{device} with {threads} thread{'s' * (threads > 1)}"
    return Plan(
        spec=spec,
        trials=tuple(estimates),
        first=tuple(every[len(chosen) :]),
        unit="GPU" if on_gpu else "core",
        device_hours=device_hours,
        wall_hours=last_end(minutes, together) / 60,
        together=together,
        price=None if price_per_hour is None else price_per_hour * device_hours,
        kept=kept,
        # While a checkpoint is written, the one before it is still there.
        disk=spec.total * statistics.fmean(e.artifacts for e in estimates)
        + 2 * together * max(e.checkpoint for e in every),
        same=common,
        how=f"Times are ±30 %: a step of {step.clips} clips of the first trial, alone on {where}, took "
        f"{step.seconds:.2g} s just now, others follow by FLOPs and memory. Starting a trial takes seconds more.",
    )


def estimate(name: str, config: TrialConfig, dataset: ArrowDataset, step: cost.Calibration, on_gpu: bool) -> Estimate:
    """What one trial takes, going by a timed step."""
    config = resolve(config, dataset)
    size, train, splits = cost.model_cost(config, dataset), config.train, cost.splits_of(config.data, dataset)
    assert train.repeat is not None
    steps = train.epochs * len(splits.train) * train.repeat / train.batch_size
    # Scoring has no backward pass, which is two thirds of a step. The test clips are scored once.
    scorings = (train.epochs * len(splits.val) + len(splits.test)) / EVALUATION_BATCH / 3
    work = cost.work(config, dataset)
    seconds = steps * step.step_seconds(train.batch_size, work)
    seconds += scorings * step.step_seconds(EVALUATION_BATCH, work)
    weights = 4 * size.parameters  # and as much for gradients, for momentum, and for a moving average
    memory = PEAK * train.batch_size * cost.activation_bytes(config, dataset)
    memory += PROCESS_BYTES + weights * (4 if train.ema else 3) + on_gpu * cost.data_bytes(config.data, dataset)
    checkpoint = weights * (3 if train.ema else 2)
    scores = len(splits.test) * 4 * (dataset.num_classes + 3) + sum(map(len, dataset.clip_ids[splits.test]))
    return Estimate(name, train.epochs, size, seconds / 60, memory, checkpoint, weights + scores + FIGURE_BYTES)


def expected_share(epochs: int, stop: EarlyStopping) -> float:
    """Share of the epochs that are trained if at every rung just the best 1 / reduction go on."""
    trained, going, before, rung = 0.0, 1.0, 0, stop.grace_period
    while rung < epochs:
        trained += going * (rung - before)
        going, before, rung = going / stop.reduction_factor, rung, rung * stop.reduction_factor
    return (trained + going * (epochs - before)) / epochs


def last_end(durations: Sequence[float], together: int) -> float:
    """When the last one ends if each begins, in order, as soon as fewer than ``together`` run."""
    ends = [0.0] * together
    for duration in durations:
        heapq.heapreplace(ends, ends[0] + duration)
    return max(ends)


def sample(spec: SweepSpec, trials: TrialFactory) -> list[Trial]:
    """Trials of random points of a search's space, the same each time; points that cannot be are passed over.

    Raises:
        InputError: if none can be.
    """
    draw, found, reason = random.Random(spec.base.train.seed), [], ""
    for _ in range(TRIES):
        try:
            found.append(trials.make(random_point(spec.parameters, draw), spec.base.train.seed))
        except InputError as error:
            reason = str(error)
        if len(found) == SAMPLE:
            break
    if not found:
        raise InputError(f"none of {TRIES} random points is possible; the last one: {reason}")
    return found


def random_point(parameters: Sequence[Parameter], draw: random.Random) -> Params:
    """A point with every parameter that exists, each drawn uniformly, by ratios where its range is searched so."""
    params: Params = {}
    for parameter in parameters:
        low, high = parameter.low, parameter.high
        if not parameter.applies(params):
            continue
        if parameter.values:
            params[parameter.name] = draw.choice(parameter.values)
        elif low is not None and high is not None:
            value = math.exp(draw.uniform(math.log(low), math.log(high))) if parameter.log else draw.uniform(low, high)
            value = min(max(value, low), high)  # the exponential may miss an end by a rounding
            params[parameter.name] = round(value) if parameter.integer else value
    return params


def print_plan(plan: Plan) -> None:
    """Tables on stdout, 100 columns wide unless it is a terminal."""
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 100)
    search, gpu = bool(plan.spec.limit), plan.unit == "GPU"
    console.print(f"{plan.spec.title} On {plan.spec.experiment}:")
    figures = ("M parameters", "GFLOPs a clip", "minutes")
    if listed := plan.first if search else plan.trials:
        table = _table("tried first" if search else "trial", "epochs", *figures)
        for e in listed:
            table.add_row(e.name, str(e.epochs), *map(_figure, _figures(e)))
        console.print(table)
    if search:
        table = _table(f"of {len(plan.trials)} random points", "least", "median", "most")
        for heading, values in zip(figures, zip(*map(_figures, plan.trials), strict=True), strict=True):
            table.add_row(heading, *map(_figure, (min(values), statistics.median(values), max(values))))
        console.print(table)
    # Trials that share a GPU do slow each other down.
    hours = f"{'at best ' * (gpu and plan.together > 1)}{_span(plan.wall_hours)}, {plan.together} at a time"
    memory = _size(max(e.memory for e in plan.trials + plan.first))
    table = Table(show_header=False, box=None)
    table.add_row("trainings", f"{'at most ' * search}{plan.spec.total}")
    table.add_row(f"{plan.unit} hours", _figure(plan.device_hours))
    table.add_row("time", hours)
    if plan.kept is not None:
        table.add_row("early stopping", f"leaves about {100 * plan.kept:.0f} % of that")
    if plan.price is not None:
        table.add_row("cost", f"{plan.price:,.2f}")
    table.add_row("disk", f"{_size(plan.disk)} at most")
    table.add_row("memory", f"{memory} a trial{', on the GPU' * gpu}")
    console.print(table)
    console.print("The same in all: " + ", ".join(f"{name}={str(v).replace(' ', '')}" for name, v in plan.same.items()))
    console.print(plan.how)


def _table(first: str, *others: str) -> Table:
    table = Table(first)
    for heading in others:
        table.add_column(heading, justify="right")
    return table


def _figures(e: Estimate) -> tuple[float, float, float]:
    return e.size.parameters / 1e6, e.size.gflops, e.minutes


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _span(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.2g} min"


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
