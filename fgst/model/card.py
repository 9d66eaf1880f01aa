"""A trained network on disk: its model card (``config.json``) and its weights (``model.safetensors``)."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
from safetensors.torch import load

from fgst.config import TrialConfig
from fgst.data.dataset import ArrowDataset
from fgst.data.formats import find_format
from fgst.data.normalization import Normalization
from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import NTU_25, NW_UCLA_20
from fgst.errors import InputError
from fgst.integrity import MODIFIED, DamagedFileError, with_digest
from fgst.model.fgstformer import FGSTFormer
from fgst.parsing import Name, Text, printable, read_json, read_regular_file, shorten

logger = logging.getLogger(__name__)

CARD, WEIGHTS = "config.json", "model.safetensors"
MAX_CLASSES, MAX_PERSONS = 100_000, 1000  # of a network
MAX_FILE_BYTES = 64 * 1024**3  # of a checkpoint


@dataclass(frozen=True)
class ModelCard:
    """Everything needed to rebuild a network and to use it without its data set; the content of ``config.json``.

    Attributes:
        config: the resolved configuration that it was trained with.
        skeleton: joints, bones and body parts of its clips.
        classes: names of the action classes, by label.
        max_persons: M, largest number of persons in a clip.
        dataset_name, dataset_digest: the data set that it was trained on.
        preparation: how raw files become clips; see :attr:`fgst.data.dataset.ArrowDataset.preparation`.
        normalization: how raw clips are normalized; see :attr:`fgst.data.dataset.ArrowDataset.normalization`.
        files: SHA-256 digests of the checkpoint's other files, by name; empty in cards of earlier versions.
    """

    config: TrialConfig
    skeleton: Skeleton
    classes: tuple[str, ...]
    max_persons: int
    dataset_name: str
    dataset_digest: str
    preparation: str = "array"
    normalization: Normalization | None = None
    files: Mapping[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def describe(cls, config: TrialConfig, dataset: ArrowDataset) -> ModelCard:
        """Return the card of a network that is trained on a data set, with a resolved configuration."""
        return cls(
            config,
            dataset.skeleton,
            dataset.classes,
            dataset.max_persons,
            dataset.name,
            dataset.digest,
            dataset.preparation,
            dataset.normalization,
        )

    def build(self) -> FGSTFormer:
        """Return the network with newly initialized weights."""
        assert self.config.data.frames is not None, "the configuration of a card is resolved"
        return FGSTFormer(self.config.model, self.skeleton, len(self.classes), frames=self.config.data.frames)

    def write(self, path: Path) -> None:
        """Write the card as JSON."""
        content = {
            "config": self.config.flat(),
            "skeleton": self.skeleton.to_dict(),
            "classes": list(self.classes),
            "max_persons": self.max_persons,
            "dataset": {"name": self.dataset_name, "digest": self.dataset_digest},
            "preparation": self.preparation,
            "normalization": None if self.normalization is None else self.normalization.to_dict(),
            "files": dict(self.files),
        }
        path.write_text(json.dumps(with_digest(content), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> ModelCard:
        """Read a card.

        Raises:
            DamagedFileError: if the file is missing, modified, or not a valid card.
        """
        what = "a valid config.json of a model"
        try:
            content = read_json(path, _Content, what=what)
        except InputError as error:
            raise DamagedFileError(str(error)) from None
        try:
            card = cls(
                config=TrialConfig.from_flat(content.config),
                skeleton=content.skeleton,
                classes=content.classes,
                max_persons=content.max_persons,
                dataset_name=content.dataset.name,
                dataset_digest=content.dataset.digest,
                preparation=content.preparation or _guess_preparation(content),
                normalization=content.normalization,
                files=content.files,
            )
            find_format(card.preparation)
            card.config.model.check_skeleton(card.skeleton)
            if card.config.data.frames is None:
                raise ValueError("data.frames is missing")
        except ValueError as error:
            raise DamagedFileError(f"{printable(str(path))}: is not {what} ({shorten(str(error))})") from None
        return card


class _DatasetName(msgspec.Struct):
    name: Text
    digest: Text


class _Content(msgspec.Struct, forbid_unknown_fields=True):
    """The content of ``config.json``; earlier versions lack ``normalization``, ``files`` or ``sha256``."""

    config: dict[str, Any]
    skeleton: Skeleton
    classes: Annotated[tuple[Text, ...], msgspec.Meta(min_length=1, max_length=MAX_CLASSES)]
    max_persons: Annotated[int, msgspec.Meta(ge=1, le=MAX_PERSONS)]
    dataset: _DatasetName
    preparation: Text = ""
    normalization: Normalization | None = None
    files: dict[Name, Name] = {}
    sha256: str | None = None


def _guess_preparation(content: _Content) -> str:
    """Infer the preparation for cards that predate this field.

    Generated motion has NTU's skeleton too, but is made of arrays: the data set's name tells them apart.
    """
    skeleton, dataset = content.skeleton.name, content.dataset.name
    if skeleton == NW_UCLA_20.name:
        return "nw-ucla"
    return "ntu" if skeleton == NTU_25.name and dataset in ("ntu-60", "ntu-120") else "array"


def load_model(directory: Path) -> tuple[FGSTFormer, ModelCard]:
    """Load a checkpoint's network, on the CPU and in evaluation mode, and its card.

    Raises:
        DamagedFileError: if a file is missing or damaged, or if the weights do not match the card.
    """
    card = ModelCard.read(directory / CARD)
    _check_size(directory / WEIGHTS, card)
    model = card.build()
    load_weights(directory, card, model)
    return model.eval(), card


def _least_weights(card: ModelCard) -> int:
    """Return a lower bound of the number of a network's weights: its largest matrices, of one branch."""
    config, joints = card.config.model, card.skeleton.num_joints
    count = len(card.classes) * config.channels[-1]
    for layer, (width_in, width) in enumerate(
        zip((config.channels[0], *config.channels), config.channels, strict=False)
    ):
        count += width_in**2 + 4 * width_in * config.spatial_heads * config.spatial_head_width(width_in) + width**2
        if config.temporal != "attention":
            count += config.kernel_size * width_in * width
        if layer < config.stage1_layers:
            count += config.spatial_heads * joints**2
    if config.part_branch:
        count += max(map(len, card.skeleton.partition(config.parts))) * config.channels[config.stage1_layers - 1] ** 2
    return count


def _check_size(weights: Path, card: ModelCard) -> None:
    """Check that a file is large enough for the weights of a network, before memory for them is allocated.

    Raises:
        DamagedFileError: if it is not, or is not a regular file.
    """
    needed = 4 * _least_weights(card)
    size = weights.stat().st_size if weights.is_file() else 0
    if size < needed:
        raise DamagedFileError(
            f"{printable(str(weights))}: does not contain the weights of this network ({size:,} bytes instead of at "
            f"least {needed:,})"
        )


def load_weights(directory: Path, card: ModelCard, model: FGSTFormer) -> None:
    """Load a checkpoint's weights into a network.

    Args:
        directory: the checkpoint.
        card: the checkpoint's card.
        model: the network.

    Raises:
        DamagedFileError: if the file is missing or damaged, or if it belongs to another network.
    """
    content = read_checked(directory, card, WEIGHTS)
    if not card.files:
        where = printable(str(directory))
        logger.warning("%s: has no digests, because an earlier version wrote it; damage may go unnoticed", where)
    try:
        weights = load(content)
        for name, tensor in model.state_dict().items():
            if name in weights and weights[name].dtype != tensor.dtype:  # would be converted
                raise ValueError(f"{name} is {weights[name].dtype} instead of {tensor.dtype}")
        model.load_state_dict(weights)
    except Exception as error:  # the parser of a damaged file can raise any exception
        path = printable(str(directory / WEIGHTS))
        raise DamagedFileError(
            f"{path}: does not contain the weights of this network ({shorten(str(error))})"
        ) from None


def read_checked(directory: Path, card: ModelCard, name: str) -> bytes:
    """Read a file of a checkpoint, and compare it with the digest in the checkpoint's card.

    Raises:
        DamagedFileError: if it is missing or was modified.
    """
    path = printable(str(directory / name))
    try:
        content = read_regular_file(directory / name, MAX_FILE_BYTES)
    except ValueError as error:
        raise DamagedFileError(f"{path}: {error}") from None
    if card.files and card.files.get(name) != hashlib.sha256(content).hexdigest():
        raise DamagedFileError(f"{path}: {MODIFIED}")
    return content
