"""Questions on the small network, and searches that are answered without training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fgst.data.dataset import ArrowDataset
from fgst.sweep.definition import Parameter, Question, SweepSpec, Trials, make_spec

FOCAL_K = Question(
    name="focal_k",
    title="How many?",
    parameters=lambda skeleton, base: [Parameter("K", (2, skeleton.num_joints))],
    settings=lambda point, base: {"model.focal_joints": point["K"]},
    published={"K=2": 88.0, "K=4": 89.0},
    source="Table 2",
)

JOINT = Question(
    name="joint",
    title="Which together?",
    parameters=lambda skeleton, base: [
        Parameter("K", low=1, high=skeleton.num_joints, field="model.focal_joints"),
        Parameter("L1", low=1, high=3, field="model.stage1_layers"),
        Parameter("heads", (1, 2)),
        Parameter("d2", low=1, high=3, when=("heads", (2,))),
        Parameter("lr", low=0.01, high=0.2, log=True, on_request=True),
    ],
    settings=lambda point, base: {
        "model.focal_joints": point["K"],
        "model.stage1_layers": point["L1"],
        "model.stage2_layers": 4 - point["L1"],
        "model.dilations": [1, *(point[name] for name in ("d2",) if name in point)],
        **({"train.lr": point["lr"]} if "lr" in point else {}),
    },
    search="optuna",
    first=lambda skeleton, base: {"K": 4, "L1": 2, "heads": 2, "d2": 2},
)

Answer = Callable[[dict[str, Any], int], float]


def ask_for(question: Question, dataset: ArrowDataset, config: Any, **changes: Any) -> tuple[SweepSpec, Trials]:
    spec = make_spec(question, config, dataset, **changes)
    return spec, Trials(question, spec.base, dataset)
