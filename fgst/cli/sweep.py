"""The command line of every script in ``sweeps/``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fgst.cli.command import CommandParser, run_command
from fgst.cli.options import add_system_metrics_option, add_tracking_option, add_trial_options, positive, trial_config
from fgst.config import TrialConfig
from fgst.errors import InputError
from fgst.network import require_server
from fgst.sweep.definition import OBJECTIVES, SEARCHES, EarlyStop, SweepDefinition, SweepSpec, TrialFactory, build_spec
from fgst.tracking.tags import Tags

DEMO = Path("datasets/demo")
DEMO_EPOCHS = 30
# A finished sweep is described by these: they cannot be changed when it is resumed.
_ASKED = (
    "dataset", "preset", "epochs", "modality", "benchmark", "protocol", "seed", "values", "seeds", "search",
    "objectives", "enqueue", "also", "early_stop", "grace", "reduction", "from_run", "sweep",
)  # fmt: skip
# These say where and how it runs, and are repeated in the command that resumes.
_KEPT = (
    "tracking_uri", "address", "cpus_per_trial", "gpus_per_trial", "max_concurrent", "study_storage", "price_per_hour",
)  # fmt: skip


def main(question: SweepDefinition, doc: str | None = None) -> None:
    """Run a question's script: parse the command line, run the sweep, print its table and the next command."""
    run_command(lambda: sweep(question, doc))


def build_parser(question: SweepDefinition, doc: str | None) -> argparse.ArgumentParser:
    parser = CommandParser(f"python sweeps/{question.name}.py", doc)
    group = parser.add_argument_group("the sweep")
    group.add_argument(
        "--values", metavar="V,V,…", help="values to go through; default: the script's (; may part them)"
    )
    group.add_argument("--seeds", type=positive(int), metavar="N", help="trainings of each (default 1): mean ± std")
    group.add_argument(
        "--search",
        choices=SEARCHES,
        help=f"grid: all; optuna: TPE; random; nsga2: for two objectives; default here: {question.search}",
    )
    group.add_argument("--trials", type=positive(int), metavar="N", help="trainings of a search (default 20)")
    group.add_argument(
        "--objectives",
        metavar="O,O",
        help=f"of a search: {', '.join(name for name in OBJECTIVES if name != 'test_top1')}; two give a Pareto front",
    )
    group.add_argument(
        "--enqueue",
        action="append",
        metavar="NAME=V,…",
        help="a point that a search tries first (may be repeated); default: the paper's setting; none: no such point",
    )
    group.add_argument("--also", metavar="NAME,…", help="vary these too, where the script offers any on request")
    stop = parser.add_argument_group("stopping")
    stop.add_argument(
        "--early-stop",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="successive halving (ASHA) by validation, on epochs; default: every trial is trained to its end",
    )
    stop.add_argument("--grace", type=positive(int), metavar="E", help="epochs before the first rung; default: 1/9")
    stop.add_argument("--reduction", type=positive(int), metavar="R", help="1/R go on at a rung (default 3)")
    stop.add_argument("--max-hours", type=positive(float), metavar="H", help="stop then, with all that is known")
    stop.add_argument("--max-trials", type=positive(int), metavar="N", help="begin no more than these, this time")
    stop.add_argument("--until-top1", type=positive(float), metavar="P", help="stop when a trial validates at P %%")
    group.add_argument("--from-run", metavar="RUN_ID", help="take that training's settings and data, not a preset's")
    group.add_argument("--sweep", metavar="SWEEP_RUN_ID", help="the same, of that sweep's best trial by validation")
    if question.builds_ensemble:
        group.add_argument(
            "--refit",
            action="store_true",
            help="then train all of them again on all training clips, and fuse them with the weights that were fitted",
        )
    group.add_argument("--resume", metavar="SWEEP_RUN_ID", help="go on with a sweep that was interrupted")
    group.add_argument("--dry-run", action="store_true", help="print trials, sizes and estimated cost, and stop")
    group.add_argument(
        "--simulate",
        metavar="CURVES",
        help="try the search on recorded learning curves (python -m fgst.runs curves); starts and writes nothing",
    )
    group.add_argument(
        "--repeats",
        type=positive(int),
        metavar="N",
        help="simulated searches, for their spread (default 20; a grid: 1)",
    )
    add_trial_options(parser, dataset_required=False)
    place = parser.add_argument_group("where it runs")
    place.add_argument("--local", action="store_true", help="in this process, one trial after another, without Ray")
    place.add_argument("--cpus-per-trial", type=positive(float), metavar="N", help="default: the cores divided")
    place.add_argument(
        "--gpus-per-trial",
        type=_share,
        metavar="N",
        help="default: 1 if there is a GPU; 0.25 lets four trials share it; auto: measured first",
    )
    place.add_argument("--max-concurrent", type=positive(int), metavar="N", help="trials at a time; default: what fits")
    place.add_argument(
        "--address", metavar="ADDRESS", help="a running Ray cluster (auto finds it); default: this machine"
    )
    place.add_argument(
        "--storage",
        metavar="DIR",
        default=os.environ.get("FGST_STORAGE") or "ray_results",
        help="for checkpoints: a folder, on a cluster one that all nodes share, or a URI such as s3://bucket/sweeps; "
        "default: FGST_STORAGE in the environment, or ray_results",
    )
    place.add_argument(
        "--study-storage",
        metavar="URL",
        help="Optuna's, for optuna-dashboard; default: optuna.db under --storage, "
        "or under ~/.local/share/fgst where that is a URI",
    )
    place.add_argument("--price-per-hour", type=positive(float), metavar="P", help="of a GPU (of a core on the CPU)")
    add_tracking_option(parser)
    add_system_metrics_option(parser)
    return parser


def sweep(question: SweepDefinition, doc: str | None = None, argv: Sequence[str] | None = None) -> None:
    """What :func:`main` does, for a given command line; raises instead of exiting."""
    args = build_parser(question, doc).parse_args(argv)
    if args.local and args.address:
        raise InputError("--local runs in this process, --address on a cluster: give one of them")
    if args.address not in (None, "auto", "local"):
        require_server(args.address if "://" in args.address else f"ray://{args.address}", "--address")
    if args.simulate:
        _simulate(question, args, sys.argv[1:] if argv is None else argv)
        return
    if args.repeats:
        raise InputError("--repeats is how many searches --simulate tries: add it")
    with ExitStack() as ray:
        if args.resume:
            if args.dry_run:
                raise InputError("--dry-run tells of a sweep to come; --resume goes on with one that was begun")
            _resume(question, args, ray)
            return
        spec, trials = _asked(question, args)
        if args.dry_run:
            _print_plan(spec, trials, args)
            return
        known = bool(args.from_run or args.sweep)
        if not args.local and (args.address or not known):
            # Ray's processes start while this one imports what it needs beside them. In the main thread: they end
            # with the thread that began them.
            threading.Thread(target=_import_the_rest, daemon=True).start()
            _join(ray, args)
        from fgst.sweep.runner import begin
        from fgst.tracking.store import resolve_uri

        if args.address:
            _require_reachable(args.storage, spec, resolve_uri(args.tracking_uri))
        session = begin(spec, args, known=known)
        session.run(trials, args, _again(args, session.parent.run_id))


def _resume(question: SweepDefinition, args: argparse.Namespace, ray: ExitStack) -> None:
    from fgst.data.dataset import ArrowDataset
    from fgst.sweep.runner import begun

    session = begun(question, args.resume, _ignored(args), args)
    spec = session.spec
    dataset = ArrowDataset(spec.base.data.dataset)
    if dataset.digest != spec.dataset_digest:
        raise InputError(f"{dataset.path}: is not the data that the sweep was begun on (its digest differs)")
    if args.address:
        _join(ray, args)
        _require_reachable(session.storage, spec, session.store.uri)
    session.run(TrialFactory(question, spec.base, dataset), args, _again(args, session.parent.run_id))


def _join(ray: ExitStack, args: argparse.Namespace) -> None:
    from fgst.sweep.backends.ray_session import ray_session

    ray.enter_context(ray_session(args.address))


def _require_reachable(storage: str, spec: SweepSpec, tracking_uri: str) -> None:
    from fgst.sweep.backends.preflight import require_reachable
    from fgst.sweep.storage import resolve

    require_reachable(resolve(storage), spec.base.data.dataset, tracking_uri)


def _import_the_rest() -> None:
    """What takes seconds to import and is needed once there is a Ray to run trials."""
    import ray.tune  # noqa: F401

    import fgst.sweep.runner  # noqa: F401


def _asked(question: SweepDefinition, args: argparse.Namespace) -> tuple[SweepSpec, TrialFactory]:
    from fgst.data.dataset import ArrowDataset

    where, settings = args.dataset, None
    if args.from_run or args.sweep:
        settings = _settings_of(args)
        where = settings.data.dataset
    elif where is None:
        where = str(_demo())
        if args.preset is None:
            # The demo is there to show the way in minutes, whatever the machine.
            args.preset, args.epochs = "tiny", args.epochs or DEMO_EPOCHS
            print(f"preset tiny, {args.epochs} epochs (for the demo); --preset and --epochs choose", file=sys.stderr)
    base = trial_config(args, where, has_gpu=_has_gpu(args), base=settings)
    dataset = ArrowDataset(where)
    objectives = tuple(args.objectives.split(",")) if args.objectives else ("val_top1",)
    search = args.search or ("nsga2" if len(objectives) > 1 and question.search != "grid" else question.search)
    _check_search(search, objectives, args)
    spec = build_spec(
        question, base, dataset,
        values=None if args.values is None else _values(args.values),
        also=args.also.split(",") if args.also else (),
        seeds=args.seeds or 1,
        search=search,
        limit=args.trials or 20,
        objectives=objectives,
        early_stop=_early_stop(base.train.epochs, args),
        initial_points=None if args.enqueue is None else [_point(text) for text in args.enqueue if text != "none"],
        refit=question.builds_ensemble and args.refit,
    )  # fmt: skip
    return spec, TrialFactory(question, spec.base, dataset)


def _settings_of(args: argparse.Namespace) -> TrialConfig:
    """The settings of the training that ``--from-run`` or ``--sweep`` name, with the place of its data as of now."""
    from fgst.data.dataset import ArrowDataset
    from fgst.tracking.store import TrackingStore

    if args.preset or (args.from_run and args.sweep):
        raise InputError("--from-run, --sweep and --preset each say what the settings are: give one of them")
    store = TrackingStore(args.tracking_uri)
    run = store.run(args.from_run or args.sweep)
    if args.sweep:
        if run.data.tags.get(Tags.KIND) != "sweep" or Tags.BEST_RUN not in run.data.tags:
            raise InputError(f"--sweep {args.sweep}: is no sweep that has a best trial; --from-run takes a training")
        run = store.run(run.data.tags[Tags.BEST_RUN])
    elif run.data.tags.get(Tags.KIND) != "trial":
        raise InputError(f"--from-run {args.from_run}: is no training; --sweep takes a sweep, for its best trial")
    card = store.model_card(run.info.run_id)
    config = card.config.with_values({"data.dataset": args.dataset} if args.dataset else {})
    data = ArrowDataset(config.data.dataset)
    if data.digest != card.dataset_digest and not args.dataset:
        raise InputError(f"{data.path}: has changed since run {run.info.run_id}; --dataset {data.path} takes it so")
    return config


def _check_search(search: str, objectives: tuple[str, ...], args: argparse.Namespace) -> None:
    offered = [name for name in OBJECTIVES if name != "test_top1"]
    if unknown := [name for name in objectives if name not in offered]:
        raise InputError(f"--objectives names {unknown[0]!r}; there are {', '.join(offered)}")
    if len(set(objectives)) != len(objectives) or len(objectives) > 2:
        raise InputError(f"--objectives {args.objectives}: name one, or two that differ")
    if search == "grid" and (args.trials or args.objectives or args.enqueue):
        option = "--trials" if args.trials else "--objectives" if args.objectives else "--enqueue"
        raise InputError(f"{option} is for a search, and a grid trains all there is; add --search optuna")
    if search == "nsga2" and len(objectives) == 1:
        raise InputError("--search nsga2 is for two objectives, e.g. --objectives val_top1,flops")


def _early_stop(epochs: int, args: argparse.Namespace) -> EarlyStop | None:
    if not args.early_stop:
        if args.grace or args.reduction:
            raise InputError("--grace and --reduction shape --early-stop: add it")
        return None
    grace, reduction = args.grace or max(1, epochs // 9), args.reduction or 3
    if grace >= epochs:
        raise InputError(f"--grace {grace}: there are {epochs} epochs, so nothing would be stopped")
    if reduction < 2:
        raise InputError(f"--reduction {reduction}: at least 2")
    return EarlyStop(grace, reduction)


def _values(text: str) -> list[Any]:
    """``5,15`` or, for values that hold commas, ``1,2;1,3``: numbers where they are numbers."""
    separator = ";" if ";" in text else ","
    parts = [part.strip() for part in text.split(separator)]
    if not all(parts):
        raise InputError(f"--values {text}: write values separated by commas, e.g. 5,15")
    return [part if separator == ";" else _scalar(part) for part in parts]


def _point(text: str) -> dict[str, Any]:
    """``K=15,P=10`` → ``{"K": 15, "P": 10}``."""
    params = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals or not value.strip():
            raise InputError(f"--enqueue {text}: write NAME=VALUE,…, e.g. K=15,P=10")
        params[name.strip()] = _scalar(value.strip())
    return params


def _scalar(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float) and not isinstance(value, bool) else text


def _demo() -> Path:
    from fgst.data.dataset import DESCRIPTION

    if not (DEMO / DESCRIPTION).is_file():
        from fgst.data.synthetic import make_demo

        print(f"no --dataset: preparing generated motion (no recordings) under {DEMO}", file=sys.stderr)
        make_demo(DEMO)
    else:
        print(f"no --dataset: taking the generated motion (no recordings) under {DEMO}", file=sys.stderr)
    return DEMO


def _has_gpu(args: argparse.Namespace) -> bool:
    if isinstance(args.gpus_per_trial, float):
        return args.gpus_per_trial > 0
    import torch

    return torch.cuda.is_available()


def _print_plan(spec: SweepSpec, trials: TrialFactory, args: argparse.Namespace) -> None:
    from fgst.sweep.planning.plan import make_plan, print_plan

    cores = len(os.sched_getaffinity(0))
    if _has_gpu(args):
        share = args.gpus_per_trial if isinstance(args.gpus_per_trial, float) else 1.0
        device, threads, together = "cuda", None, max(1, int(1 / share))
    else:
        together = 1 if args.local else min(spec.total, args.max_concurrent or cores, cores)
        device, threads = "cpu", max(1, int(args.cpus_per_trial or cores // together))
    print_plan(
        make_plan(spec, trials, device=device, threads=threads, together=together, price_per_hour=args.price_per_hour)
    )


def _simulate(question: SweepDefinition, args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Try the search that the options describe on recorded curves."""
    import shlex

    from fgst.sweep.simulation.curves import epochs_of, read_curves

    given = ("resume", "dry_run", "address", "refit")
    if other := [name for name in given if getattr(args, name, None)]:
        raise InputError(f"--simulate runs nothing for real; leave --{other[0].replace('_', '-')} out")
    if args.protocol == "paper":
        raise InputError("--simulate tells what validation would have chosen, and --protocol paper holds nothing out")
    curves = read_curves(Path(args.simulate))
    args.epochs = args.epochs or epochs_of(curves)
    spec, trials = _asked(question, args)
    if spec.base.data.protocol == "paper":
        raise InputError("--simulate tells what validation would have chosen, and these settings hold nothing out")

    from fgst.sweep.simulation.report import print_simulated
    from fgst.sweep.simulation.simulator import Limits, Records, simulate_all

    records = Records(spec, curves, f"--simulate {args.simulate}")
    limits = Limits(args.max_concurrent or 1, args.max_hours, args.max_trials, args.until_top1)
    repeats = args.repeats or (1 if spec.search == "grid" else 20)
    found = simulate_all(spec, trials, records, limits, repeats)
    words = ["python", sys.argv[0], *_without(argv, "--simulate", "--repeats")]
    print_simulated(spec, records, limits, found, args.simulate, shlex.join(words))


def _without(argv: Sequence[str], *options: str) -> list[str]:
    """A command line without these options and their values."""
    kept, skip = [], False
    for word in argv:
        if skip or word.partition("=")[0] in options:
            skip = not skip and word in options
        else:
            kept.append(word)
    return kept


def _ignored(args: argparse.Namespace) -> list[str]:
    """Options that a resumed sweep does not take: it goes on as it was begun."""
    given = [f"--{name.replace('_', '-')}" for name in _ASKED if getattr(args, name) is not None]
    return given + ["--set"] * bool(args.overrides) + ["--refit"] * bool(getattr(args, "refit", False))


def _again(args: argparse.Namespace, sweep_id: str) -> str:
    import shlex

    words = ["python", sys.argv[0], "--resume", sweep_id]
    for name in _KEPT:
        if getattr(args, name) is not None:
            words += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    return shlex.join(words + ["--local"] * args.local + ["--system-metrics"] * args.system_metrics)


def _share(text: str) -> float | str:
    if text == "auto":
        return text
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value
