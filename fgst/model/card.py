"""A trained network on disk: its model card (``config.json``) and its weights (``model.safetensors``)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load_file

from fgst.config import TrialConfig
from fgst.data.formats import FORMATS
from fgst.data.skeleton import NTU_25, NW_UCLA_20, Skeleton
from fgst.errors import InputError
from fgst.model.fgstformer import FGSTFormer
from fgst.parsing import Text, printable, read_json, shorten

MAX_CLASSES, MAX_PERSONS = 100_000, 1000  # of a network


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
    """

    config: TrialConfig
    skeleton: Skeleton
    classes: tuple[str, ...]
    max_persons: int
    dataset_name: str
    dataset_digest: str
    preparation: str = "array"

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
        }
        path.write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> ModelCard:
        """Read a card.

        Raises:
            InputError: if the file is missing or is not a valid card.
        """
        what = "a valid config.json of a model"
        content = read_json(path, _Content, what=what)
        try:
            card = cls(
                config=TrialConfig.from_flat(content.config),
                skeleton=content.skeleton,
                classes=content.classes,
                max_persons=content.max_persons,
                dataset_name=content.dataset.name,
                dataset_digest=content.dataset.digest,
                preparation=content.preparation or _guess_preparation(content),
            )
            if card.preparation not in FORMATS:
                raise ValueError(f"unknown preparation {card.preparation!r}")
            card.config.model.check_skeleton(card.skeleton)
            if card.config.data.frames is None:
                raise ValueError("data.frames is missing")
        except ValueError as error:
            raise InputError(f"{printable(str(path))}: is not {what} ({shorten(str(error))})") from None
        return card


class _DatasetName(msgspec.Struct):
    name: Text
    digest: Text


class _Content(msgspec.Struct):
    """The content of ``config.json``."""

    config: dict[str, Any]
    skeleton: Skeleton
    classes: Annotated[tuple[Text, ...], msgspec.Meta(min_length=1, max_length=MAX_CLASSES)]
    max_persons: Annotated[int, msgspec.Meta(ge=1, le=MAX_PERSONS)]
    dataset: _DatasetName
    preparation: Text = ""


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
        InputError: if a file is missing or damaged, or if the weights do not match the card.
    """
    card = ModelCard.read(directory / "config.json")
    model = card.build()
    load_weights(directory, model)
    return model.eval(), card


def load_weights(directory: Path, model: FGSTFormer) -> None:
    """Load a checkpoint's weights into a network.

    Raises:
        InputError: if the file is missing or damaged, or if it belongs to another network.
    """
    weights = directory / "model.safetensors"
    try:
        model.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(f"{weights}: does not contain the weights of this network ({error})") from None
