"""The demo data set: it is deterministic, has plausible motion, and is learnable without being trivial."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fgst.cli import data_demo
from fgst.cli.command import run_command
from fgst.data import synthetic
from fgst.data.dataset import ArrowDataset
from fgst.data.skeletons import NTU_25
from fgst.data.synthetic import (
    ACTIONS,
    JOINT,
    LOST,
    LOST_NOISE,
    OFFSETS,
    TREE,
    forward_kinematics,
    make_demo,
    rotation_matrices,
)

# For each class, a joint whose position the action determines, one of a limb that takes no part, and the joint that
# their positions are relative to.
TELLING = {
    "raise the left hand": ("left_hand", "right_hand", "spine_at_shoulders"),
    "push the other person": ("left_wrist", "left_ankle", "base_of_spine"),
    "wave the right hand": ("right_hand", "left_hand", "spine_at_shoulders"),
    "kick with the right foot": ("right_ankle", "left_ankle", "base_of_spine"),
    "kick with the left foot": ("left_ankle", "right_ankle", "base_of_spine"),
    "clap": ("right_wrist", "right_ankle", "base_of_spine"),
    "squat": ("left_knee", "left_wrist", "base_of_spine"),
    "wave both hands": ("left_wrist", "left_ankle", "base_of_spine"),
    "bow": ("head", "left_wrist", "base_of_spine"),
    "march on the spot": ("left_knee", "left_wrist", "base_of_spine"),
    "twist the trunk": ("spine_at_shoulders", "left_wrist", "base_of_spine"),
    "shake hands": ("right_wrist", "left_wrist", "spine_at_shoulders"),
}


@pytest.fixture(scope="module")
def all_classes(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    """All twelve classes, each performed once by each subject and recorded by both cameras."""
    return make_demo(tmp_path_factory.mktemp("all_classes") / "demo", clips=240, classes=12)


@pytest.fixture(scope="module")
def well_tracked(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    """The same performances without badly tracked joints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "LOST", 0.0)
        return make_demo(tmp_path_factory.mktemp("well_tracked") / "demo", clips=240, classes=12)


def content(dataset: ArrowDataset) -> dict[str, bytes]:
    """Return the content of all files by name."""
    return {file.name: file.read_bytes() for file in dataset.path.iterdir()}


def main(argv: list[str]) -> None:
    """Run the command as its entry point does."""
    run_command(lambda: data_demo.main(argv))


def error_line(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Run the command, which must fail with a single line on stderr, and return the line."""
    with pytest.raises(SystemExit) as raised_exit:
        main([str(word) for word in argv])
    assert raised_exit.value.code == 2
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    return stderr


def test_equal_arguments_give_equal_files(demo: ArrowDataset, tmp_path: Path) -> None:
    copy = make_demo(tmp_path / "copy", clips=48, classes=4)
    assert content(copy) == content(demo)
    other = make_demo(tmp_path / "other", clips=48, classes=4, seed=1)
    assert other.digest != demo.digest
    assert not np.array_equal(other.clip(0), demo.clip(0))


def test_smaller_data_set_is_prefix_of_larger_one(demo: ArrowDataset, tmp_path: Path) -> None:
    smaller = make_demo(tmp_path / "smaller", clips=25, classes=4)  # one camera only for the last performance
    assert len(smaller) == 25
    for row in range(25):
        assert smaller.clip_ids[row] == demo.clip_ids[row]
        assert np.array_equal(smaller.clip(row), demo.clip(row))


@pytest.mark.parametrize("classes", [2, 3, 8, 12])
def test_splits_have_all_classes_with_minimum_number_of_clips(classes: int, tmp_path: Path) -> None:
    dataset = make_demo(tmp_path / "demo", clips=6 * classes, classes=classes)
    assert [benchmark.name for benchmark in dataset.benchmarks] == ["x-sub", "x-view"]
    for benchmark in dataset.benchmarks:
        splits = dataset.splits(benchmark.name)
        for rows in (splits.train, splits.val, splits.test):
            assert set(dataset.columns["label"][rows].tolist()) == set(range(classes))
        assert sorted(np.concatenate([splits.train, splits.val, splits.test]).tolist()) == list(range(len(dataset)))


def test_properties_of_clips(all_classes: ArrowDataset) -> None:
    assert all_classes.skeleton == NTU_25
    assert all_classes.recipe == "ntu"
    assert len(set(all_classes.clip_ids)) == 240
    assert set(all_classes.columns["subject"].tolist()) == set(range(1, 11))
    assert np.bincount(all_classes.columns["label"]).tolist() == [20] * 12
    frames = all_classes.columns["num_frames"]
    assert frames.min() >= 40
    assert frames.max() <= 80
    assert len(np.unique(frames)) > 30
    for row in range(len(all_classes)):
        joints = all_classes.clip(row)
        assert np.isfinite(joints).all()
        assert np.abs(joints).max() < 3.0  # metres
        assert not joints[0, 0, NTU_25.centre].any()
        upright = joints[:, :, JOINT["spine_at_shoulders"], 1] - joints[:, :, JOINT["left_ankle"], 1]
        assert upright.max() > 0.5  # also with both legs in random postures


def test_only_classes_with_two_persons_have_two_persons(all_classes: ArrowDataset) -> None:
    for row in range(len(all_classes)):
        action = all_classes.classes[all_classes.columns["label"][row]]
        joints = all_classes.clip(row)
        assert len(joints) == (2 if action in ("push the other person", "shake hands") else 1)
        if len(joints) == 2:
            spines = joints[:, :, NTU_25.centre]
            distances = np.linalg.norm((spines[0] - spines[1])[:, [0, 2]], axis=-1)
            assert 0.3 < distances.min() <= distances.max() < 1.6
            assert joints[1].std(axis=0).min() > 0  # the second person moves


def test_few_classes_include_one_with_two_persons(demo: ArrowDataset, tmp_path: Path) -> None:
    assert demo.max_persons == 2
    assert make_demo(tmp_path / "two", clips=12, classes=2).max_persons == 2


def test_both_cameras_record_same_performances(well_tracked: ArrowDataset) -> None:
    """The best rotation between two views leaves only the sensor noise."""
    rows = {name: row for row, name in enumerate(well_tracked.clip_ids)}
    pairs = [(row, rows[name[:-1] + "2"]) for name, row in rows.items() if name.endswith("v1")]
    assert len(pairs) == 120
    for one, two in pairs[::7]:
        a, b = (well_tracked.clip(row).reshape(-1, 3).astype(float) for row in (one, two))
        a, b = a - a.mean(0), b - b.mean(0)
        u, _, v = np.linalg.svd(a.T @ b)
        residual = np.abs(a @ (u @ v) - b).mean()
        assert residual < 0.03
        assert np.abs(a - b).mean() > 2 * residual
        assert [well_tracked.columns["camera"][row] for row in (one, two)] == [1, 2]
        for column in ("label", "subject", "replication", "num_frames"):
            assert well_tracked.columns[column][one] == well_tracked.columns[column][two]


def test_telling_joints_are_listed_for_all_classes() -> None:
    assert list(TELLING) == [action.name for action in ACTIONS]


@pytest.mark.parametrize("action", TELLING)
def test_action_determines_its_joints_only(well_tracked: ArrowDataset, action: str) -> None:
    """The other limbs jump from posture to posture: the largest second differences of their positions are larger."""
    telling, other, reference = (JOINT[joint] for joint in TELLING[action])
    steps = []
    for row in np.flatnonzero(well_tracked.columns["label"] == well_tracked.classes.index(action)):
        person = well_tracked.clip(int(row))[0].astype(float)
        relative = person[:, [telling, other]] - person[:, [reference]]
        steps.append(np.quantile(np.linalg.norm(np.diff(relative, axis=0, n=2), axis=-1), 0.95, axis=0))
    determined, random = np.median(steps, axis=0)
    assert determined < random / 2


def test_postures_of_other_limbs_belong_to_subject_and_action(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each frame has one of the postures, which are the same in another performance of the same subject and action."""
    seen: list[bytes] = []
    alternate = synthetic._alternate

    def record(postures: np.ndarray, frames: int, rng: np.random.Generator) -> np.ndarray:
        turns = alternate(postures, frames, rng)
        nearest = np.abs(turns[:, None] - postures).max(axis=(-2, -1)).min(axis=1)
        assert nearest.max() < 6 * synthetic.POSTURE_VARIATION
        assert len(np.unique(turns, axis=0)) < frames / 3
        seen.append(postures.tobytes())
        return turns

    monkeypatch.setattr(synthetic, "_alternate", record)
    list(synthetic.demo_clips(80, 2, seed=0))  # two performances of two actions by each of ten subjects
    # Head and legs of all three persons, and one arm of those who move only the other one.
    limbs = 3 * 3 + 2
    assert len(seen) == 2 * 10 * limbs
    first, second = seen[: 10 * limbs], seen[10 * limbs :]
    assert first == second
    assert len(set(first)) == len(first)


def test_number_of_badly_tracked_joints(all_classes: ArrowDataset) -> None:
    """The second difference over time of a joint that moves smoothly is its sensor noise times √6."""
    shoulders = [JOINT["left_shoulder"], JOINT["right_shoulder"], JOINT["spine_at_shoulders"], JOINT["base_of_spine"]]
    noise = np.concatenate([
        np.diff(all_classes.clip(row)[0][:, shoulders], axis=0, n=2).std(axis=(0, 2)) / np.sqrt(6)
        for row in range(len(all_classes))
    ])  # fmt: skip
    lost = noise > LOST_NOISE / 2
    assert np.allclose(noise[lost], LOST_NOISE, rtol=0.35)
    assert lost.mean() == pytest.approx(LOST, abs=0.06)


def test_poses_are_plausible() -> None:
    """The signs of the axes are correct: a raised hand is above the head, kicks point forward, knees bend backward."""

    def pose(name: str) -> np.ndarray:
        (action,) = (action for action in ACTIONS if action.name == name)
        turns = np.zeros((64, NTU_25.num_joints, 3))
        phase = np.linspace(0, 2 * np.pi, 64)
        for move in action.moves:
            turns[:, JOINT[move.joint], "xyz".index(move.axis)] += move.rest + move.swing * np.sin(phase + move.lag)
        return forward_kinematics(rotation_matrices(turns), OFFSETS)

    def of(positions: np.ndarray, joint: str) -> np.ndarray:
        return positions[:, JOINT[joint]]

    raised = pose("raise the left hand")
    assert of(raised, "left_hand")[:, 1].max() > of(raised, "head")[:, 1].max()
    assert of(raised, "left_hand")[:, 1].min() < of(raised, "spine_at_shoulders")[:, 1].min()
    kick = pose("kick with the right foot")
    assert of(kick, "right_foot")[:, 2].max() > 0.4
    bow = pose("bow")
    assert of(bow, "head")[:, 2].max() > 0.25
    squat = pose("squat")
    assert of(squat, "left_ankle")[:, 1].max() > -0.7  # closer to the hips than with a straight leg, 0.83
    assert (of(squat, "left_knee") - of(squat, "left_ankle"))[:, 2].max() > 0.1
    clap = np.linalg.norm(of(pose("clap"), "left_hand") - of(pose("clap"), "right_hand"), axis=-1)
    assert clap.min() < 0.2 < 0.3 < clap.max()
    wave = pose("wave the right hand")
    assert of(wave, "right_hand")[:, 1].max() > of(wave, "right_shoulder")[:, 1].max()
    assert of(wave, "right_hand")[:, 0].max() < -0.2  # on the right side of the body
    both = pose("wave both hands")
    assert np.allclose(of(both, "left_hand") * (-1, 1, 1), of(both, "right_hand"))


def test_rotation_matrices_rotate_by_the_vector() -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 3)) * np.logspace(-9, 0.3, 50)[:, None]
    matrices = rotation_matrices(vectors)
    assert np.allclose(matrices @ matrices.swapaxes(-1, -2), np.eye(3))
    assert np.allclose(np.linalg.det(matrices), 1)
    assert np.allclose(np.einsum("bij,bj->bi", matrices, vectors), vectors)  # the axis is invariant
    angles = np.linalg.norm(vectors, axis=-1)
    assert np.allclose(np.trace(matrices, axis1=-2, axis2=-1), 1 + 2 * np.cos(angles))
    assert np.allclose(rotation_matrices(np.array([0, 0, np.pi / 2])) @ (1, 0, 0), (0, 1, 0))


def test_bone_lengths_are_constant() -> None:
    turns = np.random.default_rng(0).normal(size=(7, NTU_25.num_joints, 3))
    positions = forward_kinematics(rotation_matrices(turns), OFFSETS)
    for joint, parent in TREE:
        length = np.linalg.norm(positions[:, joint] - positions[:, parent], axis=-1)
        assert np.allclose(length, np.linalg.norm(OFFSETS[joint]))
    assert sorted(joint for joint, _ in TREE) == list(range(1, NTU_25.num_joints))


def test_classes_are_learnable_but_not_trivial(all_classes: ArrowDataset) -> None:
    """A nearest-centroid classifier on mean positions and motion is far above chance and far from perfect."""
    splits = all_classes.splits("x-sub", validation=0)

    def features(row: int) -> np.ndarray:
        person = all_classes.clip(row)[0].astype(float)
        person = person - person[:, [NTU_25.centre]]
        return np.concatenate([person.mean(0).ravel(), 3 * person.std(0).ravel()])

    values = np.stack([features(row) for row in range(len(all_classes))])
    labels = all_classes.columns["label"]
    centres = np.stack([values[splits.train][labels[splits.train] == label].mean(0) for label in range(12)])
    predictions = np.linalg.norm(values[splits.test][:, None] - centres, axis=-1).argmin(1)
    accuracy = (predictions == labels[splits.test]).mean()
    assert 0.3 < accuracy < 0.95


def test_description_marks_data_as_generated(demo: ArrowDataset) -> None:
    assert demo.name == "demo"
    assert demo.source == {"generated": True, "seed": 0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--classes", 13), "--classes is 13; it must be from 2 to 12"),
        (("--classes", 1), "--classes is 1; it must be from 2 to 12"),
        (("--clips", 47), "--clips is 47; 8 classes need at least 48"),
        (("--clips", -1), "--clips is -1"),
        (("--seed", -1), "--seed is -1"),
        (("--clips", "many"), "argument --clips: invalid int value: 'many'"),
    ],
)
def test_arguments_out_of_range_are_rejected(
    options: tuple[object, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in error_line(capsys, tmp_path / "demo", *options)
    assert not list(tmp_path.iterdir())


def test_existing_data_set_requires_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--clips", "12", "--classes", "2")
    main([str(tmp_path / "demo"), *small])
    assert capsys.readouterr().out.startswith("generated motion, not recordings\n")
    original = content(ArrowDataset(tmp_path / "demo"))
    assert "--overwrite to replace it" in error_line(capsys, tmp_path / "demo", *small, "--seed", 1)
    assert content(ArrowDataset(tmp_path / "demo")) == original
    main([str(tmp_path / "demo"), *small, "--seed", "1", "--overwrite"])
    assert ArrowDataset(tmp_path / "demo").source["seed"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_command_runs_in_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "data_prep.demo", str(tmp_path / "demo"), "--clips", "12", "--classes", "2"]
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert "generated motion, not recordings" in result.stdout
    assert result.stdout.endswith(f"  python sweeps/focal_k.py --dataset {tmp_path / 'demo'}\n")
