"""Default sampling parameters of each recipe.

A recipe names how clips are sampled and augmented (:mod:`fgst.data.loader`). A trial's configuration may override
both values below by ``data.frames`` and ``train.repeat``.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Default sampling parameters.

    Attributes:
        frames: T, the number of frames in the network's input.
        repeat: passes over the training clips per epoch.
    """

    frames: int
    repeat: int


# By the names in fgst.config.RECIPES.
RECIPE_DEFAULTS: dict[str, Recipe] = {
    "nw-ucla": Recipe(frames=52, repeat=5),
    "ntu": Recipe(frames=128, repeat=1),
}
