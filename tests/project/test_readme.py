"""The README's Python says what works: its blocks are run as they stand, in order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

README = Path(__file__).parents[2] / "README.md"


def blocks(heading: str) -> list[str]:
    """The Python blocks under a heading, up to the next one of its level."""
    level = heading.split()[0]
    section = re.split(rf"^{level} ", README.read_text().split(f"\n{heading}\n", 1)[1], flags=re.MULTILINE)[0]
    return re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)


def test_a_skeleton_of_one_s_own() -> None:
    (block,) = blocks("### Your own skeleton")
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["model"](torch.randn(2, 3, 64, 11, 3)).shape == (2, 7)


def test_maps_on_request() -> None:
    (skeleton,), (maps,) = blocks("### Your own skeleton"), blocks("### The network alone")
    names: dict[str, Any] = {"clips": torch.randn(2, 1, 64, 11, 3)}
    exec(skeleton + maps, names)
    assert names["maps"].focal_joints.shape == (2, 1, 16, 5)


def test_a_sweep_of_one_s_own() -> None:
    from fgst.config import PRESETS
    from fgst.data.skeleton import NTU_25
    from fgst.sweep.definition import grid_points

    text = (README.parent / "sweeps" / "README.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, Any] = {"__name__": "kernel"}
    exec(block, names)
    base = PRESETS["paper"]
    points = list(grid_points(names["definition"].parameters(NTU_25, base)))
    configs = [base.with_values(names["definition"].settings(point, base)) for point in points]
    assert [config.model.kernel_size for config in configs] == [3, 5, 7, 9]


def test_every_row_of_the_ablations_is_a_network() -> None:
    from fgst.cli.options import read_overrides
    from fgst.config import TrialConfig

    section = README.read_text().split("### The network alone", 1)[1].split("### ", 1)[0]
    rows = re.findall(r"^\| Table.*\| (.*) \|$", section, flags=re.MULTILINE)
    assert len(rows) == 6
    for cell in rows:
        for settings in re.findall(r"`([^`]*)`", cell):
            TrialConfig().with_values(read_overrides(settings.split()))
