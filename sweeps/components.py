"""What does each component contribute? Leaves out one at a time, and keeps all others.

Examples:
  python sweeps/components.py                                      generated motion, preset demo
  python sweeps/components.py --dataset datasets/nw-ucla --preset best --seeds 3
  python sweeps/components.py --dataset datasets/nw-ucla --values "complete,no JP-CA,no A_g"

Unlike spatial_blocks.py and temporal_blocks.py, which add the blocks of Tables 1 and 3 one after another, every row
differs from the complete network in one respect, so a component is judged in the company of all others. The part
branch is on, also with a preset that has none.
"""

from collections.abc import Mapping
from typing import Any

from fgst.cli.sweep import main
from fgst.config import TrialConfig
from fgst.sweep import Parameter, SweepDefinition

COMPLETE: dict[str, Any] = {"model.part_branch": True, "model.cross_attention": True}
ROWS: dict[str, dict[str, Any]] = {
    "complete": {},
    "no focal selection": {"model.focal_selection": False},
    "no gate": {"model.focal_gate": False},
    "focal joints ordered by score": {"model.focal_order": "score"},
    "no JP-CA": {"model.cross_attention": False},
    "no body parts": {"model.part_branch": False, "model.cross_attention": False},
    "no A_g": {"model.global_map": False},
    "no dilation": {"model.dilations": (1, 1)},
    "no attention over frames": {"model.temporal": "convolution"},
    "no convolution over frames": {"model.temporal": "attention"},
}


def settings(params: Mapping[str, Any], base: TrialConfig) -> dict[str, Any]:
    return COMPLETE | ROWS[params["network"]]


definition = SweepDefinition(
    name="components",
    title="What does each component contribute?",
    parameters=lambda skeleton, base: [Parameter("network", tuple(ROWS))],
    settings=settings,
    baseline="complete",
)

if __name__ == "__main__":
    main(definition, __doc__)
