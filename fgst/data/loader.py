"""Batches of clips: sampling of frames, augmentation and modality, vectorized on the device.

On a GPU, all frames of a split are one tensor in device memory. On the CPU, and if they would take too much GPU memory,
they stay in the memory-mapped files, which all processes of the machine share, and each batch copies its frames. This
copy is the only loop over clips.

Axes: B clips, M persons, L frames of the longest clip in the batch, T frames of the network's input, N joints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fgst.config import RECIPE_DEFAULTS, DataConfig
from fgst.data.dataset import ArrowDataset
from fgst.data.modality import to_modality
from fgst.data.skeleton import Skeleton
from fgst.errors import InputError

EVALUATION_BATCH = 64
# Fraction of a GPU's free memory that the frames of a split may occupy; the rest is for the network and other trials.
MAX_RESIDENT_FRACTION = 0.25
_COLUMNS = ("num_frames", "num_persons", "label")


@dataclass(frozen=True)
class Batch:
    """A batch of clips in the configured modality.

    Attributes:
        clips: ``(B, M, T, N, 3)`` float32; absent persons are zero.
        person_mask: ``(B, M)`` bool, which persons are present.
        labels: ``(B,)`` int64.
        rows: ``(B,)``, the clips' numbers within the loader.
    """

    clips: Tensor
    person_mask: Tensor
    labels: Tensor
    rows: np.ndarray

    def micro_batches(self, count: int) -> Iterator[Batch]:
        """Split the batch into ``count`` micro-batches of about equal size."""
        size = -(-len(self.labels) // count)
        for start in range(0, len(self.labels), size) if count > 1 else (0,):
            part = slice(start, start + size)
            yield Batch(self.clips[part], self.person_mask[part], self.labels[part], self.rows[part])


@dataclass(frozen=True)
class _RawClips:
    """The clips of a batch before sampling.

    Attributes:
        frames: ``(F, N·3)``, a table that contains the frames of all clips.
        first: ``(B, M)``, the row of each person's first frame.
        lengths: ``(B,)``, in frames.
        max_length: L, the largest of the lengths.
    """

    frames: Tensor
    first: Tensor
    lengths: Tensor
    max_length: int

    def take(self, frames: Tensor) -> Tensor:
        """Return the frames ``(B, F)`` of each clip for all of its persons: ``(B, M, F, N·3)``."""
        index = self.first[:, :, None] + frames[:, None, :]
        # index_select copies rows; indexing by a tensor copies single numbers and is five times slower on the CPU.
        return self.frames.index_select(0, index.view(-1)).view(*index.shape, -1)


def _coordinates_first(joints: Tensor) -> Tensor:
    """Convert ``(B, …, 3)`` to ``(B, 3, S)``, with x, y and z each contiguous.

    On the CPU, rotations and extents are ten times faster in this layout than with x, y and z interleaved.
    """
    return joints.reshape(len(joints), -1, 3).transpose(1, 2).contiguous()


def _offsets(sizes: Tensor) -> Tensor:
    """Return the start of each clip when clips of these sizes are concatenated."""
    return sizes.cumsum(0) - sizes


class ClipSource(Protocol):
    """The interface that a loader reads clips from: an :class:`ArrowDataset`, or clips in memory."""

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
    """Loads the clips of one split as batches on a device.

    Training batches are sampled and augmented by the recipe; evaluation batches are deterministic. Equal seeds give
    equal batches.

    Args:
        dataset: an open data set, or clips in memory.
        rows: the row numbers of the split's clips in it.
        config: the modality, and the recipe and number of frames where they override the data set's.
        device: where batches are created.
        resident: keep all frames in device memory; by default on a GPU with enough free memory.
        split: "train", "val", "test" or "", to be recorded with the scores of these clips.

    Attributes:
        clip_ids: the names of the clips.
        labels: ``(len(self),)`` int64, on the device.
        frames: T, the number of frames in a batch.
        recipe, modality, skeleton, max_persons, digest, device, rows, split: as configured.
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
        self.frames = config.frames or RECIPE_DEFAULTS[self.recipe].frames
        self.modality, self.skeleton, self.device = config.modality, dataset.skeleton, device
        self.max_persons = dataset.max_persons
        self.rows, self._dataset = rows, dataset
        self.clip_ids = dataset.clip_ids[rows]
        columns = {name: torch.from_numpy(dataset.columns[name][rows].astype(np.int64)) for name in _COLUMNS}
        self._host_lengths, self._host_persons = columns["num_frames"], columns["num_persons"]
        self._host_sizes = self._host_lengths * self._host_persons
        self._lengths, self._persons, self.labels = (columns[name].to(device) for name in _COLUMNS)
        self._frames: Tensor | None = None  # of all clips, (F, N, 3), if resident on the device
        if resident is None:
            size = int(self._host_sizes.sum()) * self.skeleton.num_joints * 3 * 4
            resident = device.type == "cuda" and size <= MAX_RESIDENT_FRACTION * torch.cuda.mem_get_info(device)[0]
        if resident:
            self._frames = torch.from_numpy(dataset.gather(rows)).to(device)
            self._first_rows = _offsets(self._host_sizes).to(device)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: np.ndarray, generator: torch.Generator | None = None, rotation_range: float = 1.0) -> Batch:
        """Create one batch.

        Args:
            rows: ``(B,)`` integers, numbers of clips within this loader.
            generator: on the loader's device; draws the frames and rotations of training. Without one, clips are
                sampled as for evaluation, without augmentation.
            rotation_range: range of the rotation angles, as a fraction of the recipe's.
        """
        host_index = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64))
        index = host_index.to(self.device)
        if self._frames is not None:
            frames, starts = self._frames, self._first_rows[index]
        else:
            frames = torch.from_numpy(self._dataset.gather(self.rows[rows])).to(self.device)
            starts = _offsets(self._host_sizes[host_index]).to(self.device)
        person = torch.arange(self.max_persons, device=self.device)
        person_mask = person < self._persons[index, None]  # (B, M)
        # Absent persons get the first person's frames here and are set to zero at the end.
        first = starts[:, None] + torch.where(person_mask, person, 0) * self._lengths[index, None]
        clips = _RawClips(frames.flatten(1), first, self._lengths[index], int(self._host_lengths[host_index].max()))
        sample = self._sample_nw_ucla if self.recipe == "nw-ucla" else self._sample_ntu
        joints = sample(clips, generator, rotation_range)
        if int(self._host_persons[host_index].min()) < self.max_persons:
            joints = joints.mul_(person_mask[:, :, None, None, None])
        return Batch(to_modality(joints, self.modality, self.skeleton), person_mask, self.labels[index], rows)

    def training_batches(
        self,
        batch_size: int,
        repeat: int,
        generator: torch.Generator,
        rotation_range: Callable[[int], float] = lambda step: 1.0,
    ) -> Iterator[Batch]:
        """Yield augmented batches of ``repeat`` passes over the clips, each pass in a new random order.

        ``rotation_range`` returns the range of the rotation angles for each batch, counted from 0, as a fraction of the
        recipe's.

        The last batch may be smaller. A last batch of a single clip is dropped, because batch normalization needs
        more than one clip.
        """
        # The order is drawn on the host, so that it does not depend on the device.
        order_seed = int(torch.randint(2**31, (1,), generator=generator, device=self.device))
        order_generator = np.random.default_rng(order_seed)
        order = np.concatenate([order_generator.permutation(len(self)) for _ in range(repeat)])
        for step, start in enumerate(range(0, len(order), batch_size)):
            rows = order[start : start + batch_size]
            if len(rows) > 1 or len(order) == 1:
                yield self.batch(rows, generator, rotation_range(step))

    def evaluation_batches(self, batch_size: int = EVALUATION_BATCH) -> Iterator[Batch]:
        """Yield every clip once, in order, without augmentation."""
        for start in range(0, len(self), batch_size):
            yield self.batch(np.arange(start, min(start + batch_size, len(self))))

    def steps(self, batch_size: int, repeat: int) -> int:
        """Return the number of batches that :meth:`training_batches` yields."""
        full, rest = divmod(len(self) * repeat, batch_size)
        return full + (rest > 1 or len(self) * repeat == 1)

    def _sample_nw_ucla(self, clips: _RawClips, generator: torch.Generator | None, rotation_range: float) -> Tensor:
        """Sample clips with the usual recipe of public code for NW-UCLA; returns ``(B, M, T, N, 3)``.

        Centre on the spine of the first frame. In training, rotate about y, then x, by angles uniform in ±60°. Scale
        each axis to [-1, 1] over the whole clip. Select T frames: sorted draws with replacement in training, the floor
        of T evenly spaced positions in evaluation.
        """
        length, centre = clips.lengths[:, None], 3 * self.skeleton.centre
        # Shorter clips are padded with their last frame, which changes neither minimum nor maximum.
        all_frames = torch.arange(clips.max_length, device=self.device).expand(len(length), -1)
        joints = clips.take(torch.minimum(all_frames, length - 1))  # (B, M, L, N·3)
        B, M, L, T = *joints.shape[:3], self.frames
        origin = joints[:, 0, 0, centre : centre + 3, None].clone()  # (B, 3, 1)
        joints = _coordinates_first(joints) - origin
        if generator is not None:
            angles = (torch.rand(B, 2, generator=generator, device=self.device) * 2 - 1) * (
                rotation_range * torch.pi / 3
            )
            joints = rotation(angles[:, 0], "x") @ rotation(angles[:, 1], "y") @ joints
            draws = torch.rand(B, T, generator=generator, device=self.device, dtype=torch.float64)
            frames = torch.minimum((draws * length).long(), length - 1).sort(dim=1).values
        else:
            frames = even_frames(clips.lengths, T)
        low = joints.amin(2, keepdim=True)
        extent = joints.amax(2, keepdim=True) - low
        rows = torch.arange(B * 3 * M, device=self.device).view(B, -1, 1) * L + frames[:, None]
        joints = joints.view(B * 3 * M * L, -1).index_select(0, rows.view(-1)).view(B, 3, -1)
        # An axis without extent (all joints in a plane) becomes 0 instead of 0/0.
        flat = extent <= 0
        scale, shift = (2 / extent).masked_fill_(flat, 0), torch.ones_like(extent).masked_fill_(flat, 0)
        joints = joints.sub_(low).mul_(scale).sub_(shift)
        return joints.transpose(1, 2).contiguous().view(B, M, T, -1, 3)

    def _sample_ntu(self, clips: _RawClips, generator: torch.Generator | None, rotation_range: float) -> Tensor:
        """Sample clips with the usual recipe of public code for NTU RGB+D; returns ``(B, M, T, N, 3)``.

        In training, crop a random 50 to 100 % of the clip, at least 64 frames if it has that many, and rotate about
        each axis by an angle uniform in ±0.3 rad. In evaluation, crop the central 95 %. Resize the crop to T frames by
        linear interpolation.
        """
        B, T, length = len(clips.lengths), self.frames, clips.lengths
        if generator is not None:
            draws = torch.rand(B, 2, generator=generator, device=self.device, dtype=torch.float64)
            cropped = (length * (0.5 + 0.5 * draws[:, 0])).floor().long().clamp_min(64).minimum(length)
            first = (draws[:, 1] * (length - cropped + 1)).floor().long()
        else:
            first = ((1 - 0.95) * length.double() / 2).floor().long()
            cropped = length - 2 * first
        position = (torch.arange(T, device=self.device) + 0.5) * (cropped[:, None].double() / T) - 0.5
        position = torch.minimum(position.clamp_min(0), cropped[:, None] - 1.0)
        before = position.floor().long()
        after = torch.minimum(before + 1, cropped[:, None] - 1)
        weight = (position - before).float()[:, None, :, None]
        joints = torch.lerp(clips.take(first[:, None] + before), clips.take(first[:, None] + after), weight)
        if generator is not None:
            angles = (torch.rand(B, 3, generator=generator, device=self.device) * 2 - 1) * (0.3 * rotation_range)
            matrix = rotation(angles[:, 2], "z") @ rotation(angles[:, 1], "y") @ rotation(angles[:, 0], "x")
            joints = (matrix @ _coordinates_first(joints)).transpose(1, 2).contiguous()
        return joints.view(B, -1, T, self.skeleton.num_joints, 3)


def rotation(angles: Tensor, axis: str) -> Tensor:
    """Return right-handed rotation matrices about one axis.

    Args:
        angles: ``(B,)``, in radians.
        axis: "x", "y" or "z".

    Returns:
        ``(B, 3, 3)``.
    """
    sine, cosine = torch.sin(angles), torch.cos(angles)
    zero, one = torch.zeros_like(angles), torch.ones_like(angles)
    entries = {
        "x": (one, zero, zero, zero, cosine, -sine, zero, sine, cosine),
        "y": (cosine, zero, sine, zero, one, zero, -sine, zero, cosine),
        "z": (cosine, -sine, zero, sine, cosine, zero, zero, zero, one),
    }
    return torch.stack(entries[axis], dim=-1).view(-1, 3, 3)


def even_frames(lengths: Tensor, count: int) -> Tensor:
    """Return ``int(linspace(0, length - 1, count))`` for each length, bit-identical to NumPy's result.

    Args:
        lengths: ``(B,)`` integers.
        count: number of positions.

    Returns:
        ``(B, count)`` integers.
    """
    last = (lengths - 1).double()[:, None]
    positions = torch.arange(count, device=lengths.device, dtype=torch.float64) * (last / max(count - 1, 1))
    positions[:, -1:] = last if count > 1 else 0
    return positions.floor().long()


def make_loaders(dataset: ArrowDataset, config: DataConfig, device: torch.device) -> dict[str, ClipLoader]:
    """Return a loader per split: "train", "test", and "val" unless the protocol is "paper"."""
    splits = dataset.splits_for(config)
    rows = {"train": splits.train, "val": splits.val, "test": splits.test}
    return {
        name: ClipLoader(dataset, members, config, device, split=name) for name, members in rows.items() if len(members)
    }


def choose_device(name: str = "auto") -> torch.device:
    """Return a device by name; "auto" is the GPU if there is one, else the CPU.

    Raises:
        InputError: if there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device is {name!r}; choose auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device is {name}, but PyTorch finds no GPU; use --device cpu")
    return device
