"""What a trial costs: parameters, FLOPs, latency, memory, and the time of a training step."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fgst.config import DataConfig, ModelConfig, TrialConfig, resolve
from fgst.data.dataset import ArrowDataset, Splits
from fgst.data.loader import Batch, choose_device
from fgst.data.skeleton import Skeleton
from fgst.model import FGSTFormer
from fgst.training.trainer import fit

LATENCY_PASSES = 10
# Of a step that is timed, at most; of all timing, after which no further step is begun.
STEP_SECONDS, PATIENCE_SECONDS = 2.0, 8.0
# Bytes kept that take as long as a GFLOP of the forward pass, on a CPU core. So the steps of the small preset, of half
# and twice its width, and of the paper's network follow from each other within 10 %.
BYTES_PER_GFLOP = 22 * 2**20


@dataclass(frozen=True)
class ModelCost:
    """What any training of a network pays for.

    Attributes:
        parameters: number of trained values.
        gflops: 10⁹ floating-point operations of the forward pass of one clip with as many persons as any clip of the
            data set; matrix products and convolutions, a multiply-add is two.
    """

    parameters: int
    gflops: float


def model_cost(config: TrialConfig, dataset: ArrowDataset) -> ModelCost:
    """Parameters and FLOPs of a trial's network for the clips of a data set.

    Raises:
        InputError: if the network does not fit the skeleton.
    """
    parameters, flops, _ = _counts(config, dataset)
    return ModelCost(parameters, dataset.max_persons * flops / 1e9)


def activation_bytes(config: TrialConfig, dataset: ArrowDataset) -> int:
    """What the forward pass of one clip, all persons there, keeps for the backward pass, in float32.

    An upper bound for bfloat16. What either pass holds for a moment only is not in it.
    """
    return dataset.max_persons * _counts(config, dataset)[2]


def work(config: TrialConfig, dataset: ArrowDataset) -> float:
    """What a training step's time goes with, for one clip: GFLOPs, and the memory traffic in their measure."""
    return model_cost(config, dataset).gflops + activation_bytes(config, dataset) / BYTES_PER_GFLOP


def data_bytes(data: DataConfig, dataset: ArrowDataset) -> int:
    """The frames of all splits: what a GPU that has room keeps of the data set."""
    splits, columns = splits_of(data, dataset), dataset.columns
    rows = np.concatenate([splits.train, splits.val, splits.test])
    frames = columns["num_frames"][rows].astype(np.int64) @ columns["num_persons"][rows]
    return int(frames) * dataset.skeleton.num_joints * 3 * 4


def _counts(config: TrialConfig, dataset: ArrowDataset) -> tuple[int, int, int]:
    config = resolve(config, dataset)
    assert config.data.frames is not None
    return _counts_of(config.model, dataset.skeleton, dataset.num_classes, config.data.frames)


@lru_cache(maxsize=1024)
def _counts_of(config: ModelConfig, skeleton: Skeleton, classes: int, frames: int) -> tuple[int, int, int]:
    """Parameters, FLOPs of one person, bytes that its forward pass keeps.

    A real pass of one clip: autocast knows no meta device, and fake tensors take ten times as long as the sums.
    """
    state = torch.get_rng_state()  # the weights drawn here are nobody's
    model = FGSTFormer(config, skeleton, classes, frames=frames)
    torch.set_rng_state(state)
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}  # by storage: two views of one are kept once

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with torch.enable_grad(), hooks, FlopCounterMode(display=False) as counter:
        scores = model(torch.zeros(1, 1, frames, skeleton.num_joints, 3))
    del scores  # until here the graph held what was kept, so that no address was used twice
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops(), sum(kept.values())


def latency_ms(model: FGSTFormer, batch: Batch) -> float:
    """Milliseconds of a forward pass of one clip with all its persons: the median of ten, after two to warm up.

    The pass is that of :func:`fgst.evaluation.scoring.score`: evaluation mode, float32, on the batch's device.
    """
    clip, everybody = batch.clips[:1], torch.ones_like(batch.person_mask[:1])
    was_training, seconds = model.training, []
    model.eval()
    try:
        with torch.inference_mode():
            for _ in range(LATENCY_PASSES + 2):
                synchronize(clip.device)
                began = time.perf_counter()
                model(clip, everybody)
                synchronize(clip.device)
                seconds.append(time.perf_counter() - began)
    finally:
        model.train(was_training)
    return 1000 * statistics.median(seconds[2:])


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def splits_of(data: DataConfig, dataset: ArrowDataset) -> Splits:
    """The clips that a training with these settings trains on, validates on and tests on."""
    validation = data.validation if data.protocol == "validation" else 0
    return dataset.splits(data.benchmark or "", validation=validation, seed=data.validation_seed)


class _EnoughError(Exception): ...


def training_steps(
    config: TrialConfig, dataset: ArrowDataset, device: str, *, most: int, more: Callable[[int], bool]
) -> None:
    """Train a few steps exactly as :func:`fgst.training.trainer.fit` does, batches included, and throw them away.

    Args:
        most: steps at most.
        more: told how many steps are done (on a GPU: asked for); whether to go on.

    Raises:
        InputError: if the configuration does not fit the data set.
    """
    clips, needed = len(splits_of(config.data, dataset).train), most * config.train.batch_size
    # Passes enough for one epoch to hold all steps: between epochs something else would be done, and timed.
    config = config.with_values({"train.repeat": -(-needed // clips)})
    done = 0

    def on_step(epoch: int, step: int, steps: int) -> None:
        nonlocal done
        done += 1
        if not more(done) or done == most:
            raise _EnoughError

    try:
        for _ in fit(config, dataset=dataset, device=device, on_step=on_step):
            pass
    except _EnoughError:
        pass


@dataclass(frozen=True)
class Calibration:
    """A training step that was timed: its seconds, its clips, their :func:`work`, and the least that a step takes."""

    seconds: float
    clips: int
    work: float
    floor: float

    def step_seconds(self, clips: int, work: float) -> float:
        """Of a step of so many clips of so much work each: in proportion, but not below the floor."""
        return max(self.floor, self.seconds * clips * work / (self.clips * self.work))


def calibrate(config: TrialConfig, dataset: ArrowDataset, device: str) -> Calibration:
    """Time training steps of a trial, with batches of its data set; about ten seconds at most."""
    began, where = time.perf_counter(), choose_device(device)

    def best(clips: int) -> float:
        """Seconds of the fastest of two steps, after one to warm up."""
        stamps: list[float] = []

        def more(done: int) -> bool:
            synchronize(where)
            stamps.append(time.perf_counter())
            return done == 1 or stamps[-1] - began < PATIENCE_SECONDS

        training_steps(config.with_values({"train.batch_size": clips}), dataset, device, most=3, more=more)
        return min(after - before for before, after in itertools.pairwise(stamps))

    floor = best(2)
    clips = max(2, min(config.train.batch_size, int(2 * STEP_SECONDS / floor)))
    return Calibration(best(clips), clips, work(config, dataset), floor)
