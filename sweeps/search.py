"""Which K, P, layers and dilations are best together? A search by Optuna over all of them.

Examples:
  python sweeps/search.py --trials 50 --dry-run                    print sizes and estimated cost; start nothing
  python sweeps/search.py --dataset datasets/nw-ucla --preset small --trials 50 --early-stop
  python sweeps/search.py --dataset datasets/nw-ucla --trials 30 --also lr,dropout --enqueue "K=12,P=5"
  python sweeps/search.py --dataset datasets/nw-ucla --trials 40 --search nsga2 --objectives val_top1,flops

The paper's setting is tried first. L1 is the number of layers in stage 1, and the remaining layers form stage 2; heads
is the number of temporal heads, and d1 … d4 are their dilations.
"""

from collections.abc import Mapping
from typing import Any

from fgst.cli.sweep import main
from fgst.config import TrialConfig
from fgst.data import Skeleton
from fgst.sweep import Parameter, SweepDefinition

DILATIONS = ("d1", "d2", "d3", "d4")


def parameters(skeleton: Skeleton, base: TrialConfig) -> list[Parameter]:
    heads = tuple(heads for heads in (1, 2, 4) if all(width % heads == 0 for width in base.model.channels))
    frames = base.data.frames
    assert frames is not None  # filled in from the data set before this function is called
    return [
        Parameter("K", low=2, high=skeleton.num_joints, field="model.focal_joints"),
        Parameter("P", skeleton.known_parts, field="model.parts"),
        Parameter("L1", low=1, high=len(base.model.channels) - 1, field="model.stage1_layers"),
        Parameter("heads", heads),
        *(
            Parameter(name, low=1, high=4, condition=("heads", tuple(h for h in heads if h > head)))
            for head, name in enumerate(DILATIONS)
        ),
        Parameter("lr", low=0.005, high=0.2, log=True, field="train.lr", optional=True),
        Parameter("weight_decay", low=1e-5, high=1e-2, log=True, field="train.weight_decay", optional=True),
        Parameter("dropout", low=0.0, high=0.4, field="model.dropout", optional=True),
        Parameter("frames", (frames // 2, frames, 2 * frames), field="data.frames", optional=True),
    ]


def settings(params: Mapping[str, Any], base: TrialConfig) -> dict[str, Any]:
    fields = {
        "lr": "train.lr",
        "weight_decay": "train.weight_decay",
        "dropout": "model.dropout",
        "frames": "data.frames",
    }
    return {
        "model.focal_joints": params["K"],
        "model.parts": params["P"],
        "model.part_branch": True,
        "model.stage1_layers": params["L1"],
        "model.stage2_layers": len(base.model.channels) - params["L1"],
        # Sorted, because the order of the heads does not affect the network.
        "model.dilations": sorted(params[name] for name in DILATIONS if name in params),
        **{field: params[name] for name, field in fields.items() if name in params},
    }


def initial_params(skeleton: Skeleton, base: TrialConfig) -> dict[str, Any]:
    """Return the setting of the base, which is the paper's unless a preset or --set changes it."""
    model = base.model
    dilations = dict(zip(DILATIONS, model.dilations, strict=False))
    more = {"lr": base.train.lr, "weight_decay": base.train.weight_decay, "dropout": model.dropout}
    return {
        "K": model.focal_joints, "P": model.parts, "L1": model.stage1_layers, "heads": len(model.dilations),
        **dilations, **more, "frames": base.data.frames,
    }  # fmt: skip


definition = SweepDefinition(
    name="search",
    title="Which K, P, layers and dilations are best together?",
    parameters=parameters,
    settings=settings,
    search="optuna",
    initial_params=initial_params,
)

if __name__ == "__main__":
    main(definition, __doc__)
