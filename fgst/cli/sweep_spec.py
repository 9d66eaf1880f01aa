"""Conversion of a sweep's command-line options to its specification: settings, search, early stopping, the demo."""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

from fgst.cli.options import read_overrides, trial_config
from fgst.cli.sweep_plan import has_gpu, resolving_spec
from fgst.config import TrialConfig, resolve_data_defaults
from fgst.errors import InputError
from fgst.sweep.definition import SweepDefinition, TrialFactory
from fgst.sweep.options import (
    DEFAULT_TRIALS,
    SEARCHABLE_OBJECTIVES,
    Scope,
    SweepOptions,
    flag_name,
    parse_params,
    parse_values,
)
from fgst.sweep.race import DEFAULT_ROUNDS
from fgst.sweep.spec import EarlyStopping, SweepSpec, build_spec, ineffective_overrides

DEMO = Path("datasets/demo")
DEMO_SEEDS = 8


def new_spec(definition: SweepDefinition, options: SweepOptions) -> tuple[SweepSpec, TrialFactory, SweepOptions]:
    """The specification that the options describe, and the options with the demo's preset filled in."""
    from fgst.data.dataset import ArrowDataset  # lazy: `--help` needs no Arrow

    location, settings = options.dataset, None
    if options.from_run or options.sweep:
        settings = _settings_of(options)
        location = settings.data.dataset
    elif location is None:
        location = str(_demo())
        options = _demo_options(definition, options)
    base = _base_config(options, location, has_gpu=has_gpu(options), base=settings)
    dataset = ArrowDataset(location)
    folds = base.data.folds if base.data.protocol == "validation" else 0
    if options.folds and not folds:
        raise InputError("--folds holds out validation clips, and --protocol paper has none; use one of them")
    if options.folds and options.seeds and options.seeds % options.folds:
        raise InputError(
            f"--seeds {options.seeds}: each seed holds out one of the {options.folds} folds; use {options.folds} "
            "seeds (the default with --folds), or a multiple"
        )
    objectives = tuple(options.objectives.split(",")) if options.objectives else ("val_top1",)
    multi_objective = len(objectives) > 1 and definition.search != "grid"
    search = options.search or ("nsga2" if multi_objective else definition.search)
    _check_search(search, objectives, options)
    enqueue = options.enqueue
    if options.resolve and (options.seeds or folds):
        raise InputError("--resolve chooses the number of seeds; remove " + ("--seeds" if options.seeds else "--folds"))
    make_spec = functools.partial(
        build_spec, definition, base, dataset,
        values=None if options.values is None else parse_values(options.values),
        also=options.also.split(",") if options.also else (),
        search=search,
        limit=options.trials or DEFAULT_TRIALS,
        objectives=objectives,
        early_stop=_early_stopping(base.train.epochs, options),
        initial_points=None if enqueue is None else [parse_params(text) for text in enqueue if text != "none"],
        refit=options.refit,
        refit_seeds=options.refit_seeds,
        race=options.race,
        resolve=options.resolve,
    )  # fmt: skip
    if options.resolve:
        spec = resolving_spec(make_spec, TrialFactory(definition, base, dataset), options)
    else:
        spec = make_spec(seeds=options.seeds or folds or (DEFAULT_ROUNDS if options.race else 1))
    factory = TrialFactory(definition, spec.base, dataset)
    overrides = read_overrides(options.overrides)
    for name, parameter in ineffective_overrides(spec, factory, overrides).items():
        by = f" ({parameter})" if parameter else ""
        remedy = "--values chooses its values" if search == "grid" else "it only sets what the search tries first"
        print(f"note: --set {name}={overrides[name]} is overridden: the sweep varies it{by}; {remedy}", file=sys.stderr)
    return spec, factory, options


def _base_config(
    options: SweepOptions, location: str, *, has_gpu: bool, base: TrialConfig | None = None
) -> TrialConfig:
    """The settings that the sweep's parameters are applied to; see :func:`fgst.cli.options.trial_config`."""
    if options.folds:
        folds = (f"data.folds={options.folds}", "data.fold=0", *options.overrides)
        options = dataclasses.replace(options, overrides=folds)
    return trial_config(options, location, has_gpu=has_gpu, base=base)


def require_same(spec: SweepSpec, options: SweepOptions) -> None:
    """Check the options of a sweep that is resumed: it continues with its own settings, which options may repeat.

    Raises:
        InputError: naming the options that differ, or that cannot be compared.
    """
    settings, data = spec.base.flat(), spec.base.data
    stop = spec.early_stop
    recorded = {
        "values": [list(parameter.values) for parameter in spec.parameters],
        "seeds": spec.seeds,
        "folds": data.folds,
        "search": spec.search,
        "objectives": list(spec.objectives),
        "refit": spec.refit,
        "refit_seeds": spec.refit_seeds,
        "race": spec.race,
        "resolve": spec.resolve,
        "early_stop": stop is not None,
        "grace": stop and stop.grace_period,
        "reduction": stop and stop.reduction_factor,
        "dataset": options.dataset,  # its digest was compared
        "epochs": spec.base.train.epochs,
        "modality": data.modality,
        "benchmark": data.benchmark,
        "protocol": data.protocol,
        "seed": spec.base.train.seed,
        "overrides": settings,
        "preset": options.preset if options.preset and _is_preset(spec, options) else None,
    }
    given: dict[str, Any] = {
        flag_name(name): (getattr(options, name), recorded.get(name))
        for name, default, declared in SweepOptions.declarations()
        if declared.scope is Scope.SWEEP and getattr(options, name) != default
    }
    if options.values is not None:
        given["--values"] = ([parse_values(options.values)], recorded["values"])
    if options.objectives is not None:
        given["--objectives"] = (options.objectives.split(","), recorded["objectives"])
    if options.overrides:
        changed = spec.base.with_values(read_overrides(options.overrides)).flat()
        given["--set"] = (changed, settings)
    if different := [flag for flag, (value, same) in given.items() if value != same]:
        raise InputError(
            f"--resume continues the sweep with its own settings; remove {', '.join(different)} from the command"
        )


def _is_preset(spec: SweepSpec, options: SweepOptions) -> bool:
    """Whether the given preset and options are the settings of the sweep."""
    from fgst.data.dataset import ArrowDataset  # lazy: `--help` needs no Arrow

    location = spec.base.data.dataset
    return resolve_data_defaults(_base_config(options, location, has_gpu=False), ArrowDataset(location)) == spec.base


def _settings_of(options: SweepOptions) -> TrialConfig:
    """Settings of the training named by ``--from-run`` or ``--sweep``, with the current location of its data set."""
    # lazy: mlflow takes seconds to import
    from fgst.data.dataset import ArrowDataset, open_recorded
    from fgst.tracking.store import TrackingStore
    from fgst.tracking.tags import Tags

    if options.preset or (options.from_run and options.sweep):
        raise InputError("--from-run, --sweep and --preset each choose the settings; use one of them")
    store = TrackingStore.existing(options.tracking_uri)
    run = store.run(store.full_run_id(options.from_run or options.sweep or ""))
    if options.sweep:
        if run.data.tags.get(Tags.KIND) != "sweep" or Tags.BEST_RUN not in run.data.tags:
            raise InputError(f"--sweep {options.sweep} is not a sweep with a best trial; --from-run takes a training")
        run = store.run(run.data.tags[Tags.BEST_RUN])
    elif run.data.tags.get(Tags.KIND) != "trial":
        raise InputError(f"--from-run {options.from_run} is not a training; --sweep takes the best trial of a sweep")
    card = store.model_card(run.info.run_id)
    config = card.config.with_values({"data.dataset": options.dataset} if options.dataset else {})
    data = (
        ArrowDataset(options.dataset)
        if options.dataset
        else open_recorded(config.data.dataset, f"run {run.info.run_id}")
    )
    if data.digest != card.dataset_digest and not options.dataset:
        raise InputError(
            f"{data.path}: the data set has changed since run {run.info.run_id}; --dataset {data.path} uses it anyway"
        )
    return config


def _check_search(search: str, objectives: tuple[str, ...], options: SweepOptions) -> None:
    if unknown := [name for name in objectives if name not in SEARCHABLE_OBJECTIVES]:
        raise InputError(f"--objectives names {unknown[0]!r}; objectives: {', '.join(SEARCHABLE_OBJECTIVES)}")
    if len(set(objectives)) != len(objectives) or len(objectives) > 2:
        raise InputError(f"--objectives {options.objectives}: name one objective or two different ones")
    if search == "grid" and (options.trials or options.objectives or options.enqueue):
        given = "--trials" if options.trials else "--objectives" if options.objectives else "--enqueue"
        raise InputError(f"{given} applies to searches, and a grid trains all combinations; add --search optuna")
    if search == "nsga2" and len(objectives) == 1:
        raise InputError("--search nsga2 needs two objectives, e.g. --objectives val_top1,flops")


def _early_stopping(epochs: int, options: SweepOptions) -> EarlyStopping | None:
    if not options.early_stop:
        if options.grace or options.reduction:
            raise InputError("--grace and --reduction require --early-stop")
        return None
    grace_period, reduction_factor = options.grace or max(1, epochs // 9), options.reduction or 3
    if grace_period >= epochs:
        raise InputError(f"--grace {grace_period}: there are {epochs} epochs, so no trial would be stopped")
    if reduction_factor < 2:
        raise InputError(f"--reduction {reduction_factor}: must be at least 2")
    return EarlyStopping(grace_period, reduction_factor)


def _demo_options(definition: SweepDefinition, options: SweepOptions) -> SweepOptions:
    """Fill in what makes a sweep of the demo quick and conclusive: its preset, few values, and several seeds."""
    if options.preset is not None:
        return options
    options, chosen = dataclasses.replace(options, preset="demo"), ["--preset demo"]
    if definition.search == "grid" and options.search in (None, "grid"):
        if options.values is None and definition.demo_values:
            options = dataclasses.replace(options, values=",".join(map(str, definition.demo_values)))
            chosen.append(f"--values {options.values}")
        if not (options.seeds or options.folds or options.resolve or options.race):
            options = dataclasses.replace(options, seeds=DEMO_SEEDS)
            chosen.append(f"--seeds {DEMO_SEEDS}")
    print(f"no --preset: using {' '.join(chosen)}", file=sys.stderr)
    return options


def _demo() -> Path:
    from fgst.data.dataset import DESCRIPTION  # lazy: `--help` needs no Arrow

    if not (DEMO / DESCRIPTION).is_file():
        from fgst.data.synthetic import make_demo  # lazy: for the demo only

        print(f"no --dataset: preparing generated motion (not recordings) in {DEMO}", file=sys.stderr)
        make_demo(DEMO)
    else:
        print(f"no --dataset: using the generated motion (not recordings) in {DEMO}", file=sys.stderr)
    return DEMO
