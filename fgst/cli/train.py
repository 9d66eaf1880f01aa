"""Train one FG-STFormer and keep it in MLflow.

Examples:
  python -m fgst.train --dataset datasets/nw-ucla                        the preset that suits this machine
  python -m fgst.train --dataset datasets/nw-ucla --preset small --epochs 20 --set model.focal_joints=12
  python -m fgst.train --dataset datasets/nw-ucla --protocol paper --modality bone
  python -m fgst.train --dataset datasets/nw-ucla --resume auto          go on after an interruption

The last line is the next command to type, with the run's id. Every epoch leaves a checkpoint, so an interrupted
training (Ctrl-C, kill) goes on from its last whole epoch and ends with the same figures.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from fgst.cli.command import CommandParser
from fgst.cli.options import (
    add_device_options,
    add_system_metrics_option,
    add_tracking_option,
    add_trial_options,
    trial_config,
)
from fgst.errors import InputError, Interrupted
from fgst.tracking.tags import Tags

if TYPE_CHECKING:
    from fgst.tracking.run import TrackedRun
    from fgst.tracking.store import TrackingStore


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser("python -m fgst.train", __doc__)
    add_trial_options(parser, dataset_required=True)
    parser.add_argument(
        "--resume",
        metavar="auto|RUN_ID",
        help="auto: go on with the newest unfinished training of these settings, or begin one; or that run",
    )
    parser.add_argument("--checkpoints", metavar="DIR", default="checkpoints", help="default: checkpoints")
    add_device_options(parser)
    add_tracking_option(parser)
    add_system_metrics_option(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    # Late: `--help` and a typing error should not wait for these.
    import torch
    from filelock import FileLock, Timeout
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from fgst.data.dataset import ArrowDataset
    from fgst.data.loader import choose_device
    from fgst.tracking.spool import TrackingServerUnavailable
    from fgst.tracking.store import TrackingStore
    from fgst.tracking.training import track, trial_tags
    from fgst.training.trainer import fit, resolve

    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    dataset = ArrowDataset(args.dataset)
    config = resolve(trial_config(args, args.dataset, has_gpu=device.type == "cuda"), dataset)
    # Where the data lie does not change what is trained on them.
    key = f"{config.digest(without=('data.dataset',))[:16]}-{dataset.digest[:16]}"
    store = TrackingStore(args.tracking_uri)
    experiment = store.experiment(f"{dataset.name} {config.data.benchmark}")
    root = Path(args.checkpoints).absolute()

    with ExitStack() as stack:
        run = _run_to_resume(store, experiment, key, args.resume, root)
        if run is None:
            if args.resume:
                print("no unfinished training of these settings: beginning one", file=sys.stderr)
            name = f"{config.data.modality} K={config.model.focal_joints} s{config.train.seed}"
            tags = trial_tags(config, dataset.name, dataset.digest)
            run = store.start(experiment, key, name, {**tags, "mlflow.source.name": "fgst.train"})
        folder = root / run.run_id
        folder.mkdir(parents=True, exist_ok=True)
        try:
            stack.enter_context(FileLock(folder / "lock", timeout=0))
        except Timeout:
            raise InputError(f"run {run.run_id} is being trained by another process") from None
        run.enable_spool(folder / "spool")
        run.log_params(config.flat())
        run.log_dataset(dataset.name, dataset.digest, dataset.location)
        print(f"run {run.run_id} in {store.uri}", file=sys.stderr)

        console = Console(stderr=True)
        bar = Progress(
            TextColumn("epoch {task.fields[epoch]}/" + str(config.train.epochs)), BarColumn(), MofNCompleteColumn(),
            TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        task = bar.add_task("", epoch=1, total=None)

        def on_step(epoch: int, step: int, steps: int) -> None:
            bar.update(
                task, total=steps * config.train.epochs, completed=(epoch - 1) * steps + step, epoch=epoch
            )  # fmt: skip

        results = fit(config, dataset=dataset, device=args.device, checkpoints=folder, on_step=on_step)
        try:
            with bar, run.system_metrics() if args.system_metrics else nullcontext():
                for result in track(run, results, dataset.classes):
                    if result.is_replay:
                        bar.console.print(f"going on after epoch {result.epoch}", highlight=False)
                    else:
                        bar.console.print(_line(result.epoch, config.train.epochs, result.metrics), highlight=False)
                    outcome = result
        except TrackingServerUnavailable as error:
            raise Interrupted(f"{error}. Go on with: python -m fgst.train {_again(argv, run.run_id)}") from None
        except KeyboardInterrupt:
            raise Interrupted(f"Go on with: python -m fgst.train {_again(argv, run.run_id)}") from None
    # Finished and safe in MLflow: what was kept for going on is of no use any more.
    shutil.rmtree(folder, ignore_errors=True)
    metrics = outcome.metrics
    print(
        f"last-epoch test top-1 {metrics['test/top1']:.2f} %, top-5 {metrics['test/top5']:.2f} % "
        f"({config.data.modality}, {dataset.name} {config.data.benchmark}, protocol {config.data.protocol}, "
        f"{metrics['minutes']:.1f} minutes)"
    )
    print(f"python -m fgst.evaluate --run-id {run.run_id}")


def _run_to_resume(
    store: TrackingStore, experiment: str, key: str, resume: str | None, checkpoints: Path
) -> TrackedRun | None:
    from filelock import FileLock, Timeout

    if resume is None:
        return None
    if resume == "auto":
        for run_id in store.unfinished(experiment, key):
            if not (checkpoints / run_id).is_dir():
                continue
            try:
                with FileLock(checkpoints / run_id / "lock", timeout=0):
                    pass
            except Timeout:
                continue  # it is running: leave it alone
            return store.reopen(store.run(run_id))
        return None
    found = store.run(resume)
    if found.info.status == "FINISHED":
        raise InputError(f"run {resume} is finished; python -m fgst.evaluate --run-id {resume}")
    if found.data.tags.get(Tags.TRIAL_ID) != key:
        raise InputError(f"run {resume} was begun with other settings or other data; give the same ones to go on")
    return store.reopen(found)


def _line(epoch: int, epochs: int, metrics: dict[str, float]) -> str:
    parts = [f"epoch {epoch:3d}/{epochs}", f"loss {metrics['train/loss']:.4f}", f"train {metrics['train/top1']:5.1f} %"]
    for split in ("val", "test"):
        if f"{split}/top1" in metrics:
            parts.append(f"{split} {metrics[f'{split}/top1']:5.1f} %")
    parts.append(f"{metrics['clips_per_second']:.0f} clips/s")
    return "  ".join(parts)


def _again(argv: Sequence[str] | None, run_id: str) -> str:
    import shlex

    words = shlex.join(sys.argv[1:] if argv is None else argv)
    words = re.sub(r"\s*--resume[ =]\S+", "", words)
    return f"{words} --resume {run_id}"
