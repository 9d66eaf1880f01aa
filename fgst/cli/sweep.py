"""The command line of every script in ``sweeps/``."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fgst.cli.command import format_command, is_output_failure, run_command
from fgst.cli.sweep_parser import build_parser
from fgst.cli.sweep_plan import print_plan_and_resolution, resolution_lines
from fgst.cli.sweep_spec import new_spec, require_same
from fgst.errors import InputError, Interrupted, StoreUnavailable, is_disk_full
from fgst.network import redact, require_server
from fgst.sweep.backends.resources import available_cores
from fgst.sweep.definition import SweepDefinition, TrialFactory
from fgst.sweep.options import SweepOptions, flag_name
from fgst.sweep.spec import SweepSpec, build_spec
from fgst.sweep.status import SweepStatus, TrialStatus
from fgst.table_files import check_files

if TYPE_CHECKING:
    from fgst.sweep.backends.base import Backend
    from fgst.sweep.modality_ensemble import EnsembleResult
    from fgst.sweep.results import SweepResult
    from fgst.sweep.runner import SweepCallback, SweepRunner


def main(definition: SweepDefinition, doc: str | None = None) -> None:
    """Run a script of ``sweeps/``: parse the command line, run the sweep, print its table and the next command."""

    def command() -> None:
        if code := sweep(definition, doc):
            sys.exit(code)

    run_command(command)


def sweep(definition: SweepDefinition, doc: str | None = None, argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv``; returns the exit code.

    Raises:
        InputError, Interrupted: as commands do, see :func:`fgst.cli.command.run_command`.
    """
    args = build_parser(definition, doc).parse_args(argv)
    options = SweepOptions.from_values(vars(args))
    if options.tracking_uri and redact(options.tracking_uri) != options.tracking_uri:
        os.environ["MLFLOW_TRACKING_URI"] = options.tracking_uri  # trials take the password from there
    if options.local and options.address:
        raise InputError("--local runs in this process and --address on a cluster; use one of them")
    if options.address not in (None, "auto", "local"):
        require_server(options.address if "://" in options.address else f"ray://{options.address}", "--address")
    check_files(options.latex, options.csv)
    if options.simulate:
        _simulate(definition, options, sys.argv[1:] if argv is None else argv)
        return 0
    if options.repeats:
        raise InputError("--repeats is the number of simulated searches: add --simulate CURVES")
    if options.dry_run and options.resume:
        raise InputError("--dry-run describes a new sweep and --resume continues an existing one; use one of them")
    if options.dry_run:
        spec, factory, options = new_spec(definition, options)
        print_plan_and_resolution(spec, factory, options)
        return 0
    with ExitStack() as ray:
        return _run(_open(definition, options, ray), options)


def _open(definition: SweepDefinition, options: SweepOptions, ray: ExitStack) -> SweepRunner:
    """The sweep that the options describe: a new one, or the one to be resumed. ``ray`` keeps Ray and its lock."""
    if options.resume not in (None, "auto"):
        return _load(definition, options, ray)
    spec, factory, new = new_spec(definition, options)
    if options.resume == "auto":
        # lazy: mlflow takes seconds to import; invalid input is reported before
        from fgst.sweep.opening import find_sweep
        from fgst.tracking.store import TrackingStore

        if found := find_sweep(spec, factory.dataset, TrackingStore(options.tracking_uri)):
            return _load(definition, dataclasses.replace(new, resume=found), ray, has_same_settings=True)
    return _create(spec, factory, new, ray)


def _create(spec: SweepSpec, factory: TrialFactory, options: SweepOptions, ray: ExitStack) -> SweepRunner:
    reuse = bool(options.from_run or options.sweep)
    if not options.local and (options.address or not reuse):
        # Ray's processes start while a thread imports the modules that this process needs. Ray is started in the main
        # thread, because its processes end with the thread that started them.
        threading.Thread(target=_import_runner, daemon=True).start()
        _join_ray(ray, options)
    # lazy: mlflow takes seconds to import; invalid input is reported before
    from fgst.sweep.opening import create_sweep
    from fgst.tracking.store import TrackingStore
    from fgst.tracking.uris import resolve_uri

    if options.address:
        _require_reachable(options.storage_location, spec, resolve_uri(options.tracking_uri))
    return create_sweep(
        spec, factory, TrackingStore(options.tracking_uri), storage_location=options.storage_location,
        study_storage=options.study_storage, reuse_finished_trials=reuse,
    )  # fmt: skip


def _load(
    definition: SweepDefinition, options: SweepOptions, ray: ExitStack, *, has_same_settings: bool = False
) -> SweepRunner:
    # lazy: mlflow takes seconds to import; invalid input is reported before
    from fgst.sweep.opening import load_sweep
    from fgst.tracking.store import TrackingStore

    assert options.resume is not None
    store = TrackingStore.existing(options.tracking_uri)
    runner = load_sweep(
        definition, store.full_run_id(options.resume), store, study_storage=options.study_storage, limit=options.trials,
        location=options.dataset,
    )  # fmt: skip
    if not has_same_settings:
        require_same(runner.spec, options)
    ray.enter_context(runner.exclusive())  # before anything is written or Ray starts
    if options.address:
        _join_ray(ray, options)
        _require_reachable(runner.storage_location, runner.spec, store.uri)
    return runner


def _run(runner: SweepRunner, options: SweepOptions) -> int:
    """Run a sweep, print its outcome and what to do next; returns the exit code."""
    # lazy: mlflow takes seconds to import; invalid input is reported before
    from fgst.sweep.callbacks import MlflowReport, ProgressDisplay, TablePrinter
    from fgst.sweep.stopping import Budget

    command = options.resume_command(["python", sys.argv[0]], runner.sweep_id)
    callbacks: list[SweepCallback] = [ProgressDisplay(), MlflowReport(command), TablePrinter()]
    budget = Budget(options.max_hours, options.max_trials, options.until_top1)
    try:
        _print_header(runner)
        result = runner.run(
            _backend(options, runner.spec), budget, callbacks,
            price_per_hour=options.price_per_hour, system_metrics=options.system_metrics,
        )  # fmt: skip
    except KeyboardInterrupt:  # before or after the trainings, while results are recorded or printed
        runner.interrupt()
        raise Interrupted(f"Complete the sweep with: {format_command(command)}") from None
    except StoreUnavailable as error:
        raise Interrupted(f"{error}. Resume with: {format_command(command)}") from None
    except Exception as error:
        if is_output_failure(error) or not is_disk_full(error):
            raise
        raise Interrupted(f"disk full: free some space, then resume with: {format_command(command)}") from None
    _write_tables(result, options)
    if runner.deletion is not None:
        raise Interrupted(f"{runner.deletion}\nThen complete the sweep with: {format_command(command)}")
    with suppress(StoreUnavailable):
        if report := runner.store.artifact_page(runner.sweep_id, "report.html"):
            print(f"report: {report}", file=sys.stderr)
    _print_outcome(result, command)
    if result.status is SweepStatus.FAILED:
        return 1
    if result.best is not None:
        _print_next(runner, result, options)
    return 1 if result.failed or result.deleted else 0


def _backend(options: SweepOptions, spec: SweepSpec) -> Backend:
    if options.local:
        from fgst.sweep.backends.local import LocalBackend  # lazy: torch takes seconds to import

        return LocalBackend(int(options.cpus_per_trial or available_cores()))
    # lazy: ray takes seconds to import
    from fgst.sweep.backends.ray import RayBackend
    from fgst.sweep.backends.resources import Resources

    gpus = options.gpus_per_trial
    if isinstance(gpus, str):
        from fgst.sweep.backends.gpu_share import measure_gpu_share  # lazy: torch takes seconds to import

        gpus = measure_gpu_share(spec)
    return RayBackend(Resources(options.address, options.cpus_per_trial, gpus, options.max_concurrent))


def _print_header(runner: SweepRunner) -> None:
    spec = runner.spec
    ended = sum(result.status in (TrialStatus.FINISHED, TrialStatus.PRUNED) for result in runner.results())
    print(
        f"{spec.title} {'at most ' * spec.race}{spec.total} trials on {spec.experiment}"
        + (f", {ended} of them finished before" if ended else "")
        + (f"\nvalidation: {spec.held_out}" if spec.held_out else "")
        + f"\nsweep {runner.sweep_id} in {runner.store.uri}"
        + f"\nMLflow UI: {runner.store.ui_url(runner.experiment)}"
        + "".join(f"\n{line}" for line in resolution_lines(spec, runner.factory, runner.store)),
        file=sys.stderr,
    )


def _print_outcome(result: SweepResult, command: Sequence[str]) -> None:
    """Print the outcome of a sweep, apart from its table.

    Raises:
        Interrupted: if the sweep is expected to be resumed.
    """
    if result.were_spooled:
        print(
            "the tracking server was unreachable during the sweep; all buffered data has been uploaded "
            "(trials with the tag fgst.spooled)",
            file=sys.stderr,
        )
    for trial in result.failed:
        print(f"failed: {trial.label} s{trial.seed}: {trial.reason}", file=sys.stderr)
    for label, message in result.deleted:
        print(f"deleted: {label}: {message}", file=sys.stderr)
    resume = format_command(command)
    if result.status is SweepStatus.INTERRUPTED:
        count, others = len(result.interrupted), result.remaining - len(result.interrupted)
        states = [f"{count} trial{'s are' if count > 1 else ' is'} incomplete"] if count else []
        states += [f"{others} {'were' if others > 1 else 'was'} not started"] if others else []
        reason = f"{result.details}: " if result.details else ""
        raise Interrupted(f"{reason}{', '.join(states)}. Resume with: {resume}")
    if result.remaining:
        print(f"stopped by {result.details}; run the remaining trials with: {resume}", file=sys.stderr)
    if result.failed:
        print(f"{len(result.failed)} of {len(result.trials)} trials failed; retry them with: {resume}", file=sys.stderr)
    if result.deleted:
        trials = "1 trial was" if len(result.deleted) == 1 else f"{len(result.deleted)} trials were"
        print(f"{trials} deleted: restore them as above, or train them again with: {resume}", file=sys.stderr)


def _print_next(runner: SweepRunner, result: SweepResult, options: SweepOptions) -> None:
    """Build the ensemble of a complete sweep over modalities; print the next command, or run the refit sweep."""
    assert result.best is not None
    if result.spec.builds_ensemble and not (result.remaining or result.failed or result.deleted):
        # lazy: imports the libraries of the evaluation
        from fgst.sweep.modality_ensemble import build_ensemble, print_ensemble, promote_ensemble

        ensemble = build_ensemble(runner, result)
        if ensemble is None:
            print("no ensemble: it needs at least two modalities that finished with the same seed", file=sys.stderr)
        else:
            print_ensemble(ensemble, result.spec)
            _write_tables(result, options, ensemble)
            if ensemble.beaten_by_member is not None:
                print(
                    "note: no better than one of its members: the best single modality has validation top-1 "
                    f"{ensemble.beaten_by_member:.1f} %, the ensemble {ensemble.val_top1:.1f} %",
                    file=sys.stderr,
                )
            if result.spec.refit:
                if code := _refit(runner, ensemble.run_id, options):
                    sys.exit(code)
                return
            print(promote_ensemble(runner, ensemble.run_id), file=sys.stderr)
            print(f"the ensemble:\n{format_command(options.evaluate_command(ensemble.run_id))}", flush=True)
            return
    if result.best_label is not None:
        print("the best trial by validation:")
    else:
        print("one of the trials (without validation clips, no best trial is selected):")
    print(format_command(options.evaluate_command(result.best.run_id)), flush=True)


def _write_tables(result: SweepResult, options: SweepOptions, ensemble: EnsembleResult | None = None) -> None:
    """Write the printed tables to the files of ``--latex`` and ``--csv``."""
    if options.latex is None and options.csv is None:
        return
    # lazy: imports the libraries of the tables and of the evaluation
    from fgst.sweep.modality_ensemble import named_table
    from fgst.sweep.report.tables import named_tables
    from fgst.sweep.results import baseline_label, build_rows
    from fgst.table_files import write_tables

    spec, trials = result.spec, list(result.trials)
    tables = named_tables(
        spec, build_rows(spec, trials, result.correct), result.best_label, baseline_label(spec, trials)
    )
    tables += [] if ensemble is None else [named_table(ensemble, spec)]
    write_tables(tables, options.latex, options.csv)


def _refit(runner: SweepRunner, ensemble_id: str, options: SweepOptions) -> int:
    """Retrain the networks of an ensemble on all training clips, as a sweep of its own that uses the same weights."""
    # lazy: mlflow takes seconds to import
    from fgst.sweep.opening import create_sweep, load_sweep
    from fgst.tracking.tags import Tags

    spec, definition, dataset = runner.spec, runner.factory.definition, runner.factory.dataset
    if existing := runner.tags().get(Tags.REFIT):
        follower = load_sweep(
            definition, existing, runner.store, study_storage=options.study_storage, location=dataset.location
        )
    else:
        base = spec.base.with_values({"data.protocol": "paper"})
        refit_spec = build_spec(
            definition, base, dataset, values=spec.parameters[0].values, seeds=spec.refit_seeds or spec.seeds
        )
        follower = create_sweep(
            refit_spec, TrialFactory(definition, refit_spec.base, dataset), runner.store,
            storage_location=str(Path(runner.storage_location).parent) if "://" not in runner.storage_location
            else runner.storage_location.rpartition("/")[0],
            study_storage=options.study_storage, reuse_finished_trials=True, tags={Tags.WEIGHTS_FROM: ensemble_id},
        )  # fmt: skip
        runner.tracked_run.set_tags({Tags.REFIT: follower.sweep_id})
    # Resuming the first sweep resumes the second one too.
    latex, csv = _refit_file(options.latex), _refit_file(options.csv)
    return _run(follower, dataclasses.replace(options, max_trials=None, latex=latex, csv=csv))


def _refit_file(name: str | None) -> str | None:
    """The file for the tables of the retrained networks, next to that of the first ones."""
    return None if name is None else str(Path(name).with_stem(f"{Path(name).stem}-refit"))


def _join_ray(ray: ExitStack, options: SweepOptions) -> None:
    from fgst.sweep.backends.ray_session import ray_session  # lazy: a local sweep runs without ray

    ray.enter_context(ray_session(options.address))


def _require_reachable(storage: str, spec: SweepSpec, tracking_uri: str) -> None:
    # lazy: only for clusters
    from fgst.sweep.backends.preflight import require_reachable
    from fgst.sweep.storage import resolve

    require_reachable(resolve(storage), spec.base.data.dataset, tracking_uri)


def _import_runner() -> None:
    """Import modules that take seconds to import and are needed once Ray has started."""
    # lazy: this function is called to import these modules in advance
    import fgst.sweep.backends.ray
    import fgst.sweep.callbacks  # noqa: F401


def _simulate(definition: SweepDefinition, options: SweepOptions, argv: Sequence[str]) -> None:
    """Simulate the search that the options describe on recorded curves."""
    # lazy: torch takes seconds to import
    from fgst.sweep.simulation.curves import most_common_length, read_curves
    from fgst.sweep.simulation.report import print_simulation
    from fgst.sweep.simulation.simulator import RecordedCurves, SimulationLimits, simulate_repeatedly

    for name in ("resume", "dry_run", "address", "refit"):
        if getattr(options, name):
            raise InputError(f"--simulate trains nothing; remove {flag_name(name)}")
    if options.protocol == "paper":
        raise InputError("--simulate compares validation accuracies, and --protocol paper has no validation clips")
    assert options.simulate is not None
    curves = read_curves(Path(options.simulate))
    spec, factory, options = new_spec(
        definition, dataclasses.replace(options, epochs=options.epochs or most_common_length(curves))
    )
    if spec.base.data.protocol == "paper":
        raise InputError("--simulate compares validation accuracies, and these settings have no validation clips")
    records = RecordedCurves(spec, curves, f"--simulate {options.simulate}")
    limits = SimulationLimits(options.max_concurrent or 1, options.max_hours, options.max_trials, options.until_top1)
    repeats = options.repeats or (1 if spec.search == "grid" else 20)
    results = simulate_repeatedly(spec, factory, records, limits, repeats)
    words = ["python", sys.argv[0], *_without(argv, "--simulate", "--repeats")]
    print_simulation(spec, records, limits, results, options.simulate or "", format_command(words))


def _without(argv: Sequence[str], *flags: str) -> list[str]:
    """A command line without these options and their values."""
    words, skip = [], False
    for word in argv:
        if skip or word.partition("=")[0] in flags:
            skip = not skip and word in flags
        else:
            words.append(word)
    return words
