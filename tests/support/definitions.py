"""Sweep definitions for the small network of :mod:`tests.support.small`."""

from __future__ import annotations

from typing import Any

from fgst.data.dataset import ArrowDataset
from fgst.sweep.definition import Parameter, Published, SweepDefinition, TrialFactory
from fgst.sweep.spec import SweepSpec, build_spec

FOCAL_K = SweepDefinition(
    name="focal_k",
    title="How many?",
    parameters=lambda skeleton, base: [Parameter("K", (2, skeleton.num_joints))],
    settings=lambda params, base: {"model.focal_joints": params["K"]},
    published=Published({2: 88.0, 4: 89.0}, source="Table 2", benchmark="NTU-60 X-Sub"),
)

JOINT = SweepDefinition(
    name="joint",
    title="Which combination?",
    parameters=lambda skeleton, base: [
        Parameter("K", low=1, high=skeleton.num_joints, field="model.focal_joints"),
        Parameter("L1", low=1, high=3, field="model.stage1_layers"),
        Parameter("heads", (1, 2)),
        Parameter("d2", low=1, high=3, condition=("heads", (2,))),
        Parameter("lr", low=0.01, high=0.2, log=True, optional=True),
    ],
    settings=lambda params, base: {
        "model.focal_joints": params["K"],
        "model.stage1_layers": params["L1"],
        "model.stage2_layers": 4 - params["L1"],
        "model.dilations": [1, *(params[name] for name in ("d2",) if name in params)],
        **({"train.lr": params["lr"]} if "lr" in params else {}),
    },
    search="optuna",
    initial_params=lambda skeleton, base: {"K": 4, "L1": 2, "heads": 2, "d2": 2},
)


def build_sweep(
    definition: SweepDefinition, dataset: ArrowDataset, config: Any, **changes: Any
) -> tuple[SweepSpec, TrialFactory]:
    """Build what a runner needs: the sweep's specification and the factory of its trials.

    Args:
        changes: keyword arguments of :func:`~fgst.sweep.definition.build_spec`.
    """
    spec = build_spec(definition, config, dataset, **changes)
    return spec, TrialFactory(definition, spec.base, dataset)
