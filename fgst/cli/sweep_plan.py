"""What a sweep will cost and what it can resolve, for ``--dry-run``, ``--resolve`` and the start of a sweep."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from fgst.errors import InputError
from fgst.sweep.backends.resources import available_cores
from fgst.sweep.definition import TrialFactory
from fgst.sweep.options import SweepOptions
from fgst.sweep.spec import SweepSpec

if TYPE_CHECKING:
    from fgst.sweep.planning.plan import Plan
    from fgst.sweep.planning.resolution import Resolution
    from fgst.tracking.store import TrackingStore


def print_plan_and_resolution(spec: SweepSpec, factory: TrialFactory, options: SweepOptions) -> None:
    """Print what ``--dry-run`` says on stdout."""
    from fgst.sweep.planning.plan import print_plan  # lazy: torch takes seconds to import

    print_plan(_plan(spec, factory, options))
    for line in resolution_lines(spec, factory, _existing_store(options)):
        print(line)


def resolution_lines(spec: SweepSpec, factory: TrialFactory, store: TrackingStore | None) -> list[str]:
    """What the sweep can resolve, in words; empty if it compares nothing."""
    from fgst.sweep.planning.resolution import describe  # lazy: parsing needs no planning

    resolution = _resolution(spec, factory, store)
    return describe(spec, resolution) if resolution else []


def resolving_spec(
    make_spec: Callable[..., SweepSpec], factory: TrialFactory, options: SweepOptions
) -> SweepSpec:  # fmt: skip
    """The sweep with the number of seeds that ``--resolve`` needs.

    Args:
        make_spec: builds the sweep for the keyword ``seeds``.
        factory: of its trials.

    Raises:
        InputError: if that takes more than ``MAX_SEEDS`` seeds, or nothing is compared.
    """
    from fgst.sweep.planning.resolution import MAX_SEEDS  # lazy: parsing needs no planning

    points = options.resolve
    assert points is not None
    spec = make_spec(seeds=2)
    if spec.search != "grid":
        raise InputError("--resolve chooses the seeds of a grid; a search takes --seeds")
    resolution = _resolution(spec, factory, _existing_store(options))
    if resolution is None:
        raise InputError("--resolve needs at least two values to compare")
    seeds = resolution.seeds_for(points)
    if seeds is not None and seeds <= MAX_SEEDS:
        return make_spec(seeds=seeds)
    smallest = dataclasses.replace(resolution, seeds=MAX_SEEDS).on_these_clips()
    noise = f"standard deviation between seeds: {resolution.noise.pair_std:.1f} points ({resolution.noise.source})"
    remedy = f"--seeds {MAX_SEEDS} resolves {smallest:.1f} points"
    if seeds is None:
        raise InputError(f"--resolve {points:g}: no number of seeds is enough; {remedy}; {noise}")
    hours = _plan(spec, factory, options).wall_hours * seeds / spec.seeds
    raise InputError(
        f"--resolve {points:g}: would need {seeds:,} seeds = {hours:,.3g} h, and sets at most {MAX_SEEDS}; {remedy}, "
        f"and --seeds {seeds} trains them all; {noise}"
    )


def has_gpu(options: SweepOptions) -> bool:
    """Whether trials run on GPUs."""
    if isinstance(options.gpus_per_trial, float):
        return options.gpus_per_trial > 0
    import torch

    return torch.cuda.is_available()


def _plan(spec: SweepSpec, factory: TrialFactory, options: SweepOptions) -> Plan:
    from fgst.sweep.planning.plan import make_plan  # lazy: torch takes seconds to import

    cores = available_cores()
    if has_gpu(options):
        share = options.gpus_per_trial if isinstance(options.gpus_per_trial, float) else 1.0
        device, threads, concurrency = "cuda", None, max(1, int(1 / share))
    else:
        concurrency = 1 if options.local else min(spec.total, options.max_concurrent or cores, cores)
        device, threads = "cpu", max(1, int(options.cpus_per_trial or cores // concurrency))
    return make_plan(
        spec, factory, device=device, threads=threads, concurrency=concurrency, price_per_hour=options.price_per_hour
    )


def _resolution(spec: SweepSpec, factory: TrialFactory, store: TrackingStore | None) -> Resolution | None:
    # lazy: mlflow takes seconds to import
    from fgst.sweep.planning.earlier import earlier_noise
    from fgst.sweep.planning.resolution import resolution_of

    splits = factory.dataset.splits_for(spec.base.data)
    clips = len(splits.test if spec.compared_split == "test" else splits.val)
    return resolution_of(spec, earlier_noise(store, spec, clips), clips)


def _existing_store(options: SweepOptions) -> TrackingStore | None:
    """The tracking store, if it can be read: planning must not create one."""
    from fgst.tracking.store import TrackingStore  # lazy: mlflow takes seconds to import

    try:
        return TrackingStore.existing(options.tracking_uri)
    except InputError:
        return None
