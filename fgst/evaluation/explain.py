"""Explaining a network by its focal joints: statistics over the test clips, and figures of individual clips.

For each class, the clip that the network classifies correctly with the highest probability is drawn as in Figure 5 of
the paper.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fgst.data.dataset import ArrowDataset
from fgst.data.loader import Batch, ClipLoader
from fgst.data.progress import tracked
from fgst.data.writer import writing_to
from fgst.errors import InputError
from fgst.evaluation.ensemble import softmax
from fgst.evaluation.focal_map import draw_focal_map, focal_map
from fgst.evaluation.focal_plots import FocalClip, focal_animation, focal_overview, focal_stills
from fgst.evaluation.scoring import check_finite
from fgst.model import AttentionMaps, FGSTFormer
from fgst.model.card import ModelCard
from fgst.table_files import records_to_csv

MAX_OVERVIEW = 12
"""Number of classes in the overview; by default the first ones."""
BATCH_SIZE = 16
"""Clips per forward pass; attention maps take far more memory than scores."""


@dataclass(frozen=True)
class FocalStatistics:
    """Focal joints over the clips of a split.

    Attributes:
        labels: true classes ``(n,)``.
        shares: share of each clip's frames in which a joint is focal, ``(n, N)``.
        scores: mean over each clip's frames of the joints' scores (S of Eq. 2), ``(n, N)``.
        best: for each class with clips, the row of the clip to draw: correctly classified if any is, and with the
            highest probability of its true class.
    """

    labels: np.ndarray
    shares: np.ndarray
    scores: np.ndarray
    best: dict[int, int]

    @property
    def classes(self) -> list[int]:
        """Classes with clips, in ascending order."""
        return sorted(self.best)


def explain(
    model: FGSTFormer,
    card: ModelCard,
    data: ArrowDataset,
    out: Path,
    *,
    clips: Sequence[str] = (),
    classes: Sequence[str] = (),
    animate: bool = False,
    suffix: str = "png",
    device: torch.device | None = None,
) -> list[str]:
    """Draw the focal joints of the test clips of a network's benchmark.

    Args:
        model: the network, on ``device``.
        card: its description.
        data: its data set.
        out: folder for the figures, and for ``focal.json`` and ``focal.csv`` with the values of the map.
        clips: ids of test clips to draw and animate, in addition to one clip per class.
        classes: names of the classes to draw a clip of; by default all.
        animate: animate the clip of each class. By default, only that of the first class is animated, and none if
            ``clips`` are given.
        suffix: format of the figures: png, svg or pdf. Animations are GIFs.
        device: the device; by default the CPU.

    Returns:
        Names of the files written, relative to ``out``.

    Raises:
        InputError: if a clip is not one of the test clips, a class does not exist or has none, or the network's scores
            of a clip are not finite.
    """
    settings = card.config.data
    rows = data.splits(settings.benchmark or "", validation=0).test
    unknown = [clip for clip in clips if clip not in set(data.clip_ids[rows])]
    if unknown:
        raise InputError(f"--clip {unknown[0]}: not one of the {len(rows)} test clips of {settings.benchmark}")
    chosen = _labels(classes, card.classes, set(data.columns["label"][rows].tolist()))
    loader = ClipLoader(data, rows, settings, device or torch.device("cpu"))
    statistics = analyze_focal_joints(model, loader)

    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
    written = _write_statistics(statistics, card, data, out, suffix)
    drawings = [(statistics.best[label], f"{label:03d}-{_file_name(card.classes[label])}", animate) for label in chosen]
    per_class = len(drawings)
    if not animate and not clips:
        drawings[0] = (*drawings[0][:2], True)
    row_of = {clip: row for row, clip in enumerate(loader.clip_ids)}
    drawings += [(row_of[clip], f"clip-{_file_name(clip)}", True) for clip in clips]
    drawn = []
    for row, name, animated in tracked(drawings, len(drawings), "drawing"):
        clip = make_focal_clip(model, card, data, loader, row)
        focal_stills(clip, data.skeleton, out / f"{name}.{suffix}")
        written.append(f"{name}.{suffix}")
        drawn.append(clip)
        if animated:
            focal_animation(clip, data.skeleton, out / f"{name}.gif")
            written.append(f"{name}.gif")
    focal_overview(drawn[: min(per_class, MAX_OVERVIEW)], data.skeleton, out / f"classes.{suffix}")
    return [*written, f"classes.{suffix}"]


def _labels(wanted: Sequence[str], classes: Sequence[str], with_clips: Collection[int]) -> list[int]:
    """The classes to draw a clip of, in the order in which they are wanted; by default all that have test clips."""
    for name in wanted:
        if name not in classes:
            similar = difflib.get_close_matches(name, classes, n=3, cutoff=0.5) or classes[:20]
            raise InputError(f"--class {name}: there is no such class; e.g. {', '.join(similar)}")
        if classes.index(name) not in with_clips:
            raise InputError(f"--class {name}: there is no test clip of this class")
    return [classes.index(name) for name in dict.fromkeys(wanted)] or sorted(with_clips)


def analyze_focal_joints(model: FGSTFormer, loader: ClipLoader) -> FocalStatistics:
    """Compute how often each joint is focal in each clip, and choose the clip to draw for each class."""
    labels = loader.labels.cpu().numpy()
    shares = np.zeros((len(labels), loader.skeleton.num_joints))
    means = np.zeros_like(shares)
    best: dict[int, tuple[bool, float, int]] = {}  # by class: correct, probability of the true class, row
    batches = -(-len(labels) // BATCH_SIZE)
    for batch, scores, maps in tracked(_batches_with_maps(model, loader), batches, "computing attention maps"):
        shares[batch.rows] = _mean_over_frames(_focal_mask(maps, loader.skeleton.num_joints), maps)
        means[batch.rows] = _mean_over_frames(_focal_scores(maps), maps)
        for row, probabilities in zip(batch.rows.tolist(), softmax(scores), strict=True):
            label = int(labels[row])
            candidate = (int(probabilities.argmax()) == label, float(probabilities[label]), row)
            if label not in best or candidate[:2] > best[label][:2]:
                best[label] = candidate
    return FocalStatistics(labels, shares, means, {label: row for label, (_, _, row) in best.items()})


def make_focal_clip(model: FGSTFormer, card: ModelCard, data: ArrowDataset, loader: ClipLoader, row: int) -> FocalClip:
    """Run the network on one clip, and collect the data that :mod:`fgst.evaluation.focal_plots` draws.

    Args:
        model: the network.
        card: its description.
        data: its data set.
        loader: the split that contains the clip.
        row: the clip's row in the loader.
    """
    only = np.array([row])
    batch = loader.batch(only)
    with torch.inference_mode():
        scores, maps = model(batch.clips, batch.person_mask, return_maps=True)
    probabilities = softmax(scores.float().cpu().numpy())[0]
    label, predicted = int(loader.labels[row]), int(probabilities.argmax())
    verdict = f"{100 * probabilities[label]:.0f} %"
    if predicted != label:
        verdict = f"classified as {card.classes[predicted]}"
    # Positions, even if the network's modality is another one.
    positions = ClipLoader(data, loader.rows, dataclasses.replace(card.config.data, modality="joint"), loader.device)
    return FocalClip(
        clip_id=str(loader.clip_ids[row]),
        class_name=card.classes[label],
        title=f"{card.classes[label]} ({verdict}), clip {loader.clip_ids[row]}",
        joints=positions.batch(only).clips[0].cpu().numpy()[:, :: maps.stride],
        person_mask=maps.person_mask[0].cpu().numpy(),
        focal=_focal_mask(maps, data.skeleton.num_joints)[0],
        scores=_focal_scores(maps)[0],
        attention=_part_attention(maps, data.skeleton.num_joints),
        parts=data.skeleton.partition(card.config.model.parts) if card.config.model.part_branch else (),
    )


def _write_statistics(
    statistics: FocalStatistics, card: ModelCard, data: ArrowDataset, out: Path, suffix: str
) -> list[str]:
    joints, focal_joints = data.skeleton.joints, card.config.model.focal_joints
    values = statistics.scores if focal_joints >= len(joints) else statistics.shares
    content = focal_map(values, statistics.labels, card.classes, joints, focal_joints)
    draw_focal_map(content, out / f"joints.{suffix}")
    what = "share of frames in which a joint is focal, in %: the mean over the test clips of a class"
    if content.chance is None:
        what = "mean score S of a joint over the test clips of a class; all joints are focal in all frames"
    description = {
        "what": what,
        "focal_joints": focal_joints,
        "chance": content.chance,
        "joints": list(joints),
        "classes": {name: row.tolist() for name, row in zip(content.classes, content.values.round(3), strict=True)},
        "beyond_chance": {
            name: [joint for joint, is_beyond in zip(joints, row, strict=True) if is_beyond]
            for name, row in zip(content.classes, content.beyond_chance, strict=True)
        }
        if content.chance is not None
        else None,
    }
    (out / "focal.json").write_text(json.dumps(description, indent=1, allow_nan=False) + "\n")
    (out / "focal.csv").write_text(records_to_csv(content.records()))
    return [f"joints.{suffix}", "focal.json", "focal.csv"]


def _batches_with_maps(model: FGSTFormer, loader: ClipLoader) -> Iterator[tuple[Batch, np.ndarray, AttentionMaps]]:
    """Yield batches with the network's scores ``(B, classes)``, which are finite, and attention maps."""
    with torch.inference_mode():
        for batch in loader.evaluation_batches(BATCH_SIZE):
            scores, maps = model(batch.clips, batch.person_mask, return_maps=True)
            values = scores.float().cpu().numpy()
            check_finite(model, loader.clip_ids[batch.rows], values)
            yield batch, values, maps


def _focal_mask(maps: AttentionMaps, num_joints: int) -> np.ndarray:
    """Which joints are focal: ``(B, M, T, N)``, bool."""
    assert maps.focal_joints is not None, "the network has no focal joints"
    chosen = maps.focal_joints.cpu().numpy()
    mask = np.zeros((*chosen.shape[:3], num_joints), dtype=bool)
    np.put_along_axis(mask, chosen, True, axis=3)
    return mask


def _focal_scores(maps: AttentionMaps) -> np.ndarray:
    """Scores of the joints, S of Eq. 2: ``(B, M, T, N)``."""
    assert maps.focal_scores is not None, "the network has no focal joints"
    return maps.focal_scores.float().cpu().numpy()


def _mean_over_frames(values: np.ndarray, maps: AttentionMaps) -> np.ndarray:
    """Mean of ``(B, M, T, N)`` over the frames of all present persons of each clip: ``(B, N)``."""
    person_mask = maps.person_mask.cpu().numpy()
    by_person = values.mean(axis=2) * person_mask[..., None]  # (B, M, N)
    return np.asarray(by_person.sum(axis=1) / person_mask.sum(axis=1)[:, None])


def _part_attention(maps: AttentionMaps, num_joints: int) -> np.ndarray | None:
    """Attention of the joints of the first clip to the parts: ``(M, T, N, P)``, zero for joints that are not focal.

    It is the mean over the heads, and over those layers whose frame rate is that of the input of stage 2 (later layers
    may have half the frames). ``None`` for a network without part-to-joint attention.
    """
    assert maps.focal_joints is not None, "the network has no focal joints"
    frames, slots = maps.focal_joints.shape[2:]
    layers = [layer[0].mean(dim=2) for layer in maps.part_to_joint if layer.shape[2] == frames]
    if not layers:
        return None
    by_slot = torch.stack(layers).mean(dim=0).cpu().numpy()  # (M, T, K, P)
    attention = np.zeros((*by_slot.shape[:2], num_joints, by_slot.shape[-1]), by_slot.dtype)
    joints = maps.focal_joints[0].cpu().numpy()  # (M, T, K)
    for slot in range(slots):
        np.put_along_axis(attention, joints[:, :, slot, None, None], by_slot[:, :, slot, None], axis=2)
    return attention


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower() or "clip"
