"""What does each spatial block add: focal joints, body parts, attention between them? (Table 1 of the paper)

Examples:
  python sweeps/spatial_blocks.py                                  generated motion, preset demo
  python sweeps/spatial_blocks.py --dataset datasets/nw-ucla --preset small --epochs 8 --seeds 3
  python sweeps/spatial_blocks.py --dataset datasets/nw-ucla --values "Basic-SFormer,+ JP-CA"

Each row adds one block to the row above it.
"""

from fgst.cli.sweep import main
from fgst.sweep import Parameter, Published, SweepDefinition

FLAGS = ("model.focal_selection", "model.part_branch", "model.cross_attention")
ROWS = {
    "Basic-SFormer": (False, False, False),
    "+ focal joints": (True, False, False),
    "+ body parts": (True, True, False),
    "+ JP-CA": (True, True, True),
}
PAPER = dict(zip(ROWS, (87.8, 88.3, 89.1, 89.5), strict=True))

definition = SweepDefinition(
    name="spatial_blocks",
    title="What does each spatial block add?",
    parameters=lambda skeleton, base: [Parameter("blocks", tuple(ROWS))],
    settings=lambda params, base: dict(zip(FLAGS, ROWS[params["blocks"]], strict=True)),
    published=Published(PAPER, source="Table 1", benchmark="NTU-60 X-Sub"),
    baseline="Basic-SFormer",
)

if __name__ == "__main__":
    main(definition, __doc__)
