"""What was trained, what was best, what differs, and what disk does it take? Without MLflow's page.

Examples:
  python -m fgst.runs list                          sweeps with their trials folded, and single trainings
  python -m fgst.runs list --sweep SWEEP_RUN_ID     one sweep's trials
  python -m fgst.runs best --experiment "nw-ucla x-view"
  python -m fgst.runs compare RUN_ID RUN_ID
  python -m fgst.runs curves SWEEP_RUN_ID… > curves.jsonl     for a sweep script's --simulate
  python -m fgst.runs gc                            what beaten trials and finished sweeps still hold; removes nothing
  python -m fgst.runs gc --delete

Runs are ranked by validation top-1, never by the test. Exit code 0: done; 1: something could not be removed; 2: bad
input.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fgst.cli.command import CommandParser
from fgst.cli.options import add_tracking_option, positive
from fgst.errors import InputError
from fgst.tracking.tags import Tags

if TYPE_CHECKING:
    from fgst.tracking.store import TrackingStore

ENDINGS = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted", "RUNNING": "running"}


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser("python -m fgst.runs", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|best|compare|curves|gc")
    # Each is a CommandParser of its own, so that its complaints are one line, too.
    listing = commands.add_parser(
        "list", doc="Sweeps with their trials folded, and single trainings, the newest first."
    )
    listing.add_argument("--sweep", metavar="RUN_ID", help="the trials of this one")
    listing.add_argument("--limit", type=positive(int), default=20, metavar="N", help="default: 20")
    best = commands.add_parser("best", doc="The best trainings and ensembles of each experiment, by validation top-1.")
    best.add_argument("--limit", type=positive(int), default=3, metavar="N", help="of each experiment; default: 3")
    comparing = commands.add_parser("compare", doc="Settings that differ, and metrics side by side.")
    comparing.add_argument("runs", nargs="+", metavar="RUN_ID")
    curves = commands.add_parser(
        "curves", doc="Learning curves of sweeps' trials that ran to their end, a line of JSON each, for --simulate."
    )
    curves.add_argument("sweeps", nargs="+", metavar="SWEEP_RUN_ID")
    add_tracking_option(curves)
    gc = commands.add_parser("gc", doc="Disk held by beaten trials' weights and finished sweeps' folders.")
    gc.add_argument("--delete", action="store_true", help="remove it; without, it is only listed")
    for command in (listing, best, gc):
        command.add_argument("--experiment", metavar="NAME", help="only this one, e.g. 'nw-ucla x-view'")
    for command in (listing, best, comparing, gc):
        command.add_argument("--json", action="store_true", help="one JSON object on stdout instead of tables")
        add_tracking_option(command)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    from fgst.cli import runs_tables
    from fgst.tracking.store import TrackingStore, existing

    store = TrackingStore(existing(args.tracking_uri))
    if args.command == "curves":
        print_curves(store, args.sweeps)
        return
    if args.command == "list":
        report = list_trials(store, args.sweep) if args.sweep else list_runs(store, args.experiment, args.limit)
    elif args.command == "best":
        report = best_runs(store, args.experiment, args.limit)
    elif args.command == "compare":
        report = compare_runs(store, args.runs)
    else:
        report = collect_garbage(store, args.experiment, delete=args.delete)
    if args.json:
        print(json.dumps(report, allow_nan=False))
    else:
        getattr(runs_tables, f"print_{args.command}")(report)
    if any("fault" in row for row in report.get("found", [])):
        sys.exit(1)


def summary(run: Any) -> dict[str, Any]:
    """A run as JSON values.

    Returns:
        ``run_id``, ``kind`` (sweep, trial or ensemble), ``experiment_id``, ``name``, ``ending``, ``val_top1`` and
        ``test_top1`` in % or ``None``, ``minutes``, ``age_seconds`` since it was begun.
    """

    began, ended = run.info.start_time or 0, run.info.end_time or time.time() * 1000
    kind = run.data.tags.get(Tags.KIND, "trial")
    ending = ENDINGS.get(run.info.status, str(run.info.status).lower())
    return {
        "run_id": run.info.run_id,
        "kind": kind,
        "experiment_id": run.info.experiment_id,
        "name": str(run.info.run_name or ""),
        "ending": run.data.tags.get(Tags.STATUS, ending) if kind == "trial" else ending,
        "val_top1": number(run.data.metrics.get("val/top1")),
        "test_top1": number(run.data.metrics.get("test/top1")),
        "minutes": number(run.data.metrics.get("minutes", max(0.0, ended - began) / 60_000)),
        "age_seconds": max(0.0, time.time() - began / 1000),
    }


def number(value: float | None) -> float | None:
    """JSON knows neither infinity nor what is no number."""
    return value if value is not None and math.isfinite(value) else None


def list_runs(store: TrackingStore, experiment: str | None, limit: int) -> dict[str, Any]:
    """Runs of their own, the newest first: ``runs``, and how many more there are (``more``).

    A sweep has ``trials``, how many ended how; until it has figures of its own, those of its best trial so far.

    Raises:
        InputError: if there is no such experiment.
    """

    names = _experiments(store, experiment)
    folded: dict[str, list[dict[str, Any]]] = {}
    own = []
    for run in store.runs(list(names)):
        if Tags.PARENT in run.data.tags:
            folded.setdefault(run.data.tags[Tags.PARENT], []).append(summary(run))
        else:
            own.append(summary(run))
    for row in own:
        row["experiment"] = names[row["experiment_id"]]
        trials = [trial for trial in folded.get(row["run_id"], []) if trial["kind"] == "trial"]
        if row["kind"] == "sweep":
            row["trials"] = dict(sorted(Counter(trial["ending"] for trial in trials).items()))
            finished = [t for t in trials if t["ending"] == "finished" and t["val_top1"] is not None]
            if row["val_top1"] is None and finished:
                best = max(finished, key=lambda trial: trial["val_top1"])
                row |= {"val_top1": best["val_top1"], "test_top1": best["test_top1"]}
    return {"runs": own[:limit], "more": max(0, len(own) - limit)}


def list_trials(store: TrackingStore, sweep: str) -> dict[str, Any]:
    """What a sweep ran, in the order in which it was begun: ``sweep`` and ``runs``.

    Raises:
        InputError: if it is no sweep.
    """

    run = store.run(sweep)
    if run.data.tags.get(Tags.KIND) != "sweep":
        raise InputError(f"--sweep {sweep}: is no sweep; python -m fgst.runs list shows which there are")
    name = store.experiments().get(run.info.experiment_id, "")
    found = store.runs([run.info.experiment_id], f"tags.`{Tags.PARENT}` = '{sweep}'")
    best = run.data.tags.get(Tags.BEST_RUN)
    rows = [summary(child) | {"experiment": name, "best": child.info.run_id == best} for child in reversed(found)]
    return {"sweep": sweep, "name": str(run.info.run_name or ""), "runs": rows, "more": 0}


def best_runs(store: TrackingStore, experiment: str | None, limit: int) -> dict[str, Any]:
    """The best trainings and ensembles that were trained to their end: ``groups``, each with its ``runs``.

    A group is an experiment; where it has figures of several validation splits, which cannot be compared, one of them.
    ``settings`` of a run are those in which the trainings of its group differ.

    Raises:
        InputError: if there is no such experiment.
    """
    groups = []
    for identity, name in sorted(_experiments(store, experiment).items(), key=lambda item: item[1]):
        runs = store.runs([identity])
        known = {run.info.run_id: run for run in runs}
        splits: dict[str, list[Any]] = {}
        for run in runs:
            row = summary(run)
            if row["kind"] != "sweep" and row["ending"] == "finished" and row["val_top1"] is not None:
                splits.setdefault(_split(run, known), []).append((row, run))
        for split, found in sorted(splits.items()):
            found.sort(key=lambda pair: -pair[0]["val_top1"])
            shown = found[:limit]
            params = [run.data.params for row, run in shown if row["kind"] == "trial"]
            differing = _differing(params)
            rows = [row | {"settings": {n: run.data.params[n] for n in differing if n in run.data.params}}
                    for row, run in shown]  # fmt: skip
            groups.append({"experiment": name, "validation": split, "candidates": len(found), "runs": rows})
    return {"groups": groups}


def compare_runs(store: TrackingStore, run_ids: Sequence[str]) -> dict[str, Any]:
    """``runs``; by name the ``parameters`` that differ and all ``metrics`` (last values), each a list in their order.

    Raises:
        InputError: if there are fewer than two, one is there twice, or one is not in the store.
    """
    if len(run_ids) < 2:
        raise InputError("compare takes two runs or more")
    if len(set(run_ids)) < len(run_ids):
        raise InputError("compare names a run twice")
    runs = [store.run(run_id) for run_id in run_ids]
    params = [run.data.params for run in runs]
    metrics = [run.data.metrics for run in runs]
    names = {name for one in metrics for name in one if not name.startswith("system/")}
    return {
        "runs": [summary(run) for run in runs],
        "parameters": {name: [one.get(name) for one in params] for name in _differing(params)},
        "metrics": {name: [number(one.get(name)) for one in metrics] for name in sorted(names)},
    }


def print_curves(store: TrackingStore, sweeps: Sequence[str]) -> None:
    """The curves of sweeps' trials, one line each; what is left out, and why, on stderr.

    Raises:
        InputError: if one is no sweep, or none of them has a curve.
    """
    from fgst.sweep.simulation.curves import MINUTES, VAL, make_curve

    left: Counter[str] = Counter()
    seen: set[str] = set()
    for sweep in sweeps:
        if store.run(sweep).data.tags.get(Tags.KIND) != "sweep":
            raise InputError(f"{sweep} is no sweep; python -m fgst.runs list shows which there are")
        for run in store.children(sweep):
            tags = run.data.tags
            ending = summary(run)["ending"]
            if ending != "finished":
                left["stopped early" if ending == "pruned" else ending] += 1
                continue
            key = tags.get(Tags.TRIAL_ID, run.info.run_id)
            if key in seen:  # a sweep that took up another's trainings, or the same settings once more
                left["there twice"] += 1
                continue
            written = store.open_run(run.info.run_id)
            try:
                curve = make_curve(
                    dict(json.loads(tags.get(Tags.PARAMS, "[]"))), int(tags.get(Tags.SEED, "0")),
                    written.history(VAL), written.history(MINUTES), run.data.metrics,
                )  # fmt: skip
            except ValueError as error:
                left[str(error)] += 1
                continue
            seen.add(key)
            print(curve.to_json(sweep=sweep, run_id=run.info.run_id))
    for reason, count in sorted(left.items()):
        print(f"left out: {count} {'trial' if count == 1 else 'trials'} ({reason})", file=sys.stderr)
    if not seen:
        raise InputError("no trial of these has a whole learning curve; what is stopped early tells nothing of its end")
    print(f"{len(seen)} curves", file=sys.stderr)


def collect_garbage(store: TrackingStore, experiment: str | None, *, delete: bool) -> dict[str, Any]:
    """See :mod:`fgst.tracking.gc`.

    Returns:
        ``found``: rows with ``what``, ``run_id``, ``sweep``, ``name``, ``bytes``, ``place``, ``store``,
        ``removed``, and ``fault`` where it should have been and was not; ``kept``: trials by reason; ``bytes``,
        ``removed_bytes``, and ``elsewhere_bytes``, which this command cannot delete.

    Raises:
        InputError: if there is no such experiment.
    """
    from fgst.tracking.gc import find, remove

    found = find(store, _experiments(store, experiment))
    rows: list[dict[str, Any]] = []
    for leftover in found.leftovers:
        row: dict[str, Any] = vars(leftover) | {"place": leftover.place and str(leftover.place), "removed": False}
        if delete and leftover.place is not None:
            try:
                remove(store, leftover)
                row["removed"] = True
            except InputError as error:
                row["fault"] = str(error)
        rows.append(row)
    return {
        "delete": delete,
        "found": rows,
        "kept": dict(sorted(found.kept.items())),
        "bytes": sum(row["bytes"] for row in rows),
        "removed_bytes": sum(row["bytes"] for row in rows if row["removed"]),
        "elsewhere_bytes": sum(row["bytes"] for row in rows if row["place"] is None),
    }


def _experiments(store: TrackingStore, name: str | None) -> dict[str, str]:
    """Names by id: of all experiments, or of the one that is asked for."""
    known = store.experiments()
    found = {identity: known_name for identity, known_name in known.items() if name in (None, known_name)}
    if name is not None and not found:
        raise InputError(f"--experiment {name}: there is none; there are {', '.join(sorted(known.values())) or 'none'}")
    return found


def _split(run: Any, known: dict[str, Any]) -> str:
    """Which validation clips a figure is of; an ensemble's are its members'."""
    members = [run_id for tag, run_id in sorted(run.data.tags.items()) if tag.startswith(Tags.MEMBER)]
    of = known.get(members[0], run) if members else run
    params, tags = of.data.params, run.data.tags
    data = tags.get(Tags.DATASET_DIGEST, "")[:8]
    return f"{params.get('data.validation', '?')} seed {params.get('data.validation_seed', '?')} of {data}"


def _differing(params: Sequence[Any]) -> list[str]:
    names = sorted({name for one in params for name in one})
    return [name for name in names if len({one.get(name) for one in params}) > 1]
