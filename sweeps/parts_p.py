"""Into how many body parts P should stage 2 divide the skeleton?

Examples:
  python sweeps/parts_p.py                                         generated motion, preset demo
  python sweeps/parts_p.py --dataset datasets/nw-ucla --preset small --values 1,5,10 --seeds 3

By default, all partitions of the skeleton are compared, up to one part per joint. The paper uses P = 10 and does not
compare other values. The part branch is on, also with a preset that has none.
"""

from fgst.cli.sweep import main
from fgst.sweep import Parameter, SweepDefinition

definition = SweepDefinition(
    name="parts_p",
    title="How many body parts P?",
    parameters=lambda skeleton, base: [Parameter("P", skeleton.known_parts)],
    settings=lambda params, base: {"model.parts": params["P"], "model.part_branch": True},
    baseline=10,
)

if __name__ == "__main__":
    main(definition, __doc__)
