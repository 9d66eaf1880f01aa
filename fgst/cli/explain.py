"""What does a run's network look at? Pictures of its focal joints (Figure 5 of the paper), into the run's artifacts.

Examples:
  python -m fgst.explain --run-id 0123456789abcdef0123456789abcdef
  python -m fgst.explain --run-id … --clip a03_s07_e02_v03 --out pictures      that clip, animated too
  python -m fgst.explain --run-id … --animate                                  an animation of each class

For each class it draws the test clip that the network is right about with the highest probability, and for all test
clips how often each joint is among the focal ones. Exit code 2: something is wrong with the input.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fgst.cli.command import CommandParser
from fgst.cli.options import add_cache_option, add_device_options, add_tracking_option
from fgst.errors import InputError
from fgst.evaluation.focal_plots import FocalClip, focal_animation, focal_heat_map, focal_stills
from fgst.tracking.tags import Tags

if TYPE_CHECKING:
    from fgst.data.dataset import ArrowDataset
    from fgst.data.loader import Batch, ClipLoader
    from fgst.model import FGSTFormer
    from fgst.model.card import ModelCard

PLACE = "figures/focal"  # among the run's artifacts
TOGETHER = 16  # clips at a time: the maps take far more memory than the scores


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser("python -m fgst.explain", __doc__)
    parser.add_argument("--run-id", required=True, metavar="RUN_ID", help="of a training")
    parser.add_argument("--dataset", metavar="DIR", help="a directory or URI; default: where the run found it")
    add_cache_option(parser)
    parser.add_argument("--clip", action="append", default=[], metavar="CLIP_ID", help="draw this test clip, animated")
    parser.add_argument("--animate", action="store_true", help="animate the clip of each class, not only of the first")
    parser.add_argument("--out", metavar="DIR", type=Path, help="keep the pictures here, too")
    parser.add_argument("--no-log", action="store_true", help="leave the run as it is (takes --out)")
    add_device_options(parser)
    add_tracking_option(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    if args.no_log and args.out is None:
        raise InputError("--no-log leaves the pictures nowhere; say with --out where to keep them")
    # Late: `--help` and a typing error should not wait for these.
    import torch

    from fgst.data.dataset import ArrowDataset
    from fgst.data.loader import choose_device
    from fgst.model.card import load_model
    from fgst.tracking.store import TrackingStore

    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    store = TrackingStore(args.tracking_uri)
    tags = store.run(args.run_id).data.tags
    if tags.get(Tags.KIND) != "trial":
        members = [run for tag, run in sorted(tags.items()) if tag.startswith(Tags.MEMBER)]
        members += [tags[Tags.BEST_RUN]] if Tags.BEST_RUN in tags else []
        hint = f"one of its networks is --run-id {members[0]}" if members else "name a training"
        raise InputError(f"run {args.run_id} is no single network; {hint}")
    with store.artifacts(args.run_id, "checkpoint") as folder:
        model, card = load_model(folder)
    if not card.config.model.focal_selection:
        raise InputError(f"run {args.run_id} was trained without focal joints, so there are none to draw")
    data = ArrowDataset(args.dataset or card.config.data.dataset)
    if data.skeleton != card.skeleton or data.classes != card.classes:
        raise InputError(f"{data.path}: has another skeleton or other classes than the data of run {args.run_id}")
    with ExitStack() as stack:
        if args.out is None:
            args.out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fgst-focal-"))) / "focal"
        names = explain(model.to(device), card, data, args.out, clips=args.clip, animate=args.animate, device=device)
        if not args.no_log:
            with tempfile.TemporaryDirectory(prefix="fgst-focal-") as name:
                target = Path(name) / PLACE
                for written in names:
                    (target / written).parent.mkdir(parents=True, exist_ok=True)
                    (target / written).write_bytes((args.out / written).read_bytes())
                store.open_run(args.run_id).log_artifacts(Path(name))
            print(f"{len(names)} files under {PLACE} of run {args.run_id}")
    if args.out.exists():
        print(f"{len(names)} files in {args.out}")


@dataclasses.dataclass
class _Seen:
    """The best clip of a class so far: its row in the store, the probability of its class, whether that came first."""

    row: int
    probability: float
    right: bool


def explain(
    model: FGSTFormer, card: ModelCard, data: ArrowDataset, out: Path, *,
    clips: Sequence[str] = (), animate: bool = False, device: Any = None,
) -> list[str]:  # fmt: skip
    """Draw what a network looks at in the test clips of its benchmark.

    Args:
        out: the folder for the pictures, and ``focal.json`` with the numbers of the heat map.
        clips: test clips to draw and to animate, besides one per class.
        animate: animate each class's clip; without it, and without ``clips``, only the first class's.

    Returns:
        What was written, by name within ``out``.

    Raises:
        InputError: if a clip is none of the test clips.
    """
    import torch

    from fgst.data.loader import ClipLoader
    from fgst.data.progress import tracked
    from fgst.evaluation.ensemble import softmax

    device = device or torch.device("cpu")
    settings = card.config.data
    rows = data.splits(settings.benchmark or "", validation=0).test
    unknown = [clip for clip in clips if clip not in set(data.clip_ids[rows])]
    if unknown:
        raise InputError(f"--clip {unknown[0]}: is none of the {len(rows)} test clips of {settings.benchmark}")
    store = ClipLoader(data, rows, settings, device)
    labels, N = store.labels.cpu().numpy(), data.skeleton.num_joints
    shares, best = np.zeros((len(rows), N)), dict[int, _Seen]()
    for batch, scores, maps in tracked(_looked(model, store), -(-len(rows) // TOGETHER), "looking at clips"):
        shares[batch.rows] = _shares(maps, N)
        for row, chances in zip(batch.rows.tolist(), softmax(scores), strict=True):
            label = int(labels[row])
            found = _Seen(row, float(chances[label]), int(chances.argmax()) == label)
            known = best.get(label)
            if known is None or (found.right, found.probability) > (known.right, known.probability):
                best[label] = found
    classes = [label for label in range(len(card.classes)) if label in best]
    by_class = 100 * np.stack([shares[labels == label].mean(axis=0) for label in classes])

    out.mkdir(parents=True, exist_ok=True)
    names = [card.classes[label] for label in classes]
    focal_heat_map(by_class, names, data.skeleton.joints, out / "joints.png")
    (out / "focal.json").write_text(
        json.dumps(
            {
                "what": "share of frames in which a joint is focal, in %: the mean over the test clips of a class",
                "focal_joints": card.config.model.focal_joints,
                "joints": list(data.skeleton.joints),
                "classes": {name: row.tolist() for name, row in zip(names, by_class.round(3), strict=True)},
            },
            indent=1,
        )
        + "\n"
    )
    written = ["joints.png", "focal.json"]
    wanted = [(best[label].row, f"{label:03d}-{_file_name(card.classes[label])}", animate) for label in classes]
    if not animate and not clips:
        wanted[0] = (*wanted[0][:2], True)
    at = {clip: row for row, clip in enumerate(store.clip_ids)}
    wanted += [(at[clip], f"clip-{_file_name(clip)}", True) for clip in clips]
    for row, name, moving in tracked(wanted, len(wanted), "drawing"):
        clip = _clip(model, card, data, store, row)
        focal_stills(clip, data.skeleton, out / f"{name}.png")
        written.append(f"{name}.png")
        if moving:
            focal_animation(clip, data.skeleton, out / f"{name}.gif")
            written.append(f"{name}.gif")
    return written


def _looked(model: FGSTFormer, store: ClipLoader) -> Iterator[tuple[Batch, np.ndarray, Any]]:
    """Batches with the network's scores ``(B, classes)`` and maps."""
    import torch

    with torch.inference_mode():
        for batch in store.evaluation_batches(TOGETHER):
            scores, maps = model(batch.clips, batch.person_mask, return_maps=True)
            yield batch, scores.float().cpu().numpy(), maps


def _shares(maps: Any, N: int) -> np.ndarray:
    """Of each clip the share of its persons' frames in which a joint is focal, ``(B, N)``."""
    focal, person_mask = _focal(maps, N), maps.person_mask.cpu().numpy()
    counts = focal.mean(axis=2) * person_mask[..., None]  # (B, M, N)
    return np.asarray(counts.sum(axis=1) / person_mask.sum(axis=1)[:, None])


def _focal(maps: Any, N: int) -> np.ndarray:
    """Which joints are focal, ``(B, M, T, N)``."""
    chosen = maps.focal_joints.cpu().numpy()
    focal = np.zeros((*chosen.shape[:3], N), dtype=bool)
    np.put_along_axis(focal, chosen, True, axis=3)
    return focal


def _clip(model: FGSTFormer, card: ModelCard, data: ArrowDataset, store: ClipLoader, row: int) -> FocalClip:
    import torch

    from fgst.data.loader import ClipLoader
    from fgst.evaluation.ensemble import softmax

    only = np.array([row])
    batch = store.batch(only)
    with torch.inference_mode():
        scores, maps = model(batch.clips, batch.person_mask, return_maps=True)
    chances = softmax(scores.float().cpu().numpy())[0]
    label, guess = int(store.labels[row]), int(chances.argmax())
    said = f"{100 * chances[label]:.0f} %" if label == guess else f"taken for {card.classes[guess]}"
    # Where the joints are, whatever the network is given of them.
    positions = ClipLoader(data, store.rows, dataclasses.replace(card.config.data, modality="joint"), store.device)
    joints = positions.batch(only).clips[0].cpu().numpy()[:, :: maps.stride]
    N, K = data.skeleton.num_joints, maps.focal_joints.shape[-1]
    attention = None
    # Of the first layers of stage 2: later ones may have half the frames.
    whole = [one[0].mean(dim=2) for one in maps.part_to_joint if one.shape[2] == maps.focal_joints.shape[2]]
    if whole:
        by_slot = torch.stack(whole).mean(dim=0).cpu().numpy()  # (M, T, K, P)
        attention = np.zeros((*by_slot.shape[:2], N, by_slot.shape[-1]), by_slot.dtype)
        slots = maps.focal_joints[0].cpu().numpy()  # (M, T, K)
        for slot in range(K):
            np.put_along_axis(attention, slots[:, :, slot, None, None], by_slot[:, :, slot, None], axis=2)
    return FocalClip(
        clip_id=str(store.clip_ids[row]),
        title=f"{card.classes[label]} ({said}), clip {store.clip_ids[row]}",
        joints=joints,
        person_mask=maps.person_mask[0].cpu().numpy(),
        focal=_focal(maps, N)[0],
        scores=maps.focal_scores[0].cpu().numpy(),
        attention=attention,
        parts=data.skeleton.partition(card.config.model.parts) if card.config.model.part_branch else (),
    )


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower() or "clip"
