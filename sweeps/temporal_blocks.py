"""Attention over frames, convolution over frames, or both, as in the FG-TFormer? (Table 3 of the paper)

Examples:
  python sweeps/temporal_blocks.py                                 generated motion, preset demo
  python sweeps/temporal_blocks.py --dataset datasets/nw-ucla --preset small --epochs 8 --seeds 3
  python sweeps/temporal_blocks.py --dataset datasets/nw-ucla --protocol paper --seeds 5
"""

from fgst.cli.sweep import main
from fgst.sweep import Parameter, Published, SweepDefinition

ROWS = {"Basic-TFormer": "attention", "TCN": "convolution", "FG-TFormer": "fg"}
PAPER = {"Basic-TFormer": 82.8, "TCN": 89.1, "FG-TFormer": 89.5}

definition = SweepDefinition(
    name="temporal_blocks",
    title="Attention over frames, convolution, or both?",
    parameters=lambda skeleton, base: [Parameter("block", tuple(ROWS))],
    settings=lambda params, base: {"model.temporal": ROWS[params["block"]]},
    published=Published(PAPER, source="Table 3", benchmark="NTU-60 X-Sub"),
    baseline="Basic-TFormer",
)

if __name__ == "__main__":
    main(definition, __doc__)
