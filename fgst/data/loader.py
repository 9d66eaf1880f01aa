"""Batches made on the device for all their clips at once: frames, augmentation, modality.

On a GPU the clips of a split are one tensor of frames there. On the CPU, and where they would take too much of the
GPU's memory, they stay in the mapped files, which all processes of the machine share, and a batch copies its own.
Nothing but that copy goes clip by clip.

Axes: B clips · M persons · L frames of the longest clip of the batch · T frames of the network · N joints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fgst.config import RECIPE_FRAMES, DataConfig
from fgst.data.dataset import ArrowDataset
from fgst.data.modality import to_modality
from fgst.data.skeleton import Skeleton
from fgst.errors import InputError

EVALUATION_BATCH = 64
# Of a GPU's free memory that the frames of a split may take; the rest is for the network, and for other trials there.
RESIDENT_SHARE = 0.25
COLUMNS = ("num_frames", "num_persons", "label")


@dataclass(frozen=True)
class Batch:
    """Clips in the modality asked for.

    ``clips`` is ``(B, M, T, N, 3)``, ``present`` ``(B, M)`` says which persons are there, ``labels`` ``(B,)``,
    ``rows`` the clips' numbers.
    """

    clips: Tensor
    person_mask: Tensor
    labels: Tensor
    rows: np.ndarray

    def parts(self, count: int) -> Iterator[Batch]:
        """The batch in ``count`` pieces of about the same size, or as it is."""
        size = -(-len(self.labels) // count)
        for start in range(0, len(self.labels), size) if count > 1 else (0,):
            part = slice(start, start + size)
            yield Batch(self.clips[part], self.person_mask[part], self.labels[part], self.rows[part])


@dataclass(frozen=True)
class _Clips:
    """Clips of a batch: frames ``(F, N·3)``, where each person's begin there ``(B, M)``, lengths ``(B,)`` in frames."""

    frames: Tensor
    first: Tensor
    lengths: Tensor
    longest: int

    def take(self, frames: Tensor) -> Tensor:
        """Frames ``(B, F)`` of each clip, for all its persons: ``(B, M, F, N·3)``."""
        index = self.first[:, :, None] + frames[:, None, :]
        # index_select copies rows; indexing by a tensor goes number by number, five times as slow on the CPU
        return self.frames.index_select(0, index.view(-1)).view(*index.shape, -1)


def _by_axis(joints: Tensor) -> Tensor:
    """``(B, …, 3)`` → ``(B, 3, …)`` as ``(B, 3, S)``: x, y and z each in one piece.

    Rotations and extents are ten times as fast so, on the CPU, as with x, y, z side by side.
    """
    return joints.reshape(len(joints), -1, 3).transpose(1, 2).contiguous()


def _starts(sizes: Tensor) -> Tensor:
    """Where each clip begins if they lie one after another."""
    return sizes.cumsum(0) - sizes


class ClipSource(Protocol):
    """What clips come from: an :class:`ArrowDataset`, or clips in memory."""

    @property
    def recipe(self) -> str: ...
    @property
    def skeleton(self) -> Skeleton: ...
    @property
    def max_persons(self) -> int: ...
    @property
    def digest(self) -> str: ...
    @property
    def clip_ids(self) -> np.ndarray: ...
    @property
    def columns(self) -> Mapping[str, np.ndarray]: ...
    def gather(self, rows: np.ndarray) -> np.ndarray: ...


class ClipLoader:
    """The clips of one split on a device, and how they become batches.

    Args:
        dataset: the open data set, or what else holds clips.
        rows: which of its clips.
        config: modality; recipe and frames where they differ from the data set's own.
        device: where batches are made.
        resident: keep all frames on the device; by default on a GPU that has room.
        split: what the clips are: "train", "val", "test" or nothing of these; their scores will say so.
    """

    def __init__(
        self,
        dataset: ClipSource,
        rows: np.ndarray,
        config: DataConfig,
        device: torch.device,
        *,
        resident: bool | None = None,
        split: str = "",
    ) -> None:
        self.split, self.digest = split, dataset.digest
        self.recipe = config.recipe or dataset.recipe
        self.frames = config.frames or RECIPE_FRAMES[self.recipe]
        self.modality, self.skeleton, self.device = config.modality, dataset.skeleton, device
        self.max_persons = dataset.max_persons
        self.rows, self._dataset = rows, dataset
        self.clip_ids = dataset.clip_ids[rows]
        columns = {name: torch.from_numpy(dataset.columns[name][rows].astype(np.int64)) for name in COLUMNS}
        self._host_lengths, self._host_persons = columns["num_frames"], columns["num_persons"]
        self._host_sizes = self._host_lengths * self._host_persons
        self._lengths, self._persons, self.labels = (columns[name].to(device) for name in COLUMNS)
        self._frames: Tensor | None = None  # of all clips, (all frames, N, 3), where it is kept on the device
        if resident is None:
            size = int(self._host_sizes.sum()) * self.skeleton.num_joints * 3 * 4
            resident = device.type == "cuda" and size <= RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]
        if resident:
            self._frames = torch.from_numpy(dataset.gather(rows)).to(device)
            self._starts = _starts(self._host_sizes).to(device)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, chosen: np.ndarray, generator: torch.Generator | None = None) -> Batch:
        """The clips ``chosen`` (numbers within this store), augmented by ``generator``, or as for a test without one.

        Args:
            chosen: ``(B,)`` integers.
            generator: of this store's device; draws the training frames and rotations.
        """
        numbers = torch.from_numpy(np.ascontiguousarray(chosen, dtype=np.int64))
        index = numbers.to(self.device)
        if self._frames is not None:
            frames, starts = self._frames, self._starts[index]
        else:
            frames = torch.from_numpy(self._dataset.gather(self.rows[chosen])).to(self.device)
            starts = _starts(self._host_sizes[numbers]).to(self.device)
        person = torch.arange(self.max_persons, device=self.device)
        person_mask = person < self._persons[index, None]  # (B, M)
        # Who is not there has the first person's frames at first, and is zeroed at the end.
        first = starts[:, None] + torch.where(person_mask, person, 0) * self._lengths[index, None]
        clips = _Clips(frames.flatten(1), first, self._lengths[index], int(self._host_lengths[numbers].max()))
        make = self._nw_ucla if self.recipe == "nw-ucla" else self._ntu
        joints = make(clips, generator)
        if int(self._host_persons[numbers].min()) < self.max_persons:
            joints = joints.mul_(person_mask[:, :, None, None, None])
        return Batch(to_modality(joints, self.modality, self.skeleton), person_mask, self.labels[index], chosen)

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

    def _nw_ucla(self, clips: _Clips, generator: torch.Generator | None) -> Tensor:
        """The recipe that the field shares for NW-UCLA, ``(B, M, T, N, 3)``.

        Centre on the spine of the first frame; in training rotate about y, then x, by angles uniform in ±60°;
        stretch each axis to [-1, 1] over the whole clip; take T frames: sorted draws with replacement in training,
        the floor of T evenly spaced positions in a test.
        """
        length, centre = clips.lengths[:, None], 3 * self.skeleton.centre
        # The last frame repeats where a clip is shorter than the longest: it changes neither minimum nor maximum.
        every = torch.arange(clips.longest, device=self.device).expand(len(length), -1)
        joints = clips.take(torch.minimum(every, length - 1))  # (B, M, L, N·3)
        B, M, L, T = *joints.shape[:3], self.frames
        origin = joints[:, 0, 0, centre : centre + 3, None].clone()  # (B, 3, 1)
        joints = _by_axis(joints) - origin
        if generator is not None:
            angles = (torch.rand(B, 2, generator=generator, device=self.device) * 2 - 1) * (torch.pi / 3)
            joints = rotation(angles[:, 0], "x") @ rotation(angles[:, 1], "y") @ joints
            draws = torch.rand(B, T, generator=generator, device=self.device, dtype=torch.float64)
            frames = torch.minimum((draws * length).long(), length - 1).sort(dim=1).values
        else:
            frames = even_frames(clips.lengths, T)
        low = joints.amin(2, keepdim=True)
        extent = joints.amax(2, keepdim=True) - low
        rows = torch.arange(B * 3 * M, device=self.device).view(B, -1, 1) * L + frames[:, None]
        joints = joints.view(B * 3 * M * L, -1).index_select(0, rows.view(-1)).view(B, 3, -1)
        # An axis without extent (all joints in a plane) has no scale: it becomes 0, not 0/0.
        flat = extent <= 0
        scale, shift = (2 / extent).masked_fill_(flat, 0), torch.ones_like(extent).masked_fill_(flat, 0)
        joints = joints.sub_(low).mul_(scale).sub_(shift)
        return joints.transpose(1, 2).contiguous().view(B, M, T, -1, 3)

    def _ntu(self, clips: _Clips, generator: torch.Generator | None) -> Tensor:
        """The recipe that the field shares for NTU RGB+D, ``(B, M, T, N, 3)``.

        Training: crop a random half to whole of the clip, but at least 64 frames if it has them, and rotate by one
        angle uniform in ±0.3 rad about each axis. Test: the centre 95 %. Either is resized to T frames by linear
        interpolation.
        """
        B, T, length = len(clips.lengths), self.frames, clips.lengths
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
        weight = (position - before).float()[:, None, :, None]
        joints = torch.lerp(clips.take(first[:, None] + before), clips.take(first[:, None] + after), weight)
        if generator is not None:
            angles = (torch.rand(B, 3, generator=generator, device=self.device) * 2 - 1) * 0.3
            turn = rotation(angles[:, 2], "z") @ rotation(angles[:, 1], "y") @ rotation(angles[:, 0], "x")
            joints = (turn @ _by_axis(joints)).transpose(1, 2).contiguous()
        return joints.view(B, -1, T, self.skeleton.num_joints, 3)


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


def make_loaders(dataset: ArrowDataset, config: DataConfig, device: torch.device) -> dict[str, ClipLoader]:
    """A store for each split that the configuration has clips for: train, val (not for protocol "paper"), test."""
    splits = dataset.splits(
        config.benchmark or "",
        validation=config.validation if config.protocol == "validation" else 0,
        seed=config.validation_seed,
    )
    rows = {"train": splits.train, "val": splits.val, "test": splits.test}
    return {
        name: ClipLoader(dataset, members, config, device, split=name) for name, members in rows.items() if len(members)
    }


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
