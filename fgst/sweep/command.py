"""The command line of every script in ``sweeps/``."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgst.errors import CommandParser, InputError, Interrupted, require_listener, run_command
from fgst.options import add_tracking_option, add_trial_options, positive, trial_config
from fgst.sweep.spec import Question, SweepSpec, Trial, make_spec

if TYPE_CHECKING:
    from fgst.sweep.report import TrialOutcome
    from fgst.tracking import TrackedRun, Tracking

DEMO = Path("datasets/demo")
DEMO_EPOCHS = 30
STORAGE_TAG = "fgst.storage"


def main(question: Question, doc: str | None = None) -> None:
    """Run a question's script: parse the command line, run the sweep, print its table and the next command."""
    run_command(lambda: sweep(question, doc))


def build_parser(question: Question, doc: str | None) -> argparse.ArgumentParser:
    parser = CommandParser(f"python sweeps/{question.name}.py", doc)
    group = parser.add_argument_group("the sweep")
    group.add_argument(
        "--values",
        metavar="V,V,…",
        help=f"values of {question.axis}; default: those of the paper that fit the skeleton",
    )
    group.add_argument(
        "--seeds",
        type=positive(int),
        default=1,
        metavar="N",
        help="seeds per value (default 1): mean ± std in the table",
    )
    group.add_argument("--resume", metavar="SWEEP_RUN_ID", help="go on with a sweep that was interrupted")
    group.add_argument("--dry-run", action="store_true", help="print the trials and stop")
    add_trial_options(parser, dataset_required=False)
    place = parser.add_argument_group("where it runs")
    place.add_argument("--cpus-per-trial", type=positive(float), metavar="N", help="default: the cores divided")
    place.add_argument(
        "--gpus-per-trial",
        type=_share,
        metavar="N",
        help="default: 1 if there is a GPU; 0.25 lets four trials share it",
    )
    place.add_argument("--max-concurrent", type=positive(int), metavar="N", help="trials at a time; default: what fits")
    place.add_argument(
        "--address", metavar="ADDRESS", help="a running Ray cluster (auto finds it); default: this machine"
    )
    place.add_argument("--storage", metavar="DIR", default="ray_results", help="checkpoints; default: ray_results")
    add_tracking_option(parser)
    return parser


def sweep(question: Question, doc: str | None = None, argv: Sequence[str] | None = None) -> None:
    """What :func:`main` does, for a given command line; raises instead of exiting."""
    parser = build_parser(question, doc)
    args = parser.parse_args(argv)
    if args.storage and "://" in args.storage:
        raise InputError(f"--storage {args.storage}: name a directory (one that all nodes share, on a cluster)")
    if args.address not in (None, "auto", "local"):
        require_listener(args.address if "://" in args.address else f"ray://{args.address}", "--address")
    if args.resume:
        spec, storage, parent, store = _resumed(args)
    else:
        spec = _asked(question, args)
        if args.dry_run:
            _print_plan(spec)
            return
        from fgst.tracking import Tracking

        store = Tracking(args.tracking_uri)
        parent, storage = _begin(store, spec, Path(args.storage).absolute())
    if args.dry_run:
        _print_plan(spec)
        return
    _run(spec, store, parent, storage, args)


def _asked(question: Question, args: argparse.Namespace) -> SweepSpec:
    from fgst.dataset import ArrowDataset

    values = None
    if args.values is not None:
        try:
            values = [question.read(text.strip()) for text in args.values.split(",")]
        except ValueError:
            raise InputError(
                f"--values {args.values}: write values of {question.axis} separated by commas, e.g. 5,15"
            ) from None
    where = args.dataset
    if where is None:
        where = str(_demo())
        if args.preset is None:
            # The demo is there to show the way in minutes, whatever the machine.
            args.preset, args.epochs = "tiny", args.epochs or DEMO_EPOCHS
            print(f"preset tiny, {args.epochs} epochs (for the demo); --preset and --epochs choose", file=sys.stderr)
    base = trial_config(args, where, has_gpu=_has_gpu(args))
    return make_spec(question, base, ArrowDataset(where), values, args.seeds)


def _demo() -> Path:
    from fgst.dataset import DESCRIPTION

    if not (DEMO / DESCRIPTION).is_file():
        from data_prep.demo import make_demo

        print(f"no --dataset: preparing generated motion (no recordings) under {DEMO}", file=sys.stderr)
        make_demo(DEMO)
    else:
        print(f"no --dataset: taking the generated motion (no recordings) under {DEMO}", file=sys.stderr)
    return DEMO


def _has_gpu(args: argparse.Namespace) -> bool:
    if args.gpus_per_trial is not None:
        return args.gpus_per_trial > 0
    import torch

    return torch.cuda.is_available()


def _print_plan(spec: SweepSpec) -> None:
    print(f"{spec.title} {len(spec.trials)} trials on {spec.experiment}:")
    for trial in spec.trials:
        print(f"  {trial.name}  {trial.config.train.epochs} epochs")
    settings = spec.trials[0].config.flat()
    same = [n for n, v in settings.items() if all(t.config.flat()[n] == v for t in spec.trials)]
    print("the same in all: " + ", ".join(f"{name}={settings[name]}" for name in same))


def _begin(store: Tracking, spec: SweepSpec, root: Path) -> tuple[TrackedRun, Path]:
    """Open the sweep's run, with its specification inside, so that it can be taken up from its id alone."""
    from fgst.tracking import KIND

    experiment = store.experiment(spec.experiment)
    name = f"{spec.name} {spec.trials[0].config.data.modality}"
    tags = {
        KIND: "sweep",
        "mlflow.source.name": f"sweeps/{spec.name}.py",
        "fgst.sweep": spec.name,
        "fgst.dataset_digest": spec.dataset_digest,
    }
    parent = store.start(experiment, f"{spec.name}-{time.time_ns()}", name, tags)
    storage = root / parent.run_id
    try:
        storage.mkdir(parents=True)
    except OSError as error:
        parent.finish("FAILED", str(error))
        raise InputError(f"--storage {root}: cannot be written ({error.strerror})") from None
    parent.set_tags({STORAGE_TAG: str(storage)})
    varied = {"trials": len(spec.trials), "values": [label.partition("=")[2] for label in spec.labels]}
    parent.log_params({"sweep": spec.name, **varied})
    with tempfile.TemporaryDirectory(prefix="fgst-sweep-") as folder:
        (Path(folder) / "sweep.json").write_text(spec.to_json())
        parent.log_artifacts(Path(folder))
    return parent, storage


def _resumed(args: argparse.Namespace) -> tuple[SweepSpec, Path, TrackedRun, Tracking]:
    from fgst.tracking import KIND, TrackedRun, Tracking

    store = Tracking(args.tracking_uri)
    run = store.run(args.resume)
    if run.data.tags.get(KIND) != "sweep" or STORAGE_TAG not in run.data.tags:
        raise InputError(f"run {args.resume} is not a sweep; --resume takes the id that the sweep printed at its start")
    with store.artifacts(args.resume, "sweep.json") as file:
        spec = SweepSpec.from_json(file.read_text())
    ignored = [
        name
        for name in ("dataset", "preset", "epochs", "modality", "benchmark", "protocol", "seed", "values")
        if getattr(args, name) is not None
    ]
    if ignored or args.overrides:
        what = ", ".join([f"--{name}" for name in ignored] + ["--set"] * bool(args.overrides))
        raise InputError(f"--resume goes on with the sweep as it was begun; leave {what} out")
    storage = Path(run.data.tags[STORAGE_TAG])
    storage.mkdir(parents=True, exist_ok=True)
    return spec, storage, TrackedRun(store, args.resume), store


def _outcomes(store: Tracking, parent: str) -> dict[str, TrialOutcome]:
    from fgst.sweep.report import TrialOutcome
    from fgst.tracking import KEY, REASON

    outcomes = {}
    for run in store.children(parent):
        tags = run.data.tags
        key = tags.get(KEY, "")
        outcomes[key] = TrialOutcome(key, run.info.run_id, run.info.status, run.data.metrics, tags.get(REASON, ""))
    return outcomes


def _run(spec: SweepSpec, store: Tracking, parent: TrackedRun, storage: Path, args: argparse.Namespace) -> None:
    from fgst.sweep.engine import Resources, run_on_ray
    from fgst.sweep.live import LiveView
    from fgst.sweep.trial import TrialContext

    experiment = store.run(parent.run_id).info.experiment_id
    again = f"python {sys.argv[0]} --resume {parent.run_id}"
    for option in ("tracking_uri", "address", "cpus_per_trial", "gpus_per_trial", "max_concurrent"):
        if getattr(args, option) is not None:
            again += f" --{option.replace('_', '-')} {getattr(args, option)}"
    before = _outcomes(store, parent.run_id)
    pending = [t for t in spec.trials if t.key not in before or before[t.key].status != "FINISHED"]
    store.client.update_run(parent.run_id, status="RUNNING")
    print(
        f"{spec.title} {len(spec.trials)} trials on {spec.experiment}"
        + (f", {len(spec.trials) - len(pending)} of them finished before" if len(pending) < len(spec.trials) else "")
        + f"\nsweep {parent.run_id} in {store.uri}\nto look: {store.where_to_look(experiment)}",
        file=sys.stderr,
    )
    resources = Resources(args.address, args.cpus_per_trial, args.gpus_per_trial, args.max_concurrent)
    context = TrialContext(store.uri, experiment, parent.run_id, str(storage), None)

    def died(trial: Trial, reason: str) -> None:
        run = store.start(experiment, trial.key, trial.name, {"fgst.label": trial.label}, parent.run_id)
        run.finish("FAILED", reason)

    try:
        if pending:
            with LiveView(spec, done=len(spec.trials) - len(pending)) as view:
                run_on_ray(pending, context, resources, view.listen, died)
    except KeyboardInterrupt:
        pass  # before Ray Tune listened for it; told below
    except Exception as error:
        parent.finish("FAILED", f"{type(error).__name__}: {error}")
        raise
    outcomes = _outcomes(store, parent.run_id)
    ended = {key for key, outcome in outcomes.items() if outcome.status in ("FINISHED", "FAILED")}
    interrupted = [trial for trial in pending if trial.key not in ended]
    for trial in interrupted:
        if trial.key in outcomes and outcomes[trial.key].status == "RUNNING":
            store.client.set_terminated(outcomes[trial.key].run_id, "KILLED")
    _report(spec, outcomes, parent)
    if interrupted:
        parent.finish("KILLED", "interrupted")
        raise Interrupted(f"{len(interrupted)} of {len(spec.trials)} trials are not finished. Go on with: {again}")
    failed = [t for t in spec.trials if t.key in outcomes and outcomes[t.key].status == "FAILED"]
    for trial in failed:
        print(f"failed: {trial.name}: {outcomes[trial.key].reason}", file=sys.stderr)
    parent.finish("FAILED" if len(failed) == len(spec.trials) else "FINISHED")
    if not failed:
        shutil.rmtree(storage, ignore_errors=True)  # all of it is in MLflow now
    if len(failed) == len(spec.trials):
        sys.exit(1)
    from fgst.sweep.report import best_outcome

    best = best_outcome(spec, outcomes)
    assert best is not None
    if failed:
        print(f"{len(failed)} of {len(spec.trials)} trials failed; try them again with: {again}", file=sys.stderr)
    print(
        "the best trial by validation:"
        if "val/top1" in best.metrics
        else "a trial (nothing was held out to choose by):"
    )
    uri = f" --tracking-uri {args.tracking_uri}" if args.tracking_uri else ""
    print(f"python -m fgst.evaluate --run-id {best.run_id}{uri}", flush=True)
    if failed:
        sys.exit(1)


def _report(spec: SweepSpec, outcomes: dict[str, TrialOutcome], parent: TrackedRun) -> None:
    from fgst import figures
    from fgst.sweep.report import best_outcome, make_rows, print_table, to_csv

    rows = make_rows(spec, outcomes)
    best = best_outcome(spec, outcomes)
    chosen = best is not None and "val/top1" in best.metrics
    label = next((t.label for t in spec.trials if best is not None and t.key == best.key), None)
    print_table(spec, rows, label if chosen else None)
    with tempfile.TemporaryDirectory(prefix="fgst-report-") as name:
        folder = Path(name)
        (folder / "table.csv").write_text(to_csv(spec, rows))
        (folder / "figures").mkdir()
        as_dicts: list[dict[str, Any]] = [row.to_dict() for row in rows]
        figures.sweep_curve(
            as_dicts, spec.axis, spec.title, dict(spec.published), spec.source, folder / "figures" / f"{spec.name}.png"
        )
        parent.log_artifacts(folder)
    if best is not None:
        # Under the trials' own names: MLflow's list shows sweeps folded, and sorts them by the same columns.
        summary = {name: best.metrics[name] for name in ("val/top1", "test/top1") if name in best.metrics}
        parent.log_metrics({**summary, "trials_finished": sum(row.finished for row in rows)}, step=0)
        parent.set_tags({"fgst.best_run": best.run_id, "fgst.best": label or ""})


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value
