"""Cost of a trial: parameters, FLOPs, latency, memory, and the time of a training step."""

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
from fgst.data.dataset import ArrowDataset
from fgst.data.loader import Batch, choose_device
from fgst.data.skeleton import Skeleton
from fgst.model import FGSTFormer
from fgst.training.trainer import fit

LATENCY_PASSES = 10
WARM_UP_PASSES = 2
MAX_STEP_SECONDS = 2.0  # the batch of a timed step is reduced to stay within this
MAX_TIMING_SECONDS = 8.0  # no further step is timed after this
# Bytes of activations that take as long as a GFLOP of the forward pass, on a CPU core. With this value, step times of
# the small preset, of half and twice its width, and of the paper's network predict each other within 10 %.
BYTES_PER_GFLOP = 22 * 2**20


@dataclass(frozen=True)
class ModelCost:
    """Size of a network.

    Attributes:
        parameters: number of trained values.
        gflops: 10⁹ floating-point operations of the forward pass of one clip with the data set's maximum number of
            persons. Matrix products and convolutions only; a multiply-add counts as two operations.
    """

    parameters: int
    gflops: float


@dataclass(frozen=True)
class _PersonCost:
    """Cost of the forward pass of one clip with one person: parameters, FLOPs, bytes saved for the backward pass."""

    parameters: int
    flops: int
    saved_bytes: int


def model_cost(config: TrialConfig, dataset: ArrowDataset) -> ModelCost:
    """Count parameters and FLOPs of a trial's network for the clips of a data set.

    Raises:
        InputError: if the network does not fit the skeleton.
    """
    cost = _person_cost(config, dataset)
    return ModelCost(cost.parameters, dataset.max_persons * cost.flops / 1e9)


def activation_bytes(config: TrialConfig, dataset: ArrowDataset) -> int:
    """Count the bytes that the forward pass of one clip saves for the backward pass.

    The clip has the maximum number of persons, in float32: an upper bound for bfloat16. Temporary tensors of either
    pass are not included.
    """
    return dataset.max_persons * _person_cost(config, dataset).saved_bytes


def work_per_clip(config: TrialConfig, dataset: ArrowDataset) -> float:
    """Estimate the work of a training step per clip: GFLOPs plus memory traffic, converted by ``BYTES_PER_GFLOP``."""
    return model_cost(config, dataset).gflops + activation_bytes(config, dataset) / BYTES_PER_GFLOP


def data_bytes(data: DataConfig, dataset: ArrowDataset) -> int:
    """Count the bytes of the frames of all splits, which a trial stores on its GPU if they fit."""
    splits, columns = dataset.splits_for(data), dataset.columns
    rows = np.concatenate([splits.train, splits.val, splits.test])
    frames = columns["num_frames"][rows].astype(np.int64) @ columns["num_persons"][rows]
    return int(frames) * dataset.skeleton.num_joints * 3 * 4


def _person_cost(config: TrialConfig, dataset: ArrowDataset) -> _PersonCost:
    config = resolve(config, dataset)
    assert config.data.frames is not None
    return _measure_forward_pass(config.model, dataset.skeleton, dataset.num_classes, config.data.frames)


@lru_cache(maxsize=1024)
def _measure_forward_pass(config: ModelConfig, skeleton: Skeleton, classes: int, frames: int) -> _PersonCost:
    """Measure a real pass of one clip with one person.

    Autocast does not support the meta device, and fake tensors take ten times as long as the arithmetic.
    """
    state = torch.get_rng_state()  # the weights are discarded, so creating them must not advance the generator
    model = FGSTFormer(config, skeleton, classes, frames=frames)
    torch.set_rng_state(state)
    weights = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    saved: dict[int, int] = {}  # bytes by storage address: two views of a tensor share one storage

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor)
    with torch.enable_grad(), hooks, FlopCounterMode(display=False) as counter:
        scores = model(torch.zeros(1, 1, frames, skeleton.num_joints, 3))
    del scores  # alive until here, so that the graph keeps all storages and no address is reused
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return _PersonCost(parameters, counter.get_total_flops(), sum(saved.values()))


def latency_ms(model: FGSTFormer, batch: Batch) -> float:
    """Measure the forward pass of the batch's first clip with all of its persons, as in scoring.

    The model is in evaluation mode, in float32, on the batch's device; its mode is restored afterwards.

    Returns:
        Milliseconds: the median of ten passes, after two to warm up.
    """
    clip, all_persons = batch.clips[:1], torch.ones_like(batch.person_mask[:1])
    was_training, seconds = model.training, []
    model.eval()
    try:
        with torch.inference_mode():
            for _ in range(WARM_UP_PASSES + LATENCY_PASSES):
                synchronize(clip.device)
                start = time.perf_counter()
                model(clip, all_persons)
                synchronize(clip.device)
                seconds.append(time.perf_counter() - start)
    finally:
        model.train(was_training)
    return 1000 * statistics.median(seconds[WARM_UP_PASSES:])


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has completed all queued work; does nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _StopTraining(Exception):
    """Ends the training after the last step that is needed."""


def training_steps(
    config: TrialConfig,
    dataset: ArrowDataset,
    device: str,
    *,
    max_steps: int,
    should_continue: Callable[[int], bool],
) -> None:
    """Run a few training steps exactly as :func:`fgst.training.trainer.fit` does, and discard the result.

    Args:
        config: settings of the trial.
        dataset: the clips to train on.
        device: device of the trial: cpu, cuda …
        max_steps: maximum number of steps.
        should_continue: called after each step with the number of steps so far (on a GPU: of queued steps); returns
            whether to run another one.

    Raises:
        InputError: if the configuration does not fit the data set.
    """
    clips, required = len(dataset.splits_for(config.data).train), max_steps * config.train.batch_size
    # With enough passes per epoch, all steps are in one epoch: the work between epochs must not be timed.
    config = config.with_values({"train.repeat": -(-required // clips)})
    done = 0

    def on_step(epoch: int, step: int, steps: int) -> None:
        nonlocal done
        done += 1
        if not should_continue(done) or done == max_steps:
            raise _StopTraining

    try:
        for _ in fit(config, dataset=dataset, device=device, on_step=on_step):
            pass
    except _StopTraining:
        pass


@dataclass(frozen=True)
class Calibration:
    """A timed training step, from which the time of other steps follows.

    Attributes:
        seconds: duration of the step.
        clips: its batch size.
        work: work per clip, see :func:`work_per_clip`.
        floor: seconds that a step takes at least, however small it is.
    """

    seconds: float
    clips: int
    work: float
    floor: float

    def step_seconds(self, clips: int, work: float) -> float:
        """Predict the seconds of a step with this batch size and work per clip: proportional, with a lower bound."""
        return max(self.floor, self.seconds * clips * work / (self.clips * self.work))


def calibrate(config: TrialConfig, dataset: ArrowDataset, device: str) -> Calibration:
    """Time training steps of a trial on batches of its data set; takes about ten seconds at most."""
    start, torch_device = time.perf_counter(), choose_device(device)

    def fastest_step(clips: int) -> float:
        """Return the seconds of the faster one of two steps, after one to warm up."""
        timestamps: list[float] = []

        def should_continue(done: int) -> bool:
            synchronize(torch_device)
            timestamps.append(time.perf_counter())
            return done == 1 or timestamps[-1] - start < MAX_TIMING_SECONDS

        batch = config.with_values({"train.batch_size": clips})
        training_steps(batch, dataset, device, max_steps=3, should_continue=should_continue)
        return min(after - before for before, after in itertools.pairwise(timestamps))

    floor = fastest_step(2)
    clips = max(2, min(config.train.batch_size, int(2 * MAX_STEP_SECONDS / floor)))
    return Calibration(fastest_step(clips), clips, work_per_clip(config, dataset), floor)
