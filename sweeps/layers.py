"""How should the layers be split between stage 1 (all joints) and stage 2 (focal joints, parts)? (Table 4 of the paper)

Examples:
  python sweeps/layers.py                                          generated motion, preset demo
  python sweeps/layers.py --dataset datasets/nw-ucla --preset small --epochs 8
  python sweeps/layers.py --dataset datasets/nw-ucla --protocol paper --seeds 3 --values 5/3,6/2,7/1

The total number of layers is that of the preset: eight for paper, best and small, four for tiny. The two layers of demo
can only be split 1/1, so each is doubled.
"""

from collections.abc import Mapping
from typing import Any

from fgst.cli.sweep import main
from fgst.config import TrialConfig
from fgst.sweep import Parameter, Published, SweepDefinition

PAPER = {"4/4": 88.8, "5/3": 89.0, "6/2": 89.5, "7/1": 89.0}


def splits(layers: int) -> tuple[str, ...]:
    """Return the paper's splits for eight layers, and all possible splits for any other number."""
    return tuple(PAPER) if layers == 8 else tuple(f"{first}/{layers - first}" for first in range(1, layers))


def channels(base: TrialConfig) -> tuple[int, ...]:
    """Return the widths of all layers: those of the base, or each twice if there are only two."""
    widths = base.model.channels
    return widths if len(widths) > 2 else tuple(width for width in widths for _ in range(2))


def settings(params: Mapping[str, Any], base: TrialConfig) -> dict[str, Any]:
    first, second = str(params["L1/L2"]).split("/")
    return {"model.channels": channels(base), "model.stage1_layers": first, "model.stage2_layers": second}


definition = SweepDefinition(
    name="layers",
    title="How many layers L1 over all joints, L2 over focal joints and parts?",
    parameters=lambda skeleton, base: [Parameter("L1/L2", splits(len(channels(base))))],
    settings=settings,
    published=Published(PAPER, source="Table 4", benchmark="NTU-60 X-Sub"),
    baseline="6/2",
)

if __name__ == "__main__":
    main(definition, __doc__)
