"""The end of a sweep over modalities: its networks fused, an ensemble with a run of its own, and the champion."""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fgst.errors import InputError
from fgst.evaluation import ensemble
from fgst.evaluation.ensemble import COMMON_WEIGHTS, EnsembleCard, Member
from fgst.evaluation.metrics import Scores
from fgst.sweep.definition import TrialFactory, build_spec
from fgst.sweep.report.tables import format_figure
from fgst.sweep.results import MeanStd, TrialResult
from fgst.tracking import registry
from fgst.tracking.run import TrackedRun
from fgst.tracking.tags import Tags

if TYPE_CHECKING:
    from fgst.sweep.runner import SweepRunner

# Tables 5 and 6 of the paper: four modalities, top-1 in %, by data set and benchmark.
PAPER = {
    "nw-ucla x-view": 97.0,
    "ntu-60 x-sub": 92.6,
    "ntu-60 x-view": 96.7,
    "ntu-120 x-sub": 89.0,
    "ntu-120 x-set": 90.6,
}
SHORT = {"joint": "J", "bone": "B", "joint_motion": "JM", "bone_motion": "BM"}
Fused = Mapping[str, Scores]  # by modality


@dataclass(frozen=True)
class Line:
    """A row of the ensemble's table: which modalities, how weighted, and what the fused scores reach, in %."""

    modalities: tuple[str, ...]
    weighting: str
    val: MeanStd | None
    test: MeanStd | None

    @property
    def label(self) -> str:
        names = " + ".join(name.replace("_", " ") for name in self.modalities)
        return names if self.weighting in ("alone", "equal") else f"{names}, {self.weighting}"


def build_ensemble(session: SweepRunner, results: Sequence[TrialResult]) -> str:
    """Fuse the networks of a sweep over modalities; returns the run id of the ensemble, "" if none came about.

    The ensemble is of the sweep's first seed; the others only say how much it varies. Its weights are fitted on the
    validation clips of all seeds together, or taken from the ensemble that the sweep is to be weighted like.
    """
    store, spec = session.store, session.spec
    names = [str(value) for value in spec.parameters[0].values]
    seeds = _whole(results, names)
    if len(names) < 2 or not seeds:
        print("no ensemble: it takes two modalities or more, each trained to its end", file=sys.stderr)
        return ""
    test = [{name: store.scores(o[name].run_id, "test") for name in names} for o in seeds.values()]
    val: list[Fused] = []
    if spec.base.data.protocol == "validation":
        val = [{name: store.scores(o[name].run_id, "val") for name in names} for o in seeds.values()]
    weights, sharpness, fitted_by = _weights(session, names, val)
    lines = make_lines(names, val, test, weights, "fitted" if val or fitted_by else "equal")

    seed, members = next(iter(seeds.items()))
    card = EnsembleCard(
        tuple(Member(name, members[name].run_id, weights[name]) for name in names), sharpness, fitted_by
    )
    data = spec.base.data
    tags = {
        Tags.KIND: "ensemble",
        "mlflow.source.name": f"sweeps/{spec.name}.py",
        Tags.DATASET: spec.dataset_name,
        Tags.DATASET_DIGEST: spec.dataset_digest,
        Tags.BENCHMARK: str(data.benchmark),
        Tags.PROTOCOL: data.protocol,
        Tags.SEED: str(seed),
        **{Tags.MEMBER + member.modality: member.run_id for member in card.members},
    }
    if fitted_by:
        tags[Tags.WEIGHTS_FROM] = fitted_by
    name = f"{' + '.join(names)} s{seed}" + (" refit" if fitted_by else "")
    run = store.start(session.experiment, f"ensemble-{session.parent.run_id}", name, tags, session.parent.run_id)
    run.log_params({"fusion": ensemble.FUSION, "seeds": len(seeds)})
    fused_val = ensemble.fuse(val[0], weights, sharpness) if val else None
    fused = ensemble.fuse(test[0], weights, sharpness)
    told = {f"weight/{name}": weight for name, weight in weights.items()} | {"sharpness": sharpness}
    run.log_metrics(_metrics(fused, fused_val, lines) | told, step=0)
    classes = store.model_card(members[names[0]].run_id).classes
    _log(run, card, lines, fused, fused_val, classes)
    run.finish()
    session.parent.set_tags({Tags.ENSEMBLE: run.run_id})
    _print(lines, spec.experiment, refit=bool(fitted_by))
    if val:
        best = max(line.val[0] for line in lines if len(line.modalities) == 1 and line.val)
        own = fused_val.top(1) if fused_val else 0.0
        if len(seeds) == 1 and own <= best:
            words = f"the best single modality validates at {best:.1f} %, the ensemble at {own:.1f} %"
            print(f"note: no better than one of its members: {words}", file=sys.stderr)
    return run.run_id


def _whole(results: Sequence[TrialResult], names: Sequence[str]) -> dict[int, dict[str, TrialResult]]:
    """By seed, the finished trial of each modality; seeds that lack one are left out."""
    found: dict[int, dict[str, TrialResult]] = {}
    for result in results:
        if result.status == "finished":
            found.setdefault(result.seed, {})[str(next(iter(result.params.values())))] = result
    return {seed: trials for seed, trials in sorted(found.items()) if set(names) <= set(trials)}


def _weights(session: SweepRunner, names: Sequence[str], val: Sequence[Fused]) -> tuple[dict[str, float], float, str]:
    """The weights, the sharpness, and the run of the ensemble that they come from, unless it is this one."""
    source = session.store.run(session.parent.run_id).data.tags.get(Tags.WEIGHTS_FROM, "")
    if source:
        with session.store.artifacts(source, "ensemble.json") as file:
            card = EnsembleCard.read(file)
        if set(card.weights) != set(names):
            raise InputError(f"ensemble {source} fuses {', '.join(card.weights)}, not {', '.join(names)}")
        return card.weights, card.sharpness, source
    if val:
        return *ensemble.fit_weights(val), ""
    print("nothing was held out to fit weights by: each modality counts the same", file=sys.stderr)
    return ensemble.equal_weights(names), float(len(names)), ""


def make_lines(
    names: Sequence[str], val: Sequence[Fused], test: Sequence[Fused], weights: Mapping[str, float], weighting: str
) -> list[Line]:
    """Every subset under equal weights, then all of them as public code weights them, and as this ensemble does."""
    lines = []
    for chosen in ensemble.subsets(names):
        lines.append(_line(chosen, "equal" if len(chosen) > 1 else "alone", ensemble.equal_weights(chosen), val, test))
    everything = tuple(names)
    if set(names) <= set(COMMON_WEIGHTS):
        lines.append(
            _line(
                everything, "fixed " + "/".join(str(COMMON_WEIGHTS[name]) for name in names), COMMON_WEIGHTS, val, test
            )
        )
    if weighting != "equal":
        told = "/".join(f"{weights[name]:.2f}" for name in names)
        lines.append(_line(everything, f"fitted {told}", weights, val, test))
    return lines


def _line(
    chosen: tuple[str, ...], weighting: str, weights: Mapping[str, float], val: Sequence[Fused], test: Sequence[Fused]
) -> Line:
    def over_seeds(trainings: Sequence[Fused]) -> MeanStd | None:
        reached = [ensemble.fuse({name: t[name] for name in chosen}, weights).top(1) for t in trainings]
        if not reached:
            return None
        return statistics.fmean(reached), statistics.stdev(reached) if len(reached) > 1 else float("nan")

    return Line(chosen, weighting, over_seeds(val), over_seeds(test))


def _metrics(test: Scores, val: Scores | None, lines: Sequence[Line]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for split, scores in (("val", val), ("test", test)):
        if scores is not None:
            metrics |= {f"{split}/top1": scores.top(1), f"{split}/top5": scores.top(5), f"{split}/loss": scores.loss()}
    for line in lines:
        which = "alone" if line.weighting == "alone" else line.weighting.split()[0]
        name = "-".join(line.modalities)
        for split, figure in (("val", line.val), ("test", line.test)):
            if figure is not None:
                metrics[f"{which}/{name}/{split}_top1"] = figure[0]
    return metrics


def _log(
    run: TrackedRun,
    card: EnsembleCard,
    lines: Sequence[Line],
    test: Scores,
    val: Scores | None,
    classes: Sequence[str],
) -> None:
    from fgst.evaluation import plots

    with tempfile.TemporaryDirectory(prefix="fgst-ensemble-") as name:
        folder = Path(name)
        card.write(folder / "ensemble.json")
        (folder / "scores").mkdir()
        test.save(folder / "scores" / "test.arrow")
        if val is not None:
            val.save(folder / "scores" / "val.arrow")
        with (folder / "table.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["modalities", "weights", "val_top1", "val_std", "test_top1", "test_std"])
            for line in lines:
                cells = [value for figure in (line.val, line.test) for value in (figure or ("", ""))]
                writer.writerow([" + ".join(line.modalities), line.weighting, *cells])
        (folder / "figures").mkdir()
        plots.confusion(test, classes, folder / "figures" / "confusion.png")
        labels = [line.label for line in lines]
        plots.subsets(labels, [x.val for x in lines], [x.test for x in lines], folder / "figures" / "subsets.png")
        run.log_artifacts(folder)


def _print(lines: Sequence[Line], experiment: str, *, refit: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    title = "The ensemble, trained on all training clips" if refit else "The ensemble"
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("modalities")
    table.add_column("weights")
    held_out = any(line.val for line in lines)
    for heading in ["validation\ntop-1 %"] * held_out + ["test\ntop-1 %"]:
        table.add_column(heading, justify="right")
    for line in lines:
        cells = [" + ".join(SHORT.get(name, name) for name in line.modalities), line.weighting]
        cells += [format_figure(line.val)] * held_out + [format_figure(line.test)]
        table.add_row(*cells, style="bold" if line is lines[-1] else None)
    notes = [", ".join(f"{SHORT[name]} {name.replace('_', ' ')}" for name in SHORT)]
    published = PAPER.get(experiment)
    if published is not None:
        notes.append(f"paper: {published:.1f} % (all four, trained on all training clips)")
    table.caption = " · ".join(notes)
    Console(highlight=False).print(table)


def refit(session: SweepRunner, trials: TrialFactory, ensemble_id: str, args: argparse.Namespace, again: str) -> None:
    """Train the networks of a fused sweep again on all training clips, as a sweep of its own that it is followed by."""
    from fgst.sweep.runner import begin, begun

    spec = session.spec
    base = spec.base.with_values({"data.protocol": "paper"})
    follower = session.store.run(session.parent.run_id).data.tags.get(Tags.REFIT)
    if follower:
        following = begun(trials.question, follower, (), args)
    else:
        whole = build_spec(trials.question, base, trials.dataset, values=spec.parameters[0].values, seeds=spec.seeds)
        following = begin(whole, args, known=True, **{Tags.WEIGHTS_FROM: ensemble_id})
        session.parent.set_tags({Tags.REFIT: following.parent.run_id})
    following.run(TrialFactory(trials.question, following.spec.base, trials.dataset), args, again)


def promote_ensemble(session: SweepRunner, ensemble_id: str) -> None:
    """Register an ensemble as the champion if it validates better than the one there is."""
    tags = session.store.run(session.parent.run_id).data.tags
    chosen_by = tags.get(Tags.WEIGHTS_FROM, ensemble_id)
    chosen = session.store.run(chosen_by).data.metrics.get("val/top1")
    if chosen is None:
        print("not registered: nothing was held out to compare it with the champion by", file=sys.stderr)
        return
    data = session.spec.base.data
    split = f"{session.spec.dataset_digest} {data.benchmark} {data.validation:g} {data.validation_seed}"
    print(
        registry.promote_if_better(session.store, ensemble_id, session.spec.experiment, chosen, split), file=sys.stderr
    )
