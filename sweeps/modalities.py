"""How accurate is each modality (joints, bones, the motion of both) alone, and all four together? (Tables 5 and 6)

Examples:
  python sweeps/modalities.py                                      generated motion, preset demo
  python sweeps/modalities.py --sweep SWEEP_RUN_ID                 with the settings of that sweep's best trial
  python sweeps/modalities.py --from-run RUN_ID --refit            then retrain on all training clips
  python sweeps/modalities.py --dataset datasets/nw-ucla --preset small --protocol paper --seeds 3

Finally, the networks are fused into an ensemble, with weights fitted on the held-out subjects. The best ensemble of a
data set is registered as its champion. With --from-run or --sweep, networks that were already trained with the same
settings are reused.
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
