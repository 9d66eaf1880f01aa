"""The training loop: :func:`fit` trains one trial and yields an :class:`EpochResult` per epoch.

It is independent of Ray and MLflow: both consume its results, as do the progress bar and the tests. All randomness
derives from (seed, epoch), so a training that is stopped and resumed, even within an epoch, ends with exactly the same
bits as one that was not.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
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
from fgst.evaluation.metrics import Scores
from fgst.evaluation.scoring import score
from fgst.model import FGSTFormer, ModelCard
from fgst.model.card import load_weights
from fgst.training.checkpoint import latest_checkpoint, load_state, save_checkpoint

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
    checkpoint = latest_checkpoint(checkpoints) if checkpoints else None
    if checkpoint is not None:
        trainer.restore(checkpoint)
        if trainer.epochs_done:
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


def _no_rng_state() -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8)


@dataclass
class PartialEpoch:
    """Accumulators of the epoch in progress, and the state of the random number generators at an interruption.

    Attributes:
        steps: completed steps.
        clips: clips in these steps.
        seconds: training time before the last interruption.
        loss_sum: sum of the loss over the clips, a scalar on the training's device.
        correct: number of correctly classified clips, a scalar on the training's device.
        grad_norms: norm of each step's gradient, scalars on the training's device.
        cpu_rng_state, device_rng_state: states of the generators for dropout; empty without an interruption or a GPU.
    """

    steps: int = 0
    clips: int = 0
    seconds: float = 0.0
    loss_sum: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    correct: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    grad_norms: list[torch.Tensor] = field(default_factory=list)
    cpu_rng_state: torch.Tensor = field(default_factory=_no_rng_state)
    device_rng_state: torch.Tensor = field(default_factory=_no_rng_state)

    def to_state(self, device: torch.device) -> dict[str, Any]:
        """Return the entry ``begun`` of ``state.pt``, with the current state of the random number generators."""
        return {
            "steps": self.steps,
            "clips": self.clips,
            "seconds": self.seconds,
            "loss_sum": self.loss_sum.cpu(),
            "correct": self.correct.cpu(),
            "grad_norms": torch.stack(self.grad_norms).cpu(),
            "random": torch.get_rng_state(),
            "random_of_device": torch.cuda.get_rng_state(device) if device.type == "cuda" else _no_rng_state(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> PartialEpoch:
        """Invert :meth:`to_state`."""
        return cls(
            steps=int(state["steps"]),
            clips=int(state["clips"]),
            seconds=float(state["seconds"]),
            loss_sum=state["loss_sum"],
            correct=state["correct"],
            grad_norms=list(state.get("grad_norms", ())),  # checkpoints of earlier versions have none
            cpu_rng_state=state["random"],
            device_rng_state=state["random_of_device"],
        )

    def restore_rng(self, device: torch.device) -> None:
        """Restore the random number generators to their state at the interruption."""
        torch.set_rng_state(self.cpu_rng_state)
        if device.type == "cuda" and len(self.device_rng_state):
            torch.cuda.set_rng_state(self.device_rng_state, device)


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
        self.card = ModelCard(
            config,
            dataset.skeleton,
            dataset.classes,
            dataset.max_persons,
            dataset.name,
            dataset.digest,
            dataset.preparation,
        )
        torch.manual_seed(_derive_seed(self.config.seed, 0))
        self.model = self.card.build().to(device)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=self.config.lr,
            momentum=self.config.momentum,
            nesterov=self.config.momentum > 0,
            weight_decay=self.config.weight_decay,
        )
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
        val = score(self.evaluated, self.loaders["val"]) if "val" in self.loaders else None
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
        batches = self.loaders["train"].training_batches(config.batch_size, self.repeat, generator)
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
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
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
        test = score(self.evaluated, self.loaders["test"])
        metrics = self.metrics | _accuracies("test", test)
        self._require_finite(metrics, "test", epoch)
        if val is None and "val" in self.loaders:
            val = score(self.evaluated, self.loaders["val"])
        return EpochResult(epoch, metrics, test, val, checkpoint, is_replay)

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

    def restore(self, checkpoint: Path) -> None:
        """Load weights, optimizer state and progress from a checkpoint.

        Raises:
            InputError: if the checkpoint is damaged, or if it belongs to another configuration or data set.
        """
        self._check_card(checkpoint)
        state = load_state(checkpoint)
        load_weights(checkpoint, self.evaluated)
        try:
            if self.evaluated is not self.model:
                self.model.load_state_dict(state["weights"])
            self.optimizer.load_state_dict(state["optimizer"])
            if "begun" in state:
                self.partial = PartialEpoch.from_state(state["begun"])
            self.epochs_done, self.metrics = int(state["epoch"]), dict(state["metrics"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            path = checkpoint / "state.pt"
            raise InputError(f"{path}: does not belong to this training ({error!r}); remove {checkpoint}") from None

    def _require_finite(self, metrics: Mapping[str, float], split: str, epoch: int) -> None:
        """Check a split's loss, and for the training clips also the gradient.

        Raises:
            DivergedError: if one of them is not finite.
        """
        for metric, name in (("loss", "loss"), ("grad_norm_max", "norm of the gradient")):
            value = metrics.get(f"{split}/{metric}", 0.0)
            if not math.isfinite(value):
                clipping = "" if self.config.clip_norm else " or --set train.clip_norm=1"
                raise DivergedError(
                    f"the {name} is {value} in epoch {epoch} ({split} clips): the training diverged; try a lower "
                    f"train.lr (it was {self.config.lr:g}){clipping}"
                )

    def _check_card(self, checkpoint: Path) -> None:
        saved = ModelCard.read(checkpoint / "config.json")
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
