"""Batches made on the device for all their clips at once: frames, augmentation, modality.

The clips of a split are one tensor of frames on the device plus, for each clip, where it starts. Nothing here loops
over clips.

Axes: B clips · M persons · L frames of the longest clip of the batch · T frames of the network · N joints.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fgst.config import DataConfig
from fgst.dataset import ArrowDataset
from fgst.errors import InputError
from fgst.modality import to_modality

EVALUATION_BATCH = 64
# What a data set's recipe means for the fields that a configuration leaves open.
RECIPE_FRAMES = {"nw-ucla": 52, "ntu": 128}
RECIPE_REPEAT = {"nw-ucla": 5, "ntu": 1}


@dataclass(frozen=True)
class Batch:
    """Clips in the modality asked for.

    ``clips`` is ``(B, M, T, N, 3)``, ``present`` ``(B, M)`` says which persons are there, ``labels`` ``(B,)``,
    ``rows`` the clips' numbers.
    """

    clips: Tensor
    present: Tensor
    labels: Tensor
    rows: np.ndarray


class ClipStore:
    """The clips of one split on a device, and how they become batches.

    Args:
        dataset: the open data set.
        rows: which of its clips.
        config: modality; recipe and frames where they differ from the data set's own.
        device: where frames are kept and batches are made.
    """

    def __init__(self, dataset: ArrowDataset, rows: np.ndarray, config: DataConfig, device: torch.device) -> None:
        self.recipe = config.recipe or dataset.recipe
        self.frames = config.frames or RECIPE_FRAMES[self.recipe]
        self.modality, self.skeleton, self.device = config.modality, dataset.skeleton, device
        self.max_persons = dataset.max_persons
        self.rows = rows
        self.clip_ids = dataset.clip_ids[rows]
        lengths = dataset.columns["num_frames"][rows].astype(np.int64)
        persons = dataset.columns["num_persons"][rows].astype(np.int64)
        starts = np.cumsum(lengths * persons) - lengths * persons
        self._host_lengths = lengths
        self._frames = torch.from_numpy(dataset.gather(rows)).to(device)  # (all frames, N, 3)
        self._starts, self._lengths, self._persons, self.labels = (
            torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64)).to(device)
            for values in (starts, lengths, persons, dataset.columns["label"][rows])
        )

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, chosen: np.ndarray, generator: torch.Generator | None = None) -> Batch:
        """The clips ``chosen`` (numbers within this store), augmented by ``generator``, or as for a test without one.

        Args:
            chosen: ``(B,)`` integers.
            generator: of this store's device; draws the training frames and rotations.
        """
        index = torch.from_numpy(np.ascontiguousarray(chosen, dtype=np.int64)).to(self.device)
        make = self._nw_ucla if self.recipe == "nw-ucla" else self._ntu
        joints = make(index, int(self._host_lengths[chosen].max()), generator)
        present = torch.arange(self.max_persons, device=self.device) < self._persons[index, None]  # (B, M)
        joints = joints * present[:, :, None, None, None]
        return Batch(to_modality(joints, self.modality, self.skeleton), present, self.labels[index], chosen)

    def training_batches(self, batch_size: int, repeat: int, generator: torch.Generator) -> Iterator[Batch]:
        """``repeat`` passes over the clips, each in an order of its own; the last batch may be smaller.

        A last batch of a single clip is left out: batch norm learns nothing from it.
        """
        # The order is drawn on the host: batches of any device start from the same lists.
        order_seed = int(torch.randint(2**31, (1,), generator=generator, device=self.device))
        order_generator = np.random.default_rng(order_seed)
        order = np.concatenate([order_generator.permutation(len(self)) for _ in range(repeat)])
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            if len(chosen) > 1 or len(order) == 1:
                yield self.batch(chosen, generator)

    def evaluation_batches(self, batch_size: int = EVALUATION_BATCH) -> Iterator[Batch]:
        """Every clip once, in order, without augmentation."""
        for start in range(0, len(self), batch_size):
            yield self.batch(np.arange(start, min(start + batch_size, len(self))))

    def steps(self, batch_size: int, repeat: int) -> int:
        """How many batches :meth:`training_batches` yields."""
        full, rest = divmod(len(self) * repeat, batch_size)
        return full + (rest > 1 or len(self) * repeat == 1)

    def _take(self, index: Tensor, frames: Tensor) -> Tensor:
        """Frames ``(B, F)`` of clips ``(B,)`` for all M persons: ``(B, M, F, N, 3)``.

        A person who is not there has the first person's frames here, and is zeroed at the end.
        """
        person = torch.arange(self.max_persons, device=self.device)
        person = torch.where(person < self._persons[index, None], person, 0)  # (B, M)
        first = self._starts[index, None] + person * self._lengths[index, None]
        return self._frames[first[:, :, None] + frames[:, None, :]]

    def _nw_ucla(self, index: Tensor, longest: int, generator: torch.Generator | None) -> Tensor:
        """The recipe that the field shares for NW-UCLA, ``(B, M, T, N, 3)``.

        Centre on the spine of the first frame; in training rotate about y, then x, by angles uniform in ±60°;
        stretch each axis to [-1, 1] over the whole clip; take T frames: sorted draws with replacement in training,
        the floor of T evenly spaced positions in a test.
        """
        B, T, length = len(index), self.frames, self._lengths[index, None]
        # The last frame repeats where a clip is shorter than the longest: it changes neither minimum nor maximum.
        every = torch.arange(longest, device=self.device).expand(B, -1)
        joints = self._take(index, torch.minimum(every, length - 1))
        joints = joints - joints[:, :1, :1, self.skeleton.centre, None]
        if generator is not None:
            angles = (torch.rand(B, 2, generator=generator, device=self.device) * 2 - 1) * (torch.pi / 3)
            turn = rotation(angles[:, 0], "x") @ rotation(angles[:, 1], "y")
            joints = torch.einsum("bmtnc,bdc->bmtnd", joints, turn)
        low = joints.amin((1, 2, 3), keepdim=True)
        extent = joints.amax((1, 2, 3), keepdim=True) - low
        # An axis without extent (all joints in a plane) has no scale: it becomes 0, not 0/0.
        joints = torch.where(extent > 0, (joints - low) / extent.clamp_min(1e-12) * 2 - 1, 0.0)
        if generator is not None:
            draws = torch.rand(B, T, generator=generator, device=self.device, dtype=torch.float64)
            frames = torch.minimum((draws * length).long(), length - 1).sort(dim=1).values
        else:
            frames = even_frames(self._lengths[index], T)
        return joints.gather(2, frames[:, None, :, None, None].expand(-1, joints.shape[1], -1, *joints.shape[3:]))

    def _ntu(self, index: Tensor, longest: int, generator: torch.Generator | None) -> Tensor:
        """The recipe that the field shares for NTU RGB+D, ``(B, M, T, N, 3)``.

        Training: crop a random half to whole of the clip, but at least 64 frames if it has them, and rotate by one
        angle uniform in ±0.3 rad about each axis. Test: the centre 95 %. Either is resized to T frames by linear
        interpolation.
        """
        del longest
        B, T, length = len(index), self.frames, self._lengths[index]
        if generator is not None:
            draws = torch.rand(B, 2, generator=generator, device=self.device, dtype=torch.float64)
            kept = (length * (0.5 + 0.5 * draws[:, 0])).floor().long().clamp_min(64).minimum(length)
            first = (draws[:, 1] * (length - kept + 1)).floor().long()
        else:
            first = ((1 - 0.95) * length.double() / 2).floor().long()
            kept = length - 2 * first
        position = (torch.arange(T, device=self.device) + 0.5) * (kept[:, None].double() / T) - 0.5
        position = torch.minimum(position.clamp_min(0), kept[:, None] - 1.0)
        before = position.floor().long()
        after = torch.minimum(before + 1, kept[:, None] - 1)
        weight = (position - before).float()[:, None, :, None, None]
        joints = torch.lerp(
            self._take(index, first[:, None] + before), self._take(index, first[:, None] + after), weight
        )
        if generator is not None:
            angles = (torch.rand(B, 3, generator=generator, device=self.device) * 2 - 1) * 0.3
            turn = rotation(angles[:, 2], "z") @ rotation(angles[:, 1], "y") @ rotation(angles[:, 0], "x")
            joints = torch.einsum("bmtnc,bdc->bmtnd", joints, turn)
        return joints


def rotation(angles: Tensor, axis: str) -> Tensor:
    """Right-handed rotation matrices about x, y or z; angles ``(B,)`` in radians → ``(B, 3, 3)``."""
    sine, cosine = torch.sin(angles), torch.cos(angles)
    zero, one = torch.zeros_like(angles), torch.ones_like(angles)
    entries = {
        "x": (one, zero, zero, zero, cosine, -sine, zero, sine, cosine),
        "y": (cosine, zero, sine, zero, one, zero, -sine, zero, cosine),
        "z": (cosine, -sine, zero, sine, cosine, zero, zero, zero, one),
    }
    return torch.stack(entries[axis], dim=-1).view(-1, 3, 3)


def even_frames(lengths: Tensor, count: int) -> Tensor:
    """``int(linspace(0, length - 1, count))`` of each length, ``(B,)`` → ``(B, count)``, as NumPy has it to the bit."""
    last = (lengths - 1).double()[:, None]
    positions = torch.arange(count, device=lengths.device, dtype=torch.float64) * (last / max(count - 1, 1))
    positions[:, -1:] = last if count > 1 else 0
    return positions.floor().long()


def make_stores(dataset: ArrowDataset, config: DataConfig, device: torch.device) -> dict[str, ClipStore]:
    """A store for each split that the configuration has clips for: train, val (not for protocol "paper"), test."""
    splits = dataset.splits(
        config.benchmark or "",
        validation=config.validation if config.protocol == "validation" else 0,
        seed=config.validation_seed,
    )
    rows = {"train": splits.train, "val": splits.val, "test": splits.test}
    return {name: ClipStore(dataset, members, config, device) for name, members in rows.items() if len(members)}


def choose_device(name: str = "auto") -> torch.device:
    """ "auto" is the GPU if there is one, else the CPU.

    Raises:
        InputError: if the device asked for is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device is {name!r}; it is auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device is {name}, but PyTorch sees no GPU; use --device cpu")
    return device
