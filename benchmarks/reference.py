"""Write the page about the reference results from their runs in MLflow: ``python -m benchmarks.reference``.

``make reference`` first trains them: the four modalities on NW-UCLA with preset ``best``, once with held-out clips, on
which the fusion weights are fitted, and with several seeds on all training clips. This command then finds the newest
such ensemble in the tracking store (or takes ``--run-id``) and writes ``docs/reproduction/nw-ucla.md`` with its
pictures: accuracies with intervals, learning curves, what is confused, errors by class and subject, and focal joints.
Everything on the page is read or computed from the runs; test clips are only scored.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fgst.config import PRESETS, TrialConfig
from fgst.data.dataset import ArrowDataset
from fgst.errors import InputError
from fgst.evaluation import plots
from fgst.evaluation.ensemble import EnsembleCard, align, fuse
from fgst.evaluation.explain import explain
from fgst.evaluation.metrics import Scores
from fgst.evaluation.plots import new_figure, save_figure
from fgst.model.card import load_model
from fgst.sweep.noise import crossed
from fgst.tracking.store import TrackingStore
from fgst.tracking.tags import Tags

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reproduction" / "nw-ucla.md"
FUSED = "fused"
EXPERIMENT = "nw-ucla x-view"
# The joint modality and four fused modalities, top-1 in %. The first row is what users of the public code report.
PUBLISHED = (
    ("CTR-GCN, as its users report", "93.5", "95.0 to 95.5"),
    ("FG-STFormer, paper (Table 5)", "not stated", "97.0"),
)
SHOWN_PAIRS = 8


@dataclass(frozen=True)
class Training:
    """A finished training: its run id, seed, metrics by name, and values by metric and epoch."""

    run_id: str
    seed: int
    metrics: Mapping[str, float]
    curves: Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Reference:
    """What was trained for the page.

    Attributes:
        ensemble, sweep, validation_sweep: run ids of the ensemble of the first seed, the sweep that trained on all
            training clips, and the sweep that held out validation clips.
        card: members, weights and sharpness of the ensemble.
        config: settings of the networks.
        data: the data set.
        trainings: on all training clips, by modality, in the order of their seeds.
        validation: those with validation clips, by modality.
        scores: of the test clips, by modality and for the fused modalities, in the order of the seeds; all list the
            clips in the same order.
        val_scores: the same for the validation clips, in the order of the seeds of ``validation``.
        hours: from the start of the first training to the end of the last one, interruptions included.
    """

    ensemble: str
    sweep: str
    validation_sweep: str
    card: EnsembleCard
    config: TrialConfig
    data: ArrowDataset
    trainings: Mapping[str, Sequence[Training]]
    validation: Mapping[str, Sequence[Training]]
    scores: Mapping[str, Sequence[Scores]]
    val_scores: Mapping[str, Sequence[Scores]]
    hours: float

    @cached_property
    def clip_ids(self) -> np.ndarray:
        """The test clips."""
        return self.scores[FUSED][0].clip_ids

    @cached_property
    def labels(self) -> np.ndarray:
        """Their classes."""
        return self.scores[FUSED][0].labels

    def correct(self, name: str, split: str = "test") -> np.ndarray:
        """Which clips are classified correctly, ``(seeds, clips)``."""
        everything = self.scores if split == "test" else self.val_scores
        return np.stack([scores.predictions == scores.labels for scores in everything[name]])

    @property
    def core_hours(self) -> float:
        """Time of all trainings together, with one thread each."""
        everything = [
            t for group in (self.trainings, self.validation) for trainings in group.values() for t in trainings
        ]
        return sum(training.metrics["minutes"] for training in everything) / 60


def load(store: TrackingStore, run_id: str | None) -> Reference:
    """Read the runs of an ensemble that was retrained on all training clips.

    Raises:
        InputError: if there is none, or it is not complete.
    """
    ensemble = store.run(store.full_run_id(run_id)) if run_id else _newest_ensemble(store)
    tags = ensemble.data.tags
    if tags.get(Tags.KIND) != "ensemble" or Tags.WEIGHTS_FROM not in tags:
        raise InputError(f"run {run_id} is not an ensemble that was retrained on all training clips (--refit)")
    sweep = tags[Tags.PARENT]
    validation_sweep = store.run(tags[Tags.WEIGHTS_FROM]).data.tags[Tags.PARENT]
    with store.artifacts(ensemble.info.run_id, "ensemble.json") as file:
        card = EnsembleCard.read(file)
    trainings, validation = (_trainings(store, run, list(card.weights)) for run in (sweep, validation_sweep))
    network = store.model_card(trainings[card.members[0].modality][0].run_id)
    runs = [run for parent in (sweep, validation_sweep) for run in _runs(store, parent)]
    milliseconds = max(run.info.end_time for run in runs) - min(run.info.start_time for run in runs)
    return Reference(
        ensemble.info.run_id, sweep, validation_sweep, card, network.config, ArrowDataset(network.config.data.dataset),
        trainings, validation, _scores(store, trainings, card, "test"), _scores(store, validation, card, "val"),
        milliseconds / 3.6e6,
    )  # fmt: skip


def _scores(
    store: TrackingStore, trainings: Mapping[str, Sequence[Training]], card: EnsembleCard, split: str
) -> dict[str, list[Scores]]:
    scores: dict[str, list[Scores]] = {name: [] for name in (*card.weights, FUSED)}
    for seed in range(min(len(group) for group in trainings.values())):
        members = {name: store.scores(trainings[name][seed].run_id, split) for name in card.weights}
        for name, aligned in align({FUSED: fuse(members, card.weights, card.sharpness), **members}).items():
            scores[name].append(aligned)
    return scores


def _newest_ensemble(store: TrackingStore) -> Any:
    experiments = [number for number, name in store.experiments().items() if name == EXPERIMENT]
    for run in store.runs(experiments, f"tags.`{Tags.KIND}` = 'ensemble'"):
        if Tags.WEIGHTS_FROM in run.data.tags:
            return run
    raise InputError(f"{store.uri} has no ensemble on {EXPERIMENT} that was trained with --refit: run make reference")


def _runs(store: TrackingStore, sweep: str) -> list[Any]:
    """The trainings of a sweep, including those of earlier sweeps that it reuses."""
    reused = [run for tag, run in store.run(sweep).data.tags.items() if tag.startswith(Tags.REUSED_TRIAL)]
    return [*store.children(sweep), *map(store.run, reused)]


def _trainings(store: TrackingStore, sweep: str, modalities: Sequence[str]) -> dict[str, list[Training]]:
    found: dict[str, list[Training]] = {name: [] for name in modalities}
    for run in _runs(store, sweep):
        tags = run.data.tags
        if run.info.status == "FINISHED" and tags.get(Tags.MODALITY) in found:
            curves = {
                metric: store.metric_history(run.info.run_id, metric)
                for metric in ("train/top1", "train/loss", "val/top1")
                if metric in run.data.metrics
            }
            found[tags[Tags.MODALITY]].append(
                Training(run.info.run_id, int(tags[Tags.SEED]), dict(run.data.metrics), curves)
            )
    if missing := [name for name, trainings in found.items() if not trainings]:
        raise InputError(f"sweep {sweep} has no finished training of {', '.join(missing)}: resume it first")
    return {name: sorted(trainings, key=lambda training: training.seed) for name, trainings in found.items()}


# The page


def page(reference: Reference, machine: str) -> str:
    """The page in Markdown; its pictures are drawn by :func:`draw_pictures`."""
    sections = (_summary, _how, _settings, _curves, _errors, _focal_joints, _repeat)
    lines = ["<!-- Generated by python -m benchmarks.reference; do not edit. -->", ""]
    for section in sections:
        lines += [*section(reference, machine), ""]
    return "\n".join(lines).rstrip() + "\n"


def _summary(reference: Reference, machine: str) -> Iterator[str]:
    yield "# NW-UCLA, cross-view: reference results"
    yield ""
    seeds = len(reference.scores[FUSED])
    yield (
        f"Views 1 and 2 train, view 3 tests ({len(reference.clip_ids)} clips). Four networks, one for each modality, "
        f"with the same settings; all training clips, the last epoch, {seeds} seeds. The weights of the fusion were "
        "fitted on validation clips. No choice was based on a test clip."
    )
    yield ""
    rows = []
    for name in (*reference.card.weights, FUSED):
        top1 = [scores.top(1) for scores in reference.scores[name]]
        interval = crossed(reference.correct(name).astype(float))
        val = [training.metrics["val/top1"] for training in reference.validation.get(name, ())]
        label = f"**{'four modalities fused' if name == FUSED else name.replace('_', ' ')}**"
        low, high = interval.mean - interval.half_width, min(100.0, interval.mean + interval.half_width)
        rows.append(
            [
                label,
                f"**{_mean_std(top1)}**",
                ", ".join(f"{value:.2f}" for value in top1),
                f"{low:.1f} to {high:.1f}",
                _mean_std(val) if val else "",
            ]
        )
    yield from _table(["network", "test top-1 %", "each seed", "95 % interval", "validation top-1 %"], rows)
    yield ""
    yield (
        "± is the standard deviation over seeds. The interval is that of the mean for other seeds and other clips of "
        "these ten people; other people would differ more."
    )
    yield ""
    yield "Published and reported results on the same clips:"
    yield ""
    yield from _table(["", "joint", "four modalities"], [list(row) for row in PUBLISHED])


def _how(reference: Reference, machine: str) -> Iterator[str]:
    config = reference.config
    passes = config.train.epochs * (config.train.repeat or 1)
    count = sum(len(t) for group in (reference.trainings, reference.validation) for t in group.values())
    yield "## How to repeat it"
    yield ""
    yield "```console"
    yield f"$ make reference ZIP=all_sqe.zip{_arguments(config)}"
    yield "```"
    yield ""
    yield (
        f"This prepares the data set, trains {count} networks with {passes} passes each, and writes this page. It can "
        "be interrupted at any time; the same command continues where it stopped. Here it took "
        f"{reference.core_hours:.1f} core hours, and {reference.hours:.1f} hours from the first start to the last end, "
        f"on {machine} that also did other work."
    )


def _arguments(config: TrialConfig) -> str:
    """The argument ARGS of ``make reference`` for settings that differ from preset ``best``; empty if none does."""
    preset, changes = PRESETS["best"].flat(), []
    for name, value in config.flat().items():
        if name == "train.epochs" and value != preset[name]:
            changes.append(f"--epochs {value}")
        elif name.startswith(("model.", "train.")) and name not in ("train.seed", "train.repeat", "train.epochs"):
            changes += [f"--set {name}={_value(value).replace(' ', '')}"] if value != preset[name] else []
    return f' ARGS="{" ".join(changes)}"' if changes else ""


def _settings(reference: Reference, machine: str) -> Iterator[str]:
    yield "## Settings"
    yield ""
    yield "Preset `best`; where it differs from the paper's recipe (preset `paper`):"
    yield ""
    paper, ours = PRESETS["paper"].flat(), reference.config.flat()
    frames = {"data.frames": 52}  # of the recipe, which preset `paper` leaves to the data set
    rows = [
        [f"`{name}`", _value(frames.get(name, paper[name])), _value(value)]
        for name, value in ours.items()
        if name.startswith(("model.", "train.", "data.frames"))
        and name not in ("train.seed", "train.repeat")
        and value != frames.get(name, paper[name])
    ]
    yield from _table(["setting", "paper", "here"], rows)
    weights = ", ".join(f"{name.replace('_', ' ')} {weight:.2f}" for name, weight in reference.card.weights.items())
    yield ""
    yield f"Weights of the fusion: {weights}."


def _curves(reference: Reference, machine: str) -> Iterator[str]:
    yield "## Learning curves"
    yield ""
    yield "![Top-1 by epoch: training clips with augmentation, and validation clips](../pictures/nw-ucla-curves.png)"
    yield ""
    last = {
        name: statistics.fmean(training.metrics["train/top1"] for training in trainings)
        for name, trainings in reference.trainings.items()
    }
    yield (
        "Left: training clips, which are rotated by up to ±60°, in the trainings on all of them (mean over seeds). "
        "Right: validation clips, in the trainings that hold them out. At the end, the training accuracy is "
        + ", ".join(f"{value:.1f} % ({name.replace('_', ' ')})" for name, value in last.items())
        + "."
    )


def _errors(reference: Reference, machine: str) -> Iterator[str]:
    joint, fused = reference.correct("joint"), reference.correct(FUSED)
    wrong = (~fused).sum(axis=0)
    seeds = len(fused)
    yield "## Where the errors are"
    yield ""
    yield (
        f"Of the {len(wrong)} test clips, the fused networks classify {int((wrong == 0).sum())} correctly with every "
        f"seed, {int((wrong == seeds).sum())} with none, and {int(((wrong > 0) & (wrong < seeds)).sum())} with some."
    )
    yield ""
    yield "![Confusion of the fused networks, all seeds together](../pictures/nw-ucla-confusion.png)"
    yield ""
    yield "Most confused, as the mean number of clips over seeds:"
    yield ""
    yield from _table(["class", "predicted as", "clips", "of"], _confused(reference))
    yield ""
    yield "By class and by subject, test top-1 in % (mean ± standard deviation over seeds):"
    yield ""
    classes = reference.data.classes
    yield from _table(
        ["class", "clips", "joint", FUSED],
        [_part(classes[c], reference.labels == c, joint, fused) for c in range(len(classes))],
    )
    yield ""
    subjects = _column(reference, reference.clip_ids, "subject")
    yield from _table(
        ["subject", "clips", "joint", FUSED],
        [_part(str(s), subjects == s, joint, fused) for s in sorted(set(subjects.tolist()))],
    )
    yield ""
    yield "By length of the clip:"
    yield ""
    lengths = _column(reference, reference.clip_ids, "num_frames")
    bounds = [0, *np.quantile(lengths, [0.25, 0.5, 0.75]).astype(int).tolist(), int(lengths.max())]
    parts = [
        _part(f"{low + 1} to {high} frames", (lengths > low) & (lengths <= high), joint, fused)
        for low, high in itertools.pairwise(bounds)
    ]
    yield from _table(["length", "clips", "joint", FUSED], parts)
    yield ""
    yield (
        "By view: all test clips are of one view, so this is about the validation clips, one view each of some "
        "subjects. The fusion's weights were fitted on these clips, so its accuracy is slightly too high here:"
    )
    yield ""
    views = _column(reference, reference.val_scores[FUSED][0].clip_ids, "camera")
    tables = [reference.correct(name, "val") for name in ("joint", FUSED)]
    rows = [_part(str(view), views == view, *tables) for view in sorted(set(views.tolist()))]
    yield from _table(["view", "clips", "joint", FUSED], rows)


def _focal_joints(reference: Reference, machine: str) -> Iterator[str]:
    yield "## Does the focal selection look where the action is?"
    yield ""
    K, N = reference.config.model.focal_joints, reference.data.skeleton.num_joints
    yield (
        f"How often each joint is among the K = {K} focal ones of {N}, in the network of the joint modality with the "
        f"first seed. At random it would be {100 * K / N:.0f} % everywhere, which the white cells cannot be "
        "distinguished from."
    )
    yield ""
    yield "![Share of frames in which each joint is focal, by class](../pictures/nw-ucla-focal-map.png)"
    yield ""
    yield "![Focal joints in a clip of each class](../pictures/nw-ucla-focal-joints.png)"


def _repeat(reference: Reference, machine: str) -> Iterator[str]:
    yield "## The same figures from the runs"
    yield ""
    yield "`python -m fgst.evaluate` loads the networks, scores the test clips again and prints the same accuracies:"
    yield ""
    yield "```console"
    yield f"$ python -m fgst.evaluate --run-id {reference.ensemble}   # the ensemble of the first seed"
    yield f"$ python -m fgst.runs list --sweep {reference.sweep}"
    yield "```"


def _part(name: str, chosen: np.ndarray, *tables: np.ndarray) -> list[str]:
    cells = [_mean_std([100 * float(row[chosen].mean()) for row in correct], digits=1) for correct in tables]
    return [name, str(int(chosen.sum())), *cells]


def _confused(reference: Reference) -> list[list[str]]:
    matrix = np.mean([scores.confusion() for scores in reference.scores[FUSED]], axis=0)
    sizes = matrix.sum(axis=1)
    np.fill_diagonal(matrix, 0)
    order = np.argsort(-matrix, axis=None, kind="stable")[:SHOWN_PAIRS]
    classes, rows = reference.data.classes, []
    for true, predicted in zip(*np.unravel_index(order, matrix.shape), strict=True):
        if matrix[true, predicted]:
            count = f"{matrix[true, predicted]:.1f}"
            rows.append([classes[true], classes[predicted], count, f"{sizes[true]:.0f}"])
    return rows


def _column(reference: Reference, clip_ids: np.ndarray, name: str) -> np.ndarray:
    """A column of the data set for these clips."""
    row_of = {clip: row for row, clip in enumerate(reference.data.clip_ids)}
    return np.asarray(reference.data.columns[name])[[row_of[clip] for clip in clip_ids]]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"| {' | '.join('---' for _ in headings)} |"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _mean_std(values: Sequence[float], digits: int = 2) -> str:
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


# Pictures


def draw_pictures(reference: Reference, store: TrackingStore, folder: Path) -> None:
    """Draw the pictures of the page into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    _draw_curves(reference, folder / "nw-ucla-curves.png")
    together = reference.scores[FUSED]
    pooled = dataclasses.replace(
        together[0],
        clip_ids=np.concatenate([scores.clip_ids for scores in together]),
        labels=np.concatenate([scores.labels for scores in together]),
        scores=np.concatenate([scores.scores for scores in together]),
    )
    plots.confusion(pooled, reference.data.classes, folder / "nw-ucla-confusion.png")
    with store.artifacts(reference.trainings["joint"][0].run_id, "checkpoint") as checkpoint:
        model, card = load_model(checkpoint)
    with tempfile.TemporaryDirectory(prefix="fgst-reference-") as name:
        explain(model, card, reference.data, Path(name))
        shutil.copyfile(Path(name) / "joints.png", folder / "nw-ucla-focal-map.png")
        shutil.copyfile(Path(name) / "classes.png", folder / "nw-ucla-focal-joints.png")


def _draw_curves(reference: Reference, path: Path) -> None:
    figure, (left, right) = new_figure(9, 3.6, columns=2)
    panels = ((left, "train/top1", reference.trainings), (right, "val/top1", reference.validation))
    for axes, metric, groups in panels:
        for name, trainings in groups.items():
            epochs = sorted(set.intersection(*(set(training.curves[metric]) for training in trainings)))
            means = [statistics.fmean(training.curves[metric][epoch] for training in trainings) for epoch in epochs]
            axes.plot(epochs, means, marker=".", label=name.replace("_", " "))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel(f"epoch of {reference.config.train.repeat} passes")
        axes.set_ylabel(f"{'training' if metric.startswith('train') else 'validation'} top-1 [%]")
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    save_figure(figure, path)


def describe_machine() -> str:
    """The processor and the number of its cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = "an unknown processor"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{cores} cores of {model}"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-id", metavar="RUN_ID", help="an ensemble of sweeps/modalities.py --refit")
    parser.add_argument("--tracking-uri", metavar="URI", help="tracking store; default as for all commands")
    parser.add_argument("--out", type=Path, default=PAGE, metavar="FILE", help="the page (default: %(default)s)")
    options = parser.parse_args(argv)
    try:
        store = TrackingStore.existing(options.tracking_uri)
        reference = load(store, options.run_id)
    except InputError as error:
        sys.exit(str(error))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw_pictures(reference, store, options.out.parent.parent / "pictures")
    options.out.write_text(page(reference, describe_machine()), encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
