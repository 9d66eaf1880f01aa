"""How many focal joints K should be selected for stage 2? (Table 2 of the paper)

Examples:
  python sweeps/focal_k.py                                         generated motion, preset demo
  python sweeps/focal_k.py --dataset datasets/nw-ucla --preset tiny --values 5,15,20 --epochs 5
  python sweeps/focal_k.py --dataset datasets/nw-ucla --protocol paper --seeds 3
  python sweeps/focal_k.py --resume SWEEP_RUN_ID

Each value of K is trained once per seed. Each of these trials is a child run of the sweep's run in MLflow. The best one
is chosen on held-out training subjects; the test clips are scored once, after the last epoch. The last line of the
output is the next command to run.
"""

from fgst.cli.sweep import main
from fgst.sweep import Parameter, Published, SweepDefinition

PAPER = {3: 88.6, 6: 88.9, 9: 89.0, 12: 89.2, 15: 89.5, 18: 89.2, 21: 89.3, 25: 89.1}

definition = SweepDefinition(
    name="focal_k",
    title="How many focal joints K?",
    # The paper's values that are less than the number of joints, and the number of joints.
    parameters=lambda skeleton, base: [
        Parameter("K", (*(k for k in PAPER if k < skeleton.num_joints), skeleton.num_joints))
    ],
    settings=lambda params, base: {"model.focal_joints": params["K"]},
    published=Published(PAPER, source="Table 2", benchmark="NTU-60 X-Sub"),
    baseline=15,
    demo_values=(1, 6, 12, 25),
)

if __name__ == "__main__":
    main(definition, __doc__)
