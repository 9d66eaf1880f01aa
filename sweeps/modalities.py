"""What does each modality reach alone: joints, bones, and the motion of both?

Examples:
  python sweeps/modalities.py                                      generated motion, the preset for this machine
  python sweeps/modalities.py --dataset datasets/nw-ucla --preset small --protocol paper --seeds 3
"""

from fgst.modality import MODALITIES
from fgst.sweep import Parameter, Question, main

question = Question(
    name="modalities",
    title="What does each modality reach alone?",
    parameters=lambda skeleton, base: [Parameter("modality", tuple(MODALITIES))],
    settings=lambda point, base: {"data.modality": point["modality"]},
    baseline="modality=joint",
    fuses=True,
)

if __name__ == "__main__":
    main(question, __doc__)
