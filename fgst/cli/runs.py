"""List, rank and compare runs in the terminal, export learning curves, and free disk space.

Examples:
  python -m fgst.runs list                          sweeps, and trainings outside of sweeps
  python -m fgst.runs list --sweep SWEEP_RUN_ID     the trials of one sweep
  python -m fgst.runs best --experiment "nw-ucla x-view"
  python -m fgst.runs compare RUN_ID RUN_ID
  python -m fgst.runs curves SWEEP_RUN_ID… > curves.jsonl     for the option --simulate of sweep scripts
  python -m fgst.runs gc                            list weights and folders that are no longer needed
  python -m fgst.runs gc --delete

Runs are ranked by validation top-1, never by test accuracy. Exit code 0: success; 1: some data could not be deleted; 2:
the arguments are invalid.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fgst.cli.command import CommandParser, format_command
from fgst.cli.options import add_table_options, add_tracking_option, positive
from fgst.errors import InputError
from fgst.table_files import check_files, write_tables
from fgst.tracking.tags import Tags

if TYPE_CHECKING:  # MLflow takes seconds to import
    from fgst.tracking.store import TrackingStore


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of ``fgst runs``."""
    parser = CommandParser("python -m fgst.runs", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|best|compare|curves|gc")
    # Sub-parsers are CommandParsers as well, so their errors are one line each.
    list_ = commands.add_parser("list", doc="List sweeps, and trainings outside of sweeps, newest first.")
    list_.add_argument("--sweep", metavar="RUN_ID", help="list the trials of this sweep")
    list_.add_argument(
        "--limit", type=positive(int), default=20, metavar="N", help="maximum number of runs (default: 20)"
    )
    best = commands.add_parser(
        "best", doc="Show the best trainings and ensembles of each experiment by validation top-1."
    )
    best.add_argument(
        "--limit", type=positive(int), default=3, metavar="N", help="maximum number of runs per experiment (default: 3)"
    )
    compare = commands.add_parser(
        "compare", doc="Show the settings in which runs differ, and their metrics side by side."
    )
    compare.add_argument("runs", nargs="+", metavar="RUN_ID", help="two or more runs")
    curves = commands.add_parser(
        "curves", doc="Print learning curves of sweeps' finished trials, one JSON object per line, for --simulate."
    )
    curves.add_argument("sweeps", nargs="+", metavar="SWEEP_RUN_ID", help="one or more sweeps")
    gc = commands.add_parser(
        "gc", doc="List or delete weights of trials that were not the best, and folders of finished sweeps."
    )
    gc.add_argument("--delete", action="store_true", help="delete the data; by default it is only listed")
    for command in (list_, best, gc):
        command.add_argument("--experiment", metavar="NAME", help="only this experiment, e.g. 'nw-ucla x-view'")
    for command in (list_, best, compare, gc):
        command.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    for command in (list_, best, compare):
        add_table_options(command)
    for command in (list_, best, compare, curves, gc):
        add_tracking_option(command)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``fgst runs``."""
    args = build_parser().parse_args(argv)
    # lazy: MLflow takes seconds to import, and --help and invalid arguments do not need it
    from fgst.cli import runs_tables
    from fgst.tracking import queries
    from fgst.tracking.store import TrackingStore

    if args.command in runs_tables.TABLES:
        check_files(args.latex, args.csv)
    store = TrackingStore.existing(args.tracking_uri)
    if args.command == "curves":
        print_curves(store, [_sweep(store, sweep, args.tracking_uri) for sweep in args.sweeps])
        return
    if args.command == "list" and args.sweep:
        report = queries.list_trials(store, _sweep(store, args.sweep, args.tracking_uri))
    elif args.command == "list":
        report = queries.list_runs(store, args.experiment, args.limit)
    elif args.command == "best":
        report = queries.best_runs(store, args.experiment, args.limit)
    elif args.command == "compare":
        report = queries.compare_runs(store, args.runs)
    else:
        report = queries.collect_garbage(store, args.experiment, delete=args.delete)
    if args.command in runs_tables.TABLES:
        write_tables(runs_tables.TABLES[args.command](report), args.latex, args.csv)
    if args.json:
        print(json.dumps(report, allow_nan=False))
    else:
        runs_tables.PRINTERS[args.command](report)
    if any("fault" in row for row in report.get("found", [])):
        sys.exit(1)


def print_curves(store: TrackingStore, sweeps: Sequence[str]) -> None:
    """Print the learning curves of sweeps' finished trials, one JSON object per line.

    The number of curves, and of omitted trials with the reasons, are printed on stderr.

    Raises:
        InputError: if no trial has a complete curve.
    """
    # lazy: only this command needs the modules of the simulation
    from fgst.sweep.definition import parse_recorded_params
    from fgst.sweep.simulation.curves import MINUTES, VAL, make_curve
    from fgst.tracking.queries import summarize_run

    omitted: Counter[str] = Counter()
    exported: set[str] = set()
    for sweep in sweeps:
        for run in store.children(sweep):
            tags, run_id = run.data.tags, run.info.run_id
            status = summarize_run(run)["ending"]
            if status != "finished":
                omitted["stopped early" if status == "pruned" else status] += 1
                continue
            trial_id = tags.get(Tags.TRIAL_ID, run_id)
            if trial_id in exported:  # of another sweep with the same settings
                omitted["duplicate"] += 1
                continue
            try:
                curve = make_curve(
                    parse_recorded_params(tags.get(Tags.PARAMS, "[]")),
                    int(tags.get(Tags.SEED, "0")),
                    store.metric_history(run_id, VAL),
                    store.metric_history(run_id, MINUTES),
                    run.data.metrics,
                )
            except ValueError as error:
                omitted[str(error)] += 1
                continue
            exported.add(trial_id)
            print(curve.to_json(sweep=sweep, run_id=run_id))
    for reason, count in sorted(omitted.items()):
        print(f"omitted: {count} {'trial' if count == 1 else 'trials'} ({reason})", file=sys.stderr)
    if not exported:
        raise InputError("none of these trials has a complete learning curve")
    print(f"{len(exported)} curves", file=sys.stderr)


def _sweep(store: TrackingStore, text: str, tracking_uri: str | None) -> str:
    """The full run id of a sweep."""
    run_id = store.full_run_id(text)
    if store.run(run_id).data.tags.get(Tags.KIND) != "sweep":
        words = ["python", "-m", "fgst.runs", "list", *(["--tracking-uri", tracking_uri] if tracking_uri else [])]
        raise InputError(f"run {run_id} is not a sweep; list the sweeps with {format_command(words)}")
    return run_id
