"""Train one FG-STFormer and record it in MLflow.

Examples:
  python -m fgst.train --dataset datasets/nw-ucla                        default preset for this machine
  python -m fgst.train --dataset datasets/nw-ucla --preset small --epochs 20 --set model.focal_joints=12
  python -m fgst.train --dataset datasets/nw-ucla --protocol paper --modality bone
  python -m fgst.train --dataset datasets/nw-ucla --resume auto          resume after an interruption

A checkpoint is saved after every epoch. After an interruption (Ctrl-C, kill), --resume continues from the last
completed epoch, with the same results as without the interruption. The last line of the output is the command that
evaluates the trained network.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from fgst import durable
from fgst.cli.command import CommandParser, format_command
from fgst.cli.options import (
    add_device_options,
    add_system_metrics_option,
    add_tracking_option,
    add_trial_options,
    trial_config,
)
from fgst.config import TrialConfig, resolve
from fgst.data.dataset import ArrowDataset
from fgst.errors import DeletedInMlflow, InputError, Interrupted, StoreUnavailable
from fgst.tracking.tags import Tags

if TYPE_CHECKING:
    from rich.progress import Progress

    from fgst.tracking.run import TrackedRun
    from fgst.tracking.store import TrackingStore
    from fgst.training import EpochResult


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser("python -m fgst.train", __doc__)
    add_trial_options(parser, dataset_required=True)
    parser.add_argument(
        "--resume",
        metavar="auto|RUN_ID",
        help="auto: resume the newest unfinished training with these settings, or start a new one; RUN_ID: resume "
        "that training",
    )
    parser.add_argument(
        "--checkpoints", metavar="DIR", default="checkpoints", help="folder for checkpoints (default: checkpoints)"
    )
    add_device_options(parser)
    add_tracking_option(parser)
    add_system_metrics_option(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    # lazy: torch and MLflow take seconds to import; --help and usage errors do not need them
    import torch

    from fgst.data.loader import choose_device
    from fgst.tracking.store import TrackingStore
    from fgst.training import fit

    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    dataset = ArrowDataset(args.dataset)
    config = resolve(trial_config(args, args.dataset, has_gpu=device.type == "cuda"), dataset)
    if held_out := dataset.splits_for(config.data).held_out:  # or refuse, before a run is opened
        print(f"validation: {held_out}", file=sys.stderr)
    resumes = args.resume not in (None, "auto")
    store = (TrackingStore.existing if resumes else TrackingStore)(args.tracking_uri)
    root = Path(args.checkpoints).absolute()
    root.mkdir(parents=True, exist_ok=True)  # before a run is started
    with _open_run(store, config, dataset, root, resume=args.resume, tracking_uri=args.tracking_uri) as (run, folder):
        try:
            progress, on_step = _progress_bar(config.train.epochs)
            results = fit(config, dataset=dataset, device=args.device, checkpoints=folder, on_step=on_step)
            with progress, run.system_metrics() if args.system_metrics else nullcontext():
                last = _consume(run, results, dataset.classes, progress, config.train.epochs)
        except DeletedInMlflow as error:
            raise Interrupted(f"{error}\nThen resume with: {_resume_command(argv, run.run_id)}") from None
        except StoreUnavailable as error:
            raise Interrupted(f"{error}. Resume with: {_resume_command(argv, run.run_id)}") from None
        except KeyboardInterrupt:
            run.interrupt()
            raise Interrupted(f"Resume with: {_resume_command(argv, run.run_id)}") from None
    # The results are in MLflow, so the checkpoint is no longer needed.
    shutil.rmtree(folder, ignore_errors=True)
    metrics = last.metrics
    print(
        f"last-epoch test top-1 {metrics['test/top1']:.2f} %, top-5 {metrics['test/top5']:.2f} % "
        f"({config.data.modality}, {dataset.name} {config.data.benchmark}, protocol {config.data.protocol}, "
        f"{metrics['minutes']:.1f} minutes)"
    )
    print(_evaluate_command(run.run_id, args.tracking_uri))


@contextmanager
def _open_run(
    store: TrackingStore,
    config: TrialConfig,
    dataset: ArrowDataset,
    root: Path,
    *,
    resume: str | None,
    tracking_uri: str | None,
) -> Iterator[tuple[TrackedRun, Path]]:
    """Start or resume the training's MLflow run, and lock its checkpoint folder for this process.

    Raises:
        InputError: if another process is training this run.
    """
    from filelock import FileLock, Timeout

    from fgst.tracking.training import trial_tags  # lazy: MLflow takes seconds to import

    # The location of the data set does not affect the results, so a moved data set does not prevent resuming.
    key = f"{config.digest(without=('data.dataset',))[:16]}-{dataset.digest[:16]}"
    experiment = store.experiment(f"{dataset.name} {config.data.benchmark}")
    run = _run_to_resume(store, experiment, key, root, resume=resume, tracking_uri=tracking_uri)
    if run is None:
        if resume:
            print("no unfinished training with these settings; starting a new one", file=sys.stderr)
        name = f"{config.data.modality} K={config.model.focal_joints} s{config.train.seed}"
        tags = trial_tags(config, dataset.name, dataset.digest)
        run = store.start(experiment, key, name, {**tags, "mlflow.source.name": "fgst.train"})
    folder = root / run.run_id
    durable.make_folder(folder)
    try:
        lock = FileLock(folder / "lock", timeout=0).acquire()
    except Timeout:
        raise InputError(f"run {run.run_id} is being trained by another process") from None
    with lock:
        with run.killed_if_interrupted():
            run.enable_spool(folder / "spool")
            run.log_settings(config.flat())
            run.log_dataset(dataset.name, dataset.digest, dataset.location)
        print(f"run {run.run_id} in {store.uri}", file=sys.stderr)
        yield run, folder


def _run_to_resume(
    store: TrackingStore, experiment: str, key: str, checkpoints: Path, *, resume: str | None, tracking_uri: str | None
) -> TrackedRun | None:
    """Find the run named by ``--resume``; ``None`` means a new run.

    Raises:
        InputError: if that run is finished, or if it has other settings or other data.
    """
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
                continue  # another process is training it
            return store.reopen(store.run(run_id))
        return None
    run = store.run(store.full_run_id(resume))
    if run.info.status == "FINISHED":
        raise InputError(f"run {resume} is finished; evaluate it with: {_evaluate_command(resume, tracking_uri)}")
    if run.data.tags.get(Tags.TRIAL_ID) != key:
        raise InputError(f"run {resume} was started with other settings or other data; use the same ones to resume it")
    return store.reopen(run)


def _progress_bar(epochs: int) -> tuple[Progress, Callable[[int, int, int], None]]:
    """Return a progress bar on stderr, shown on terminals only, and the ``on_step`` callback that updates it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    progress = Progress(
        TextColumn("epoch {task.fields[epoch]}/" + str(epochs)),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = progress.add_task("", epoch=1, total=None)

    def on_step(epoch: int, step: int, steps: int) -> None:
        progress.update(task, total=steps * epochs, completed=(epoch - 1) * steps + step, epoch=epoch)

    return progress, on_step


def _consume(
    run: TrackedRun, results: Iterator[EpochResult], classes: tuple[str, ...], progress: Progress, epochs: int
) -> EpochResult:
    """Record every epoch in MLflow, print it, and return the last one."""
    from fgst.tracking.training import track  # lazy: MLflow takes seconds to import

    for result in track(run, results, classes):
        if result.is_replay:
            line = f"resuming after epoch {result.epoch}"
        else:
            line = _format_epoch(result.epoch, epochs, result.metrics)
        progress.console.print(line, highlight=False)
    return result


def _format_epoch(epoch: int, epochs: int, metrics: dict[str, float]) -> str:
    parts = [f"epoch {epoch:3d}/{epochs}", f"loss {metrics['train/loss']:.4f}", f"train {metrics['train/top1']:5.1f} %"]
    for split in ("val", "test"):
        if f"{split}/top1" in metrics:
            parts.append(f"{split} {metrics[f'{split}/top1']:5.1f} %")
    parts.append(f"{metrics['clips_per_second']:.0f} clips/s")
    return "  ".join(parts)


def _evaluate_command(run_id: str, tracking_uri: str | None) -> str:
    store = ["--tracking-uri", tracking_uri] if tracking_uri else []
    return format_command(["python", "-m", "fgst.evaluate", "--run-id", run_id, *store])


def _resume_command(argv: Sequence[str], run_id: str) -> str:
    """Return this command with ``--resume RUN_ID`` in place of any other ``--resume``."""
    words: list[str] = []
    skip_next = False
    for word in argv:
        if skip_next:
            skip_next = False
        elif word == "--resume":
            skip_next = True
        elif not word.startswith("--resume="):
            words.append(word)
    return format_command(["python", "-m", "fgst.train", *words, "--resume", run_id])
