"""The training loop: :func:`fit` trains one trial and yields an :class:`EpochResult` per epoch.

It is independent of Ray and MLflow: both consume its results, as do the progress bar and the tests. All randomness
derives from (seed, epoch), so a training that is stopped and resumed, even within an epoch, ends with exactly the same
bits as one that was not.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from fgst.config import TrainConfig, TrialConfig, resolve
from fgst.data.dataset import ArrowDataset
from fgst.data.loader import Batch, choose_device, make_loaders
from fgst.errors import DivergedError, InputError, Preempted
from fgst.evaluation.metrics import NotFiniteError, Scores
from fgst.evaluation.scoring import score
from fgst.integrity import DamagedFileError
from fgst.model import FGSTFormer, ModelCard
from fgst.model.card import CARD, load_weights
from fgst.training.checkpoint import STATE, find_checkpoints, load_state, progress, save_checkpoint
from fgst.training.optimizer import make_optimizer
from fgst.training.state import NUMBER, PartialEpoch, check_like

logger = logging.getLogger(__name__)

FIRST_ROTATION_RANGE = 0.15

OnStep = Callable[[int, int, int], None]


@dataclass(frozen=True)
class EpochResult:
    """Metrics, scores and checkpoint of one epoch.

    Attributes:
        epoch: number of completed epochs, from 1.
        metrics: values by MLflow name. ``train/loss`` and ``train/top1`` (on augmented clips, during training);
            ``train/grad_norm`` and ``train/grad_norm_max`` (median and maximum over the steps of the norm of the whole
            gradient, before it is clipped); ``lr`` of the last step; ``clips_per_second`` of the training steps;
            ``minutes`` of training so far, excluding interruptions; ``val/loss``, ``val/top1``, ``val/top5`` unless
            protocol "paper" trains on all clips; ``test/loss``, ``test/top1``, ``test/top5`` after the last epoch only.
            Accuracies in %.
        test: scores of the test clips, after the last epoch only: test clips are never used for selection.
        val: scores of the validation clips, after the last epoch, unless protocol "paper" trains on all clips.
        checkpoint: directory of this epoch's checkpoint, if checkpoints are saved.
        is_replay: the epoch was trained before an interruption and its result is yielded a second time, in case the
            consumer missed it.
    """

    epoch: int
    metrics: dict[str, float]
    test: Scores | None = None
    val: Scores | None = None
    checkpoint: Path | None = None
    is_replay: bool = False


def fit(
    config: TrialConfig,
    *,
    dataset: ArrowDataset | None = None,
    device: str = "auto",
    checkpoints: Path | None = None,
    on_step: OnStep | None = None,
    micro_batches: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[EpochResult]:
    """Train a trial epoch by epoch.

    Args:
        config: the trial; it is resolved against the data set (see :func:`fgst.config.resolve`) if it is not yet.
        dataset: the open data set; by default ``config.data.dataset`` is opened.
        device: "auto", "cpu", "cuda" …
        checkpoints: folder of this trial's checkpoint, which is replaced after each epoch. If it contains one, training
            resumes from it, and the result of its epoch is yielded first, as a replay.
        on_step: called after each step with the epoch (from 1), the completed steps and the number of steps.
        micro_batches: number of parts in which each batch passes through the network; their gradients are added up.
            This reduces the peak memory. Batch norm then normalizes each part separately, so results differ from those
            of whole batches.
        should_stop: polled before each epoch and after each step; once it returns true, the training saves its progress
            and raises :class:`fgst.errors.Preempted`.

    Yields:
        The result of each epoch, after its checkpoint has been saved.

    Raises:
        InputError: if configuration, data set and checkpoint do not match.
        DivergedError: if the loss or the gradient is no longer finite.
        Preempted: as requested by ``should_stop``.
    """
    if dataset is None:
        dataset = ArrowDataset(config.data.dataset)
    trainer = _Trainer(resolve(config, dataset), dataset, choose_device(device), checkpoints, micro_batches)
    checkpoint = trainer.restore_latest(checkpoints) if checkpoints else None
    if checkpoint is not None and trainer.epochs_done:
        yield trainer.result(checkpoint, is_replay=True)
    while trainer.epochs_done < config.train.epochs:
        if should_stop():
            raise Preempted
        yield trainer.run_epoch(on_step, should_stop)


def learning_rate(config: TrainConfig, progress: float) -> float:
    """Return the learning rate after ``progress`` epochs, which may be fractional (§4.2).

    It rises linearly during the warm-up and then follows the schedule: steps of ``decay_factor``, or half a cosine.
    """
    share = progress / config.epochs
    if share < config.warmup:
        return config.lr * share / config.warmup
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * (share - config.warmup) / (1 - config.warmup)))
    return config.lr * config.decay_factor ** sum(share >= at for at in config.decay_at)


def rotation_range(config: TrainConfig, progress: float) -> float:
    """Return the range of the random rotations after ``progress`` epochs, as a fraction of the recipe's.

    Within the ramp it grows linearly, from ``FIRST_ROTATION_RANGE`` to 1, so that the network first learns the actions
    from nearly unrotated clips.
    """
    ramp = config.rotation_ramp * config.epochs
    if progress >= ramp:
        return 1.0
    return FIRST_ROTATION_RANGE + (1 - FIRST_ROTATION_RANGE) * progress / ramp


@torch.no_grad()
def update_ema(average: FGSTFormer, model: FGSTFormer, decay: float, step: int) -> None:
    """Update an exponential moving average of weights and running statistics after ``step`` (from 0) in place.

    The decay is min(decay, (1 + step) / (10 + step)): smaller at first, so that the initial weights fade quickly.
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(value, weight)
        else:
            mean.copy_(value)


class _Trainer:
    """State of one training: network, optimizer, clips and progress."""

    def __init__(
        self,
        config: TrialConfig,
        dataset: ArrowDataset,
        device: torch.device,
        checkpoints: Path | None,
        micro_batches: int,
    ) -> None:
        self.config, self.device, self.checkpoints, self.micro_batches = (
            config.train,
            device,
            checkpoints,
            micro_batches,
        )
        assert self.config.repeat is not None, "the configuration is resolved"
        self.repeat = self.config.repeat
        self.loaders = make_loaders(dataset, config.data, device)
        self.steps = self.loaders["train"].steps(self.config.batch_size, self.repeat)
        self.card = ModelCard.describe(config, dataset)
        torch.manual_seed(_derive_seed(self.config.seed, 0))
        self.model = self.card.build().to(device)
        self.optimizer = make_optimizer(self.model, self.config)
        # The network that is evaluated and saved: the trained one, or the moving average of its weights.
        self.evaluated = copy.deepcopy(self.model) if self.config.ema else self.model
        self.epochs_done = 0
        self.metrics: dict[str, float] = {"minutes": 0.0}
        self.partial = PartialEpoch()

    def run_epoch(self, on_step: OnStep | None, should_stop: Callable[[], bool]) -> EpochResult:
        """Train one epoch, or the rest of an interrupted one, then validate and save."""
        epoch, earlier, started = self.epochs_done + 1, self.partial.seconds, time.perf_counter()
        lr = self._train_epoch(epoch, started, on_step, should_stop)
        partial = self.partial
        seconds = earlier + time.perf_counter() - started
        grad_norms = torch.stack(partial.grad_norms).cpu()
        metrics = {
            "train/loss": float(partial.loss_sum) / partial.clips,
            "train/top1": 100 * float(partial.correct) / partial.clips,
            "train/grad_norm": float(grad_norms.median()),
            "train/grad_norm_max": float(grad_norms.max()),
            "lr": lr,
        }
        self._require_finite(metrics, "train", epoch)
        val = self._score("val", epoch) if "val" in self.loaders else None
        if val is not None:
            metrics |= _accuracies("val", val)
            # train/loss does not depend on the weights after the epoch's last step; val/loss does.
            self._require_finite(metrics, "val", epoch)
        minutes = self.metrics["minutes"] + (earlier + time.perf_counter() - started) / 60
        self.metrics = metrics | {"clips_per_second": partial.clips / seconds, "minutes": minutes}
        self.epochs_done, self.partial = epoch, PartialEpoch()
        return self.result(self.save(), val)

    def _train_epoch(
        self, epoch: int, started: float, on_step: OnStep | None, should_stop: Callable[[], bool]
    ) -> float:
        """Run the remaining steps of an epoch and return the last learning rate.

        Raises:
            Preempted: if ``should_stop`` returns true, after the progress has been saved.
        """
        config, partial, earlier = self.config, self.partial, self.partial.seconds
        torch.manual_seed(_derive_seed(config.seed, epoch))
        generator = torch.Generator(self.device).manual_seed(_derive_seed(config.seed, epoch, 1))
        self.model.train()
        partial.loss_sum, partial.correct = partial.loss_sum.to(self.device), partial.correct.to(self.device)
        partial.grad_norms = [norm.to(self.device) for norm in partial.grad_norms]
        resumed_at, lr = partial.steps, 0.0
        batches = self.loaders["train"].training_batches(
            config.batch_size,
            self.repeat,
            generator,
            lambda step: rotation_range(config, epoch - 1 + (step + 0.5) / self.steps),
        )
        for step, batch in enumerate(batches):
            # The batches before an interruption are drawn again and skipped, which is cheap.
            if step < resumed_at:
                continue
            if resumed_at and step == resumed_at:
                partial.restore_rng(self.device)
            # Evaluated at the middle of the step: the first step has a positive rate, the last one this epoch's.
            lr = learning_rate(config, epoch - 1 + (step + 0.5) / self.steps)
            self._train_step(batch, lr)
            if self.evaluated is not self.model:
                update_ema(self.evaluated, self.model, config.ema, (epoch - 1) * self.steps + step)
            partial.steps, partial.clips = step + 1, partial.clips + len(batch.labels)
            if on_step is not None:
                on_step(epoch, step + 1, self.steps)
            if step + 1 < self.steps and should_stop():
                partial.seconds = earlier + time.perf_counter() - started
                self.save()
                raise Preempted
        return lr

    def _train_step(self, batch: Batch, lr: float) -> None:
        """Update the weights with the gradient of one batch, and add its loss and accuracy to the epoch's."""
        self.optimizer.set_lr(lr)
        self.optimizer.zero_grad()
        for part in batch.micro_batches(self.micro_batches):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
                logits = self.model(part.clips, part.person_mask).float()
            loss = F.cross_entropy(logits, part.labels, label_smoothing=self.config.label_smoothing)
            (loss * (len(part.labels) / len(batch.labels))).backward()
            self.partial.loss_sum += loss.detach() * len(part.labels)
            self.partial.correct += (logits.detach().argmax(1) == part.labels).sum()
        gradients = [weight.grad for weight in self.model.parameters() if weight.grad is not None]
        norm = get_total_norm(gradients)
        self.partial.grad_norms.append(norm)  # not read before the end of the epoch: a GPU would have to wait for it
        if self.config.clip_norm:
            clip_grads_with_norm_(self.model.parameters(), self.config.clip_norm, norm)
        self.optimizer.step()

    def result(self, checkpoint: Path | None, val: Scores | None = None, *, is_replay: bool = False) -> EpochResult:
        """Return the result of the last completed epoch; after the training's last epoch, also score the test clips."""
        epoch = self.epochs_done
        if epoch < self.config.epochs:
            return EpochResult(epoch, self.metrics, checkpoint=checkpoint, is_replay=is_replay)
        test = self._score("test", epoch)
        metrics = self.metrics | _accuracies("test", test)
        self._require_finite(metrics, "test", epoch)
        if val is None and "val" in self.loaders:
            val = self._score("val", epoch)
        return EpochResult(epoch, metrics, test, val, checkpoint, is_replay)

    def _score(self, split: str, epoch: int) -> Scores:
        """Score a split at the end of an epoch.

        Raises:
            DivergedError: if a score is not finite.
        """
        try:
            return score(self.evaluated, self.loaders[split])
        except NotFiniteError as error:
            raise self._diverged(f"epoch {epoch}, {split} clips: {error}") from None

    def save(self) -> Path | None:
        """Replace the checkpoint with the current state; return its directory."""
        if self.checkpoints is None:
            return None
        state = {"epoch": self.epochs_done, "optimizer": self.optimizer.state_dict(), "metrics": self.metrics}
        if self.evaluated is not self.model:
            state["weights"] = self.model.state_dict()
        if self.partial.steps:
            state["begun"] = self.partial.to_state(self.device)
        return save_checkpoint(
            self.checkpoints, self.epochs_done, self.evaluated, self.card, state, step=self.partial.steps
        )

    def restore_latest(self, folder: Path) -> Path | None:
        """Load the newest checkpoint in ``folder`` that is intact; return its directory, ``None`` without checkpoints.

        Raises:
            DamagedFileError: if all checkpoints are damaged.
            InputError: if a checkpoint belongs to another configuration or data set.
        """
        damage: list[DamagedFileError] = []
        for checkpoint in find_checkpoints(folder):
            try:
                self.restore(checkpoint)
            except DamagedFileError as error:
                damage.append(error)
                continue
            for fault in damage:
                logger.warning("%s; resuming from %s instead", fault, checkpoint.name)
            return checkpoint
        if damage:
            raise DamagedFileError(f"{damage[0]}; to start this training over, remove {folder}")
        return None

    def restore(self, checkpoint: Path) -> None:
        """Load weights, optimizer state and progress from a checkpoint.

        Raises:
            DamagedFileError: if the checkpoint is damaged, or does not contain the state of this training.
            InputError: if the checkpoint belongs to another configuration or data set.
        """
        card = ModelCard.read(checkpoint / CARD)
        self._check_card(checkpoint, card)
        state = load_state(checkpoint)
        epoch, steps = progress(checkpoint.name) or (0, 0)
        try:
            if not (epoch or steps) or epoch > self.config.epochs or (steps and epoch == self.config.epochs):
                raise ValueError(f"the training ends after epoch {self.config.epochs}")
            if steps >= self.steps:
                raise ValueError(f"an epoch has {self.steps} steps")
            check_like(state, self._expected_state(epoch, steps, state))
            partial = PartialEpoch.from_state(state["begun"], self.device) if steps else PartialEpoch()
        except ValueError as error:
            raise DamagedFileError(f"{checkpoint / STATE}: is not the state of this training ({error})") from None
        load_weights(checkpoint, card, self.evaluated)
        if self.evaluated is not self.model:
            self.model.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.epochs_done, self.metrics, self.partial = epoch, state["metrics"], partial

    def _expected_state(self, epoch: int, steps: int, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return what :func:`check_like` expects of ``state.pt``, see :meth:`save`.

        Args:
            state: the state. That of an earlier version has no norms of the gradient.
        """
        metrics = {"minutes"}
        if epoch:
            metrics |= {"train/loss", "train/top1", "lr", "clips_per_second"}
            metrics |= (
                {"train/grad_norm", "train/grad_norm_max"} if "train/grad_norm" in state.get("metrics", ()) else set()
            )
            metrics |= {"val/loss", "val/top1", "val/top5"} if "val" in self.loaders else set()
        expected = {
            "epoch": epoch,
            "optimizer": self.optimizer.expected_state(epoch * self.steps + steps),
            "metrics": dict.fromkeys(metrics, NUMBER),
        }
        if self.evaluated is not self.model:
            expected["weights"] = dict(self.model.state_dict())
        if steps:  # all batches but the last have the same size
            has_norms = "grad_norms" in state.get("begun", ())
            expected["begun"] = PartialEpoch.expected_state(steps, steps * self.config.batch_size, has_norms=has_norms)
        return expected

    def _require_finite(self, metrics: Mapping[str, float], split: str, epoch: int) -> None:
        """Check a split's loss, and for the training clips also the gradient.

        Raises:
            DivergedError: if one of them is not finite.
        """
        for metric, name in (("loss", "loss"), ("grad_norm_max", "norm of the gradient")):
            value = metrics.get(f"{split}/{metric}", 0.0)
            if not math.isfinite(value):
                raise self._diverged(f"the {name} is {value} in epoch {epoch} ({split} clips)")

    def _diverged(self, what: str) -> DivergedError:
        clipping = "" if self.config.clip_norm else " or --set train.clip_norm=1"
        return DivergedError(
            f"{what}: the training diverged; try a lower train.lr (it was {self.config.lr:g}){clipping}"
        )

    def _check_card(self, checkpoint: Path, saved: ModelCard) -> None:
        saved_values = saved.config.flat()
        for name, value in self.card.config.flat().items():
            # The same data set may have moved, or be at another path on another node: its digest identifies it.
            if saved_values[name] != value and name != "data.dataset":
                raise InputError(
                    f"{checkpoint}: was trained with {name} = {saved_values[name]}, not {value}; "
                    "use that value or start a new training"
                )
        if saved.dataset_digest != self.card.dataset_digest:
            digest = saved.dataset_digest[:12]
            raise InputError(f"{checkpoint}: was trained on different data (data set digest {digest}…)")


def _accuracies(split: str, scores: Scores) -> dict[str, float]:
    return {f"{split}/loss": scores.loss(), f"{split}/top1": scores.top(1), f"{split}/top5": scores.top(5)}


def _derive_seed(*entropy: int) -> int:
    """Mix several numbers into one 63-bit seed, so that (seed 1, epoch 2) and (seed 2, epoch 1) are unrelated."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
