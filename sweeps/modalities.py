"""How accurate is each modality (joints, bones, motion of both) alone, and all four as an ensemble? (Tables 5 and 6)

Examples:
  python sweeps/modalities.py                                      generated motion, the preset for this machine
  python sweeps/modalities.py --sweep SWEEP_RUN_ID                 with the settings of that sweep's best trial
  python sweeps/modalities.py --from-run RUN_ID --refit            that run's settings; retrain on all training clips
  python sweeps/modalities.py --dataset datasets/nw-ucla --preset small --protocol paper --seeds 3

At the end, the networks are fused into an ensemble, with weights fitted on the held-out subjects. The best ensemble of
a data set is registered as its champion. Modalities that have been trained with the same settings are not retrained.
"""

from fgst.cli.sweep import main
from fgst.config import MODALITIES
from fgst.sweep import Parameter, SweepDefinition

definition = SweepDefinition(
    name="modalities",
    title="How accurate is each modality alone?",
    parameters=lambda skeleton, base: [Parameter("modality", tuple(MODALITIES))],
    settings=lambda params, base: {"data.modality": params["modality"]},
    baseline="joint",
    builds_ensemble=True,
)

if __name__ == "__main__":
    main(definition, __doc__)
