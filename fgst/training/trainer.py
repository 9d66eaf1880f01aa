"""Training of one trial: ``fit(config)`` yields one :class:`EpochResult` per epoch.

It knows neither Ray nor MLflow: they, the progress bar and the tests consume what it yields. Everything random
follows from (seed, epoch), so a training that is stopped and resumed ends with the same bits as one that was not,
also where it was stopped in the middle of an epoch.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fgst.config import TrainConfig, TrialConfig
from fgst.data.dataset import ArrowDataset
from fgst.data.loader import EVALUATION_BATCH, ClipLoader, choose_device, make_loaders
from fgst.data.recipes import RECIPE_DEFAULTS
from fgst.errors import InputError, Preempted
from fgst.evaluation.metrics import Scores
from fgst.model import FGSTFormer
from fgst.model.card import ModelCard, load_weights
from fgst.training.checkpoint import latest_checkpoint, load_state, save_checkpoint


class DivergedError(RuntimeError):
    """The loss is not a finite number any more."""


@dataclass(frozen=True)
class EpochResult:
    """What an epoch gave.

    Attributes:
        epoch: how many epochs are done, from 1.
        metrics: by MLflow name: ``train/loss``, ``train/top1`` (on the augmented clips, while learning), ``lr``,
            ``clips_per_second`` of the training steps, ``minutes`` since the beginning, interruptions left out;
            ``val/loss``, ``val/top1``, ``val/top5`` unless everything trains;
            ``test/loss``, ``test/top1``, ``test/top5`` at the last epoch only. Accuracies in %.
        test: the scores of the test clips, at the last epoch only: they are measured once, never chosen by.
        val: the scores of the validation clips, at the last epoch, unless everything trains.
        checkpoint: directory of this epoch's checkpoint, if checkpoints are kept.
        replayed: the epoch was trained before an interruption and is told again, in case nobody heard.
    """

    epoch: int
    metrics: dict[str, float]
    test: Scores | None = None
    val: Scores | None = None
    checkpoint: Path | None = None
    is_replay: bool = False


def resolve(config: TrialConfig, dataset: ArrowDataset) -> TrialConfig:
    """Fill in what the configuration leaves to the data set: benchmark, recipe, frames, repeat, absolute path.

    Raises:
        InputError: if the configuration does not fit the data set; the message names the field.
    """
    config.model.check_skeleton(dataset.skeleton)
    return fill_in(config, dataset)


def fill_in(config: TrialConfig, dataset: ArrowDataset) -> TrialConfig:
    """What :func:`resolve` does, for a network that need not fit yet: a sweep sets more of it."""
    data, train = config.data, config.train
    recipe = data.recipe or dataset.recipe
    data = dataclasses.replace(
        data,
        dataset=dataset.location,
        benchmark=dataset.benchmark(data.benchmark or "").name,
        recipe=recipe,
        frames=data.frames or RECIPE_DEFAULTS[recipe].frames,
    )
    train = dataclasses.replace(train, repeat=train.repeat or RECIPE_DEFAULTS[recipe].repeat)
    return dataclasses.replace(config, data=data, train=train)


def learning_rate(config: TrainConfig, progress: float) -> float:
    """The rate after ``progress`` epochs (fractions allowed): linear warm-up, then steps or half a cosine."""
    share = progress / config.epochs
    if share < config.warmup:
        return config.lr * share / config.warmup
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * (share - config.warmup) / (1 - config.warmup)))
    return config.lr * config.decay_factor ** sum(share >= at for at in config.decay_at)


def score(model: FGSTFormer, store: ClipLoader, batch_size: int = EVALUATION_BATCH) -> Scores:
    """The network's scores of every clip of a store, without augmentation, in float32 whatever it was trained in."""
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        parts = [model(b.clips, b.person_mask).float().cpu().numpy() for b in store.evaluation_batches(batch_size)]
    model.train(was_training)
    return Scores(store.clip_ids, store.labels.cpu().numpy(), np.concatenate(parts), store.split, store.digest)


def fit(
    config: TrialConfig,
    *,
    dataset: ArrowDataset | None = None,
    device: str = "auto",
    checkpoints: Path | None = None,
    on_step: Callable[[int, int, int], None] | None = None,
    micro_batches: int = 1,
    leave: Callable[[], bool] = lambda: False,
) -> Iterator[EpochResult]:
    """Train a trial, epoch by epoch.

    Args:
        config: the trial; what it leaves open is resolved against the data set.
        dataset: the open data set, if the caller has it; otherwise ``config.data.dataset`` is opened.
        device: "auto", "cpu", "cuda" …
        checkpoints: folder that holds this trial's checkpoint. If one is there, training goes on from it, after
            yielding its epoch once more; after each epoch it is replaced.
        on_step: told (epoch from 1, steps done, steps of the epoch).
        micro_batches: parts that each batch goes through the network in, one after another, their gradients added up:
            takes less memory. Batch norm then sees the parts, so the figures are not those of whole batches.
        leave: asked after each step; once it says yes, what was learnt so far is kept and :class:`Leaving` raised.

    Yields:
        an :class:`EpochResult` per epoch, after its checkpoint is on disk.

    Raises:
        InputError: if configuration, data set and checkpoint do not fit together.
        DivergedError: if the loss stops being a number.
        Leaving: when ``leave`` says so.
    """
    if dataset is None:
        dataset = ArrowDataset(config.data.dataset)
    config = resolve(config, dataset)
    train = config.train
    assert train.repeat is not None
    where = choose_device(device)
    stores = make_loaders(dataset, config.data, where)
    card = ModelCard(
        config,
        dataset.skeleton,
        dataset.classes,
        dataset.max_persons,
        dataset.name,
        dataset.digest,
        dataset.preparation,
    )
    torch.manual_seed(_seed(train.seed, 0))
    model = card.build().to(where)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=train.lr, momentum=train.momentum, nesterov=train.momentum > 0,
        weight_decay=train.weight_decay,
    )  # fmt: skip

    # What is scored and kept: the network, or the moving average of its weights.
    scored = copy.deepcopy(model) if train.ema else model

    done, metrics, begun = 0, {"minutes": 0.0}, _Begun()
    found = latest_checkpoint(checkpoints) if checkpoints else None
    if found is not None:
        done, metrics, begun = _restore(found, card, model, scored, optimizer, begun)
        if done:
            yield _finished(done, metrics, scored, stores, train, found, is_replay=True)

    def save(epoch: int, step: int = 0) -> Path | None:
        if checkpoints is None:
            return None
        state = {"epoch": epoch, "optimizer": optimizer.state_dict(), "metrics": metrics}
        if scored is not model:
            state["weights"] = model.state_dict()
        if step:
            state["begun"] = dataclasses.asdict(begun)
        return save_checkpoint(checkpoints, epoch, scored, card, state, step)

    steps = stores["train"].steps(train.batch_size, train.repeat)
    for epoch in range(done + 1, train.epochs + 1):
        if leave():
            raise Preempted
        began = time.perf_counter()
        torch.manual_seed(_seed(train.seed, epoch))
        generator = torch.Generator(where).manual_seed(_seed(train.seed, epoch, 1))
        model.train()
        loss_sum, correct = begun.loss_sum.to(where), begun.correct.to(where)
        clips = begun.clips
        lr = 0.0
        for step, batch in enumerate(stores["train"].training_batches(train.batch_size, train.repeat, generator)):
            # Steps that were done before an interruption: their batches are drawn again, which costs next to nothing.
            if step < begun.steps:
                continue
            if begun.steps and step == begun.steps:
                _set_random_state(begun, where)
            # The middle of the step: no step is without a rate, and the last one of an epoch still belongs to it.
            lr = learning_rate(train, epoch - 1 + (step + 0.5) / steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad(set_to_none=True)
            for part in batch.micro_batches(micro_batches):
                with torch.autocast(where.type, torch.bfloat16, enabled=train.precision == "bfloat16"):
                    logits = model(part.clips, part.person_mask).float()
                loss = F.cross_entropy(logits, part.labels, label_smoothing=train.label_smoothing)
                (loss * (len(part.labels) / len(batch.labels))).backward()
                loss_sum += loss.detach() * len(part.labels)
                correct += (logits.detach().argmax(1) == part.labels).sum()
            optimizer.step()
            if scored is not model:
                _follow(scored, model, train.ema, (epoch - 1) * steps + step)
            clips += len(batch.labels)
            if on_step is not None:
                on_step(epoch, step + 1, steps)
            if step + 1 < steps and leave():
                seconds = begun.seconds + time.perf_counter() - began
                begun = _Begun(step + 1, clips, seconds, loss_sum.cpu(), correct.cpu(), *_random_state(where))
                save(epoch - 1, step + 1)
                raise Preempted
        minutes = metrics["minutes"]
        metrics = {"train/loss": float(loss_sum) / clips, "train/top1": 100 * float(correct) / clips, "lr": lr}
        _require_finite(metrics, "train", epoch)
        seconds = begun.seconds + time.perf_counter() - began
        val = score(scored, stores["val"]) if "val" in stores else None
        if val is not None:
            metrics |= _accuracies("val", val)
            _require_finite(metrics, "val", epoch)  # the weights after the epoch's last step, which train/loss missed
        minutes += (begun.seconds + time.perf_counter() - began) / 60
        metrics |= {"clips_per_second": clips / seconds, "minutes": minutes}
        begun = _Begun()
        saved = save(epoch)
        yield _finished(epoch, metrics, scored, stores, train, saved, val)


@dataclass(frozen=True)
class _Begun:
    """The part of an epoch that was trained before an interruption."""

    steps: int = 0
    clips: int = 0
    seconds: float = 0.0
    loss_sum: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    correct: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    random: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))
    random_of_device: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.uint8))


def _random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """What dropout draws from, on the host and on the device."""
    of_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.empty(0, dtype=torch.uint8)
    return torch.get_rng_state(), of_device


def _set_random_state(begun: _Begun, device: torch.device) -> None:
    torch.set_rng_state(begun.random)
    if device.type == "cuda" and len(begun.random_of_device):
        torch.cuda.set_rng_state(begun.random_of_device, device)


@torch.no_grad()
def _follow(average: FGSTFormer, model: FGSTFormer, decay: float, step: int) -> None:
    """Move the average of the weights and running statistics one step on; quicker at first, to forget the start."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, weight)
        else:
            mean.copy_(value)


def _finished(
    epoch: int,
    metrics: dict[str, float],
    model: FGSTFormer,
    stores: dict[str, ClipLoader],
    train: TrainConfig,
    checkpoint: Path | None,
    val: Scores | None = None,
    *,
    is_replay: bool = False,
) -> EpochResult:
    if epoch < train.epochs:
        return EpochResult(epoch, metrics, checkpoint=checkpoint, is_replay=is_replay)
    test = score(model, stores["test"])
    metrics = metrics | _accuracies("test", test)
    _require_finite(metrics, "test", epoch)
    if val is None and "val" in stores:
        val = score(model, stores["val"])
    return EpochResult(epoch, metrics, test, val, checkpoint, is_replay)


def _require_finite(metrics: dict[str, float], split: str, epoch: int) -> None:
    loss = metrics[f"{split}/loss"]
    if not math.isfinite(loss):
        raise DivergedError(f"the loss is {loss} in epoch {epoch}, {split} clips; try a lower train.lr")


def _accuracies(split: str, scores: Scores) -> dict[str, float]:
    return {f"{split}/loss": scores.loss(), f"{split}/top1": scores.top(1), f"{split}/top5": scores.top(5)}


def _restore(
    checkpoint: Path,
    card: ModelCard,
    model: FGSTFormer,
    scored: FGSTFormer,
    optimizer: torch.optim.Optimizer,
    begun: _Begun,
) -> tuple[int, dict[str, float], _Begun]:
    """Put a checkpoint's weights and optimiser state in place.

    Returns:
        its epoch, that epoch's metrics, and what was trained of the next one.
    """
    found = ModelCard.read(checkpoint / "config.json")
    for name, value in card.config.flat().items():
        was = found.config.flat()[name]
        # The same clips may lie elsewhere by now (another node, a moved folder): the digest is what counts.
        if was != value and name != "data.dataset":
            raise InputError(f"{checkpoint}: was trained with {name} = {was}, not {value}; use that or begin anew")
    if found.dataset_digest != card.dataset_digest:
        raise InputError(f"{checkpoint}: was trained on other data (data set digest {found.dataset_digest[:12]}…)")
    state: dict[str, Any] = load_state(checkpoint)
    load_weights(checkpoint, scored)
    try:
        if scored is not model:
            model.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        if "begun" in state:
            begun = _Begun(**state["begun"])
        return int(state["epoch"]), dict(state["metrics"]), begun
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        path = checkpoint / "state.pt"
        raise InputError(f"{path}: is not of this training ({error!r}); remove {checkpoint}") from None


def _seed(*entropy: int) -> int:
    """One 63-bit seed from several numbers, so that (seed 1, epoch 2) and (seed 2, epoch 1) have nothing in common."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
