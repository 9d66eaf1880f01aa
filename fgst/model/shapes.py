"""Shapes of the networks' inputs, for summaries; does not import PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import NTU_25, NW_UCLA_20


@dataclass(frozen=True)
class InputShape:
    """Input of a network.

    Attributes:
        name: the data set's name.
        persons: M, largest number of persons in a clip.
        frames: T.
        skeleton: N joints and their body parts.
        num_classes: number of action classes.
    """

    name: str
    persons: int
    frames: int
    skeleton: Skeleton
    num_classes: int


INPUT_SHAPES = {
    "ntu": InputShape("NTU RGB+D 60", 2, 128, NTU_25, 60),
    "ntu120": InputShape("NTU RGB+D 120", 2, 128, NTU_25, 120),
    "nw-ucla": InputShape("NW-UCLA", 1, 52, NW_UCLA_20, 10),
}
