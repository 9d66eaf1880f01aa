"""How many temporal heads, and which dilation for the convolution of each head?

Examples:
  python sweeps/dilation.py                                        generated motion, preset demo
  python sweeps/dilation.py --dataset datasets/nw-ucla --preset small --values "1,2;1,3;1,2,3,4"

A value lists one dilation per temporal head; separate values with semicolons. The paper uses 1,2 and does not compare
other dilations.
"""

from fgst.cli.sweep import main
from fgst.sweep import Parameter, SweepDefinition

definition = SweepDefinition(
    name="dilation",
    title="Which dilations of the temporal heads?",
    parameters=lambda skeleton, base: [
        Parameter("dilations", ("1", "2", "1,1", "1,2", "1,3", "1,4", "2,3", "1,2,3,4"))
    ],
    settings=lambda params, base: {"model.dilations": str(params["dilations"])},
    baseline="1,2",
)

if __name__ == "__main__":
    main(definition, __doc__)
