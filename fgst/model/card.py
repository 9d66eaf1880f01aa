"""A trained network on disk: its model card (``config.json``) and its weights (``model.safetensors``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from fgst.config import TrialConfig
from fgst.data.formats import FORMATS
from fgst.data.skeleton import NTU_25, NW_UCLA_20, Skeleton
from fgst.errors import InputError
from fgst.model.fgstformer import FGSTFormer


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
        try:
            content = json.loads(path.read_bytes())
            card = cls(
                config=TrialConfig.from_flat(content["config"]),
                skeleton=Skeleton.from_dict(content["skeleton"]),
                classes=tuple(map(str, content["classes"])),
                max_persons=int(content["max_persons"]),
                dataset_name=str(content["dataset"]["name"]),
                dataset_digest=str(content["dataset"]["digest"]),
                preparation=str(content.get("preparation") or _guess_preparation(content)),
            )
            if card.preparation not in FORMATS:
                raise ValueError(f"unknown preparation {card.preparation!r}")
            card.config.model.check_skeleton(card.skeleton)
            if card.config.data.frames is None or not card.classes:
                raise ValueError("data.frames or the classes are missing")
        except (OSError, KeyError, AttributeError, TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{path}: is not a valid config.json of a model ({error})") from None
        return card


def _guess_preparation(content: Mapping[str, Any]) -> str:
    """Infer the preparation for cards that predate this field.

    Generated motion has NTU's skeleton too, but is made of arrays: the data set's name tells them apart.
    """
    skeleton, dataset = content["skeleton"]["name"], content["dataset"]["name"]
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
