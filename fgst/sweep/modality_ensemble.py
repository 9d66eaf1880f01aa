"""The ensemble at the end of a sweep over modalities: fused scores in a run of their own, and the champion."""

from __future__ import annotations

import dataclasses
import logging
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fgst import terminal
from fgst.errors import InputError
from fgst.evaluation import ensemble
from fgst.evaluation.ensemble import COMMON_WEIGHTS, EnsembleCard, Member
from fgst.evaluation.metrics import Scores
from fgst.sweep.definition import Published
from fgst.sweep.report.tables import format_mean_std
from fgst.sweep.results import MeanStd, SweepResult, TrialResult
from fgst.sweep.runner import SweepRunner
from fgst.sweep.spec import SweepSpec
from fgst.sweep.status import TrialStatus
from fgst.table_files import NOTE_SEPARATOR, NamedTable, rows_to_csv
from fgst.tracking import registry
from fgst.tracking.run import TrackedRun
from fgst.tracking.store import TrackingStore
from fgst.tracking.tags import Tags

if TYPE_CHECKING:  # imported when the table is printed
    from rich.table import Table

logger = logging.getLogger(__name__)

# Tables 5 and 6 of the paper: four modalities, top-1 in %, by public benchmark.
PAPER = {
    "NW-UCLA X-View": 97.0,
    "NTU-60 X-Sub": 92.6,
    "NTU-60 X-View": 96.7,
    "NTU-120 X-Sub": 89.0,
    "NTU-120 X-Set": 90.6,
}
SHORT = {"joint": "J", "bone": "B", "joint_motion": "JM", "bone_motion": "BM"}
ScoresByModality = Mapping[str, Scores]


@dataclass(frozen=True)
class Line:
    """A row of the ensemble's table: modalities, their weighting, and top-1 of the fused scores in %."""

    modalities: tuple[str, ...]
    weighting: str
    val: MeanStd | None
    test: MeanStd | None

    @property
    def label(self) -> str:
        """Label in figures."""
        names = " + ".join(name.replace("_", " ") for name in self.modalities)
        return names if self.weighting in ("alone", "equal") else f"{names}, {self.weighting}"


@dataclass(frozen=True)
class EnsembleResult:
    """An ensemble that was built from a sweep.

    Attributes:
        run_id: its MLflow run.
        lines: rows of its table: every subset of the modalities, and the weightings of all of them.
        is_refit: its networks were trained on all training clips, with the weights of an earlier ensemble.
        beaten_by_member: validation top-1 in % of a single network that is at least as good as the ensemble, if any.
        val_top1: validation top-1 in % of the ensemble; ``None`` without validation clips.
    """

    run_id: str
    lines: tuple[Line, ...]
    is_refit: bool
    beaten_by_member: float | None = None
    val_top1: float | None = None


def build_ensemble(runner: SweepRunner, result: SweepResult) -> EnsembleResult | None:
    """Fuse the networks of a finished sweep over modalities and log the ensemble.

    The ensemble consists of the networks of the first seed; the other seeds show the spread. Its weights are fitted on
    the validation clips of all seeds, or taken from the ensemble named by ``Tags.WEIGHTS_FROM``.

    Returns:
        The ensemble, or ``None`` if fewer than two modalities finished with the same seed.
    """
    store, spec = runner.store, result.spec
    names = [str(value) for value in spec.parameters[0].values]
    seeds = _complete_seeds(result.trials, names)
    if len(names) < 2 or not seeds:
        return None
    test = [{name: store.scores(trials[name].run_id, "test") for name in names} for trials in seeds.values()]
    val: list[ScoresByModality] = []
    if spec.base.data.protocol == "validation":
        val = [{name: store.scores(trials[name].run_id, "val") for name in names} for trials in seeds.values()]
    source = runner.tags().get(Tags.WEIGHTS_FROM, "")
    weights, sharpness = _weights(store, source, names, val)
    lines = make_lines(names, val, test, weights, "fitted" if val or source else "equal")

    seed, members = next(iter(seeds.items()))
    card = EnsembleCard(tuple(Member(name, members[name].run_id, weights[name]) for name in names), sharpness, source)
    run = _start_run(runner, card, seed, names)
    run.log_params({"fusion": ensemble.FUSION, "seeds": len(seeds)})
    fused_val = ensemble.fuse(val[0], weights, sharpness) if val else None
    fused = ensemble.fuse(test[0], weights, sharpness)
    fusion = {f"weight/{name}": weight for name, weight in weights.items()} | {"sharpness": sharpness}
    run.log_metrics(_metrics(fused, fused_val, lines) | fusion, step=0)
    _log(run, card, lines, fused, fused_val, store.model_card(members[names[0]].run_id).classes)
    run.finish()
    runner.tracked_run.set_tags({Tags.ENSEMBLE: run.run_id})

    best_member = max((line.val[0] for line in lines if len(line.modalities) == 1 and line.val), default=None)
    val_top1 = fused_val.top(1) if fused_val is not None else None
    beaten = best_member is not None and val_top1 is not None and len(seeds) == 1 and val_top1 <= best_member
    return EnsembleResult(run.run_id, tuple(lines), bool(source), best_member if beaten else None, val_top1)


def _complete_seeds(trials: Sequence[TrialResult], names: Sequence[str]) -> dict[int, dict[str, TrialResult]]:
    """By seed, the finished trial of each modality; seeds that lack a modality are left out."""
    by_seed: dict[int, dict[str, TrialResult]] = {}
    for trial in trials:
        if trial.status is TrialStatus.FINISHED:
            by_seed.setdefault(trial.seed, {})[str(next(iter(trial.params.values())))] = trial
    return {seed: trials for seed, trials in sorted(by_seed.items()) if set(names) <= set(trials)}


def _weights(
    store: TrackingStore, source: str, names: Sequence[str], val: Sequence[ScoresByModality]
) -> tuple[dict[str, float], float]:
    """Fusion weights and sharpness: those of the ensemble ``source`` if given, else fitted, else equal."""
    if source:
        with store.artifacts(source, "ensemble.json") as file:
            card = EnsembleCard.read(file)
        if set(card.weights) != set(names):
            raise InputError(f"ensemble {source} fuses {', '.join(card.weights)}, not {', '.join(names)}")
        return card.weights, card.sharpness
    if val:
        return ensemble.fit_weights(val)
    logger.warning("no validation clips to fit fusion weights on: using equal weights")
    return ensemble.equal_weights(names), float(len(names))


def _start_run(runner: SweepRunner, card: EnsembleCard, seed: int, names: Sequence[str]) -> TrackedRun:
    spec = runner.spec
    data, source = spec.base.data, runner.tags().get(Tags.WEIGHTS_FROM, "")
    tags = {
        Tags.KIND: "ensemble",
        "mlflow.source.name": f"sweeps/{spec.name}.py",
        Tags.DATASET: spec.dataset_name,
        Tags.DATASET_DIGEST: spec.dataset_digest,
        Tags.BENCHMARK: str(data.benchmark),
        Tags.PROTOCOL: data.protocol,
        Tags.SEED: str(seed),
        **{Tags.MEMBER + member.modality: member.run_id for member in card.members},
        **({Tags.WEIGHTS_FROM: source} if source else {}),
    }
    name = f"{' + '.join(names)} s{seed}" + (" refit" if source else "")
    return runner.store.start(runner.experiment, f"ensemble-{runner.sweep_id}", name, tags, runner.sweep_id)


def make_lines(
    names: Sequence[str],
    val: Sequence[ScoresByModality],
    test: Sequence[ScoresByModality],
    weights: Mapping[str, float],
    weighting: str,
) -> list[Line]:
    """Rows of the table: every subset with equal weights, then all modalities with the fixed weights of public code and
    with the weights of this ensemble.
    """
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
        formatted = "/".join(f"{weights[name]:.2f}" for name in names)
        lines.append(_line(everything, f"fitted {formatted}", weights, val, test))
    return lines


def _line(
    chosen: tuple[str, ...],
    weighting: str,
    weights: Mapping[str, float],
    val: Sequence[ScoresByModality],
    test: Sequence[ScoresByModality],
) -> Line:
    def over_seeds(trainings: Sequence[ScoresByModality]) -> MeanStd | None:
        fused = [ensemble.fuse({name: t[name] for name in chosen}, weights) for t in trainings]
        if not fused:
            return None
        reached = [scores.top(1) for scores in fused]
        counts = [scores.num_clips for scores in fused]
        mean = statistics.fmean(reached, counts if len(set(counts)) > 1 else None)  # of all clips of all folds
        return mean, statistics.stdev(reached) if len(reached) > 1 else float("nan")

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
    # lazy: matplotlib takes a second to import
    from fgst.evaluation import plots

    with tempfile.TemporaryDirectory(prefix="fgst-ensemble-") as name:
        folder = Path(name)
        card.write(folder / "ensemble.json")
        (folder / "scores").mkdir()
        test.save(folder / "scores" / "test.arrow")
        if val is not None:
            val.save(folder / "scores" / "val.arrow")
        (folder / "table.csv").write_text(_to_csv(lines))
        (folder / "figures").mkdir()
        plots.confusion(test, classes, folder / "figures" / "confusion.png")
        labels = [line.label for line in lines]
        plots.subsets(labels, [x.val for x in lines], [x.test for x in lines], folder / "figures" / "subsets.png")
        run.log_artifacts(folder)


def print_ensemble(result: EnsembleResult, spec: SweepSpec) -> None:
    """The ensemble's table on stdout."""
    from rich.console import Console  # lazy: imported when the table is printed

    terminal.print_table(Console(highlight=False), ensemble_table(result, spec))


def named_table(result: EnsembleResult, spec: SweepSpec) -> NamedTable:
    """The ensemble's table for files."""
    return NamedTable("ensemble", ensemble_table(result, spec), _to_csv(result.lines))


def _to_csv(lines: Sequence[Line]) -> str:
    rows: list[list[Any]] = [["modalities", "weights", "val_top1", "val_std", "test_top1", "test_std"]]
    for line in lines:
        cells = [value for figure in (line.val, line.test) for value in (figure or ("", ""))]
        rows.append([" + ".join(line.modalities), line.weighting, *cells])
    return rows_to_csv(rows)


def ensemble_table(result: EnsembleResult, spec: SweepSpec) -> Table:
    """Return the ensemble's table, with the paper's figure if the clips are the same."""
    from rich.table import Table  # lazy: imported when the table is printed

    lines = result.lines
    title = "The ensemble, trained on all training clips" if result.is_refit else "The ensemble"
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("modalities")
    table.add_column("weights")
    held_out = any(line.val for line in lines)
    for heading in ["validation\ntop-1 %"] * held_out + ["test\ntop-1 %"]:
        table.add_column(heading, justify="right")
    for line in lines:
        cells = [" + ".join(SHORT.get(name, name) for name in line.modalities), line.weighting]
        cells += [format_mean_std(line.val)] * held_out + [format_mean_std(line.test)]
        table.add_row(*cells, style="bold" if line is lines[-1] else None)
    notes = [", ".join(f"{SHORT[name]} {name.replace('_', ' ')}" for name in SHORT)]
    names = " + ".join(SHORT.get(name, name) for name in lines[-1].modalities)
    notes.append(dataclasses.replace(spec.setting, modality=names).in_words())
    if spec.public_benchmark in PAPER:
        paper = Published({}, source="", benchmark=spec.public_benchmark, modality=" + ".join(SHORT.values()))
        notes.append(f"paper: {PAPER[spec.public_benchmark]:.1f} % ({paper.setting.in_words()})")
    table.caption = NOTE_SEPARATOR.join(notes)
    return table


def promote_ensemble(runner: SweepRunner, ensemble_id: str) -> str:
    """Register an ensemble as champion if its validation accuracy is higher; returns a message with the outcome."""
    chosen_by = runner.tags().get(Tags.WEIGHTS_FROM, ensemble_id)
    val_top1 = runner.store.run(chosen_by).data.metrics.get("val/top1")
    if val_top1 is None:
        return "not registered: there were no validation clips to compare it with the champion"
    split = _validation_split(runner.spec, int(runner.store.run(chosen_by).data.tags.get(Tags.SEED, "0")))
    return registry.promote_if_better(runner.store, ensemble_id, runner.spec.experiment, val_top1, split)


def _validation_split(spec: SweepSpec, seed: int) -> str:
    """Identify the validation clips of an ensemble with this seed; part of the registry's format."""
    data = spec.base.data
    split = f"{spec.dataset_digest} {data.benchmark} {data.validation:g} {data.validation_seed}"
    split += f" by {data.validation_by}" * (data.validation_by != "subject")  # as in versions without the setting
    return split + f" fold {spec.fold_of(seed)} of {data.folds}" * bool(data.folds)
