"""Draw the focal joints of a run's network (Figure 5 of the paper), and store the figures with the run.

Examples:
  python -m fgst.explain --run-id 0123456789abcdef0123456789abcdef
  python -m fgst.explain --run-id … --clip a03_s07_e02_v03 --out figures     also draw and animate this clip
  python -m fgst.explain --run-id … --class throw --class carry --format pdf vector graphics of two classes
  python -m fgst.explain --run-id … --animate                                an animation per class

The figures show, for each class, the test clip that the network classifies correctly with the highest probability, and,
over all test clips, how often each joint is focal, compared with chance. They have the size of a paper's text. Exit
code 2: the arguments or the run are invalid.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from fgst.cli.command import CommandParser
from fgst.cli.options import add_cache_option, add_device_options, add_figure_option, add_tracking_option
from fgst.errors import InputError
from fgst.tracking.tags import Tags

if TYPE_CHECKING:  # torch and MLflow take seconds to import
    from fgst.data.dataset import ArrowDataset
    from fgst.model import FGSTFormer
    from fgst.model.card import ModelCard
    from fgst.tracking.store import TrackingStore

ARTIFACT_PATH = "figures/focal"


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of ``fgst explain``."""
    parser = CommandParser("python -m fgst.explain", __doc__)
    parser.add_argument("--run-id", required=True, metavar="RUN_ID", help="a training")
    parser.add_argument(
        "--dataset", metavar="DIR", help="directory or URI of the data set (default: the one that the run recorded)"
    )
    add_cache_option(parser)
    parser.add_argument(
        "--clip", action="append", default=[], metavar="CLIP_ID", help="also draw and animate this test clip"
    )
    parser.add_argument(
        "--class", dest="classes", action="append", default=[], metavar="CLASS",
        help="draw a clip of this class, not of all classes; repeatable",
    )  # fmt: skip
    add_figure_option(parser)
    parser.add_argument(
        "--animate", action="store_true", help="animate one clip of every class, not only of the first class"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="write the figures to this folder as well")
    parser.add_argument("--no-log", action="store_true", help="do not store the figures with the run (requires --out)")
    add_device_options(parser)
    add_tracking_option(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run ``fgst explain``."""
    args = build_parser().parse_args(argv)
    if args.no_log and args.out is None:
        raise InputError("--no-log without --out would discard the figures; add --out FOLDER to save them")
    # lazy: torch and MLflow take seconds to import, and --help and invalid arguments need neither
    import torch

    from fgst.data.loader import choose_device
    from fgst.evaluation.explain import explain
    from fgst.tracking.store import TrackingStore

    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    store = TrackingStore.existing(args.tracking_uri)
    run_id = store.full_run_id(args.run_id)
    model, card, data = _load(store, run_id, args.dataset)
    with ExitStack() as stack:
        out = args.out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fgst-focal-"))) / "focal"
        names = explain(model.to(device), card, data, out, clips=args.clip, classes=args.classes, animate=args.animate,
                        suffix=args.format, device=device)  # fmt: skip
        if not args.no_log:
            upload = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fgst-focal-")))
            (upload / ARTIFACT_PATH).mkdir(parents=True)
            for name in names:
                shutil.copyfile(out / name, upload / ARTIFACT_PATH / name)
            store.open_run(run_id).log_artifacts(upload)
            print(f"{len(names)} files under {ARTIFACT_PATH} of run {run_id}")
    if args.out is not None:
        print(f"{len(names)} files in {args.out}")


def _load(store: TrackingStore, run_id: str, dataset: str | None) -> tuple[FGSTFormer, ModelCard, ArrowDataset]:
    """Load a run's network and its data set.

    Raises:
        InputError: if the run is not a training with focal joints, or if the data set does not fit.
    """
    # lazy: torch takes seconds to import
    from fgst.data.dataset import ArrowDataset, open_recorded
    from fgst.model.card import load_model

    tags = store.run(run_id).data.tags
    if tags.get(Tags.KIND) != "trial":
        networks = [member for tag, member in sorted(tags.items()) if tag.startswith(Tags.MEMBER)]
        networks += [tags[Tags.BEST_RUN]] if Tags.BEST_RUN in tags else []
        hint = f"one of its networks is --run-id {networks[0]}" if networks else "name a training"
        raise InputError(f"run {run_id} is not a single network; {hint}")
    with store.artifacts(run_id, "checkpoint") as folder:
        model, card = load_model(folder)
    if not card.config.model.focal_selection:
        raise InputError(f"run {run_id} was trained without focal joints, so there are none to draw")
    data = ArrowDataset(dataset) if dataset else open_recorded(card.config.data.dataset, f"run {run_id}")
    if data.skeleton != card.skeleton or data.classes != card.classes:
        raise InputError(f"{data.path}: the skeleton or the classes differ from those that run {run_id} was trained on")
    return model, card, data
