"""Data sets with custom skeletons: folders and archives of arrays, and error messages for invalid input."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgst.cli import data_custom
from fgst.cli.command import run_command
from fgst.cli.options import read_overrides
from fgst.config import PRESETS
from fgst.data.dataset import ArrowDataset
from fgst.data.formats import read_clip
from fgst.data.skeletons import SKELETONS, find_skeleton
from fgst.data.synthetic import demo_clips
from fgst.evaluation.inference import Predictor
from tests.support.small import save_untrained_network

SKELETON: dict[str, Any] = {
    "name": "hand-5",
    "joints": ["wrist", "thumb", "index", "middle", "ring"],
    "bones": {"thumb": "wrist", "index": "wrist", "middle": "wrist", "ring": "wrist"},
    "centre": "wrist",
    "partitions": [[["wrist"], ["thumb"], ["index", "middle", "ring"]]],
}
LABELS = "clip_id,label,subject\nb,wave,1\na,fist,2\nc,wave,2\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three clips, their labels and their skeleton."""
    rng = np.random.default_rng(0)
    (tmp_path / "clips").mkdir()
    for name, shape in (("a", (7, 5, 3)), ("b", (2, 9, 5, 3)), ("c", (4, 5, 3))):
        np.save(tmp_path / "clips" / f"{name}.npy", rng.normal(size=shape))
    (tmp_path / "labels.csv").write_text(LABELS)
    (tmp_path / "skeleton.json").write_text(json.dumps(SKELETON))
    return tmp_path


def main(argv: list[str]) -> None:
    """Run the command as its entry point does."""
    run_command(lambda: data_custom.main(argv))


def arguments(folder: Path, **changes: Any) -> list[str]:
    """Return the command line for the files in ``folder``, with some files or options replaced."""
    files = {"clips": folder / "clips", "labels": folder / "labels.csv", "skeleton": folder / "skeleton.json"} | changes
    return [
        str(files["clips"]), str(folder / "out"), "--labels", str(files["labels"]),
        "--skeleton", str(files["skeleton"]), "--benchmark", str(changes.get("benchmark", "x-sub:subject=1")),
    ]  # fmt: skip


def test_folder_of_arrays_is_prepared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(arguments(folder))
    assert "x-sub     1 train, 2 test (by subject)" in capsys.readouterr().out
    dataset = ArrowDataset(folder / "out")
    assert dataset.clip_ids.tolist() == ["a", "b", "c"]
    assert dataset.classes == ("fist", "wave")
    assert dataset.columns["label"].tolist() == [0, 1, 1]
    assert dataset.columns["num_persons"].tolist() == [1, 2, 1]
    assert dataset.skeleton.parents == (0, 0, 0, 0, 0)
    assert dataset.skeleton.partition(3) == ((0,), (1,), (2, 3, 4))
    assert len(dataset.source["sha256"]) == 64
    clip = np.load(folder / "clips" / "b.npy")
    assert dataset.clip(1).shape == clip.shape
    np.testing.assert_array_equal(dataset.clip(1)[0, 0, 0], 0)  # the centre joint of the first frame


def test_report_says_what_can_be_held_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With one training clip validation is impossible, and the commands that follow train on all clips."""
    main(arguments(folder))
    report = capsys.readouterr().out
    assert (
        "validation: not possible: all training clips of benchmark x-sub are a single recording of each class, so none "
        "can be held out for validation; train on all of them with --protocol paper"
    ) in report
    commands = [line for line in report.splitlines() if line.startswith("  python ")]
    assert len(commands) == 2
    assert all(" --protocol paper" in command for command in commands)

    table = "clip_id,label,subject\n" + "".join(f"a{i},fist,{1 + i % 2}\n" for i in range(8))
    (folder / "labels.csv").write_text(table)
    for i in range(8):
        np.save(folder / "clips" / f"a{i}.npy", np.ones((4, 5, 3)))
    for name in "abc":
        (folder / "clips" / f"{name}.npy").unlink()
    main([*arguments(folder), "--overwrite"])
    report = capsys.readouterr().out
    assert "            validation: 1 of 4 recordings, from all classes: 1 clip\n" in report
    assert "--protocol paper" not in report


def test_npz_gives_same_clips_as_folder(folder: Path) -> None:
    main(arguments(folder))
    np.savez(folder / "clips.npz", **{path.stem: np.load(path) for path in (folder / "clips").iterdir()})
    main([*arguments(folder, clips=folder / "clips.npz"), "--overwrite"])
    dataset = ArrowDataset(folder / "out")
    assert dataset.clip_ids.tolist() == ["a", "b", "c"]
    clip = np.load(folder / "clips" / "a.npy")
    np.testing.assert_allclose(dataset.clip(0)[0], clip - clip[0, 0], atol=1e-6)


class Exploit:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("labels.csv", "clip_id,class\na,b\n", "has no column label"),
        ("labels.csv", "clip_id,label\n", "lists no clip"),
        ("labels.csv", "clip_id,label,subject\na,x,1\na,y,1\n", "line 3: clip a occurs twice"),
        ("labels.csv", "clip_id,label,subject\na,,1\n", "line 2: has no clip_id or no label"),
        ("labels.csv", "clip_id,label,subject\nz,x,1\nb,y,2\n", "there is no file z.npy"),
        ("labels.csv", "clip_id,label,subject\n../skeleton,x,1\nb,y,2\n", "there is no file ../skeleton.npy"),
        ("labels.csv", "clip_id,label,subject\na,x,1\nb,y,1\n", "its test split is empty; subject is one of 1"),
        ("labels.csv", "clip_id,label\na,x\n", "its header is clip_id, label"),
        ("skeleton.json", "{", "is not a skeleton description"),
        ("skeleton.json", json.dumps(SKELETON | {"centre": "elbow"}), "name 'elbow'"),
        (
            "skeleton.json",
            json.dumps({k: v for k, v in SKELETON.items() if k != "bones"}),
            "object missing required field bones",
        ),
        ("skeleton.json", json.dumps(SKELETON | {"partitions": [[["wrist"]]]}), "a partition into 1 parts"),
        ("clips/a.npy", "text", "is not an array of numbers"),
        ("clips/a.npy", np.array([Exploit()], dtype=object), "object values, not numbers"),
        ("clips/a.npy", np.zeros((3, 4, 3)), "has shape (1, 3, 4, 3), not (persons"),
        ("clips/a.npy", np.full((3, 5, 3), np.nan), "no joint of any person is seen"),
        ("clips/a.npy", np.full((3, 5, 3), np.inf), "a coordinate is not a finite number"),
        ("clips/a.npy", np.zeros((0, 5, 3)), "has shape"),
        ("clips/a.npy", np.full((3, 5, 3), "x"), "not numbers"),
    ],
)
def test_invalid_files_are_reported(
    file: str, content: Any, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if isinstance(content, str):
        (folder / file).write_text(content)
    else:
        np.save(folder / file, content, allow_pickle=True)
    with pytest.raises(SystemExit) as raised:
        main(arguments(folder))
    error = capsys.readouterr().err
    assert raised.value.code == 2
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "out").exists()


@pytest.mark.parametrize("name", [*SKELETONS, "nw-ucla-20"])
def test_skeletons_that_ship_are_known_by_name(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    skeleton = find_skeleton(name)
    assert skeleton is not None
    for clip in "abc":
        np.save(folder / "clips" / f"{clip}.npy", np.ones((4, skeleton.num_joints, 3)))
    main(arguments(folder, skeleton=name))
    assert ArrowDataset(folder / "out").skeleton == skeleton
    # The command that the report suggests has settings that fit the skeleton.
    (command,) = (line for line in capsys.readouterr().out.splitlines() if "fgst.train" in line)
    overrides = [word for word in shlex.split(command) if "=" in word]
    for preset in PRESETS.values():
        preset.with_values(read_overrides(overrides)).model.check_skeleton(skeleton)


def test_unknown_skeleton_lists_those_that_ship(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments(folder, skeleton="coco-18"))
    error = capsys.readouterr().err
    assert raised.value.code == 2
    assert error.count("\n") == 1
    assert "--skeleton coco-18: there is no such file or skeleton" in error
    assert all(f"{name} ({skeleton.num_joints})" in error for name, skeleton in SKELETONS.items())


def test_skeletons_that_fit_the_arrays_are_suggested(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(folder / "clips" / "a.npy", np.zeros((4, 17, 3)))
    for skeleton in ("openpose-18", folder / "skeleton.json"):
        with pytest.raises(SystemExit):
            main(arguments(folder, skeleton=skeleton))
        error = capsys.readouterr().err
        assert "has shape (1, 4, 17, 3), not (persons, frames, " in error
        assert "; --skeleton coco-17 or h36m-17 has 17 joints;" in error
        assert error.count("\n") == 1
    np.save(folder / "clips" / "a.npy", np.zeros((4, 17, 2)))
    with pytest.raises(SystemExit):
        main(arguments(folder, skeleton="coco-17"))
    assert "--skeleton coco-17" not in capsys.readouterr().err


@pytest.mark.parametrize("text", ["x-sub", "x-sub:subject=", "x-sub:subject=1/", ":subject=1"])
def test_malformed_benchmarks_are_rejected(text: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments(folder, benchmark=text))
    assert "NAME:COLUMN=TRAINING_VALUES" in capsys.readouterr().err


# What is noticed, recorded and reported


def body_clips(folder: Path, change: Any = lambda joints: joints) -> Path:
    """Write generated clips of two persons and more in the NTU-25 skeleton, and a table with a column split."""
    (folder / "bodies").mkdir(exist_ok=True)
    lines = ["clip_id;label;subject;split"]
    for number, clip in enumerate(demo_clips(12, 3, seed=0)):
        np.save(folder / "bodies" / f"{clip.clip_id}.npy", change(clip.joints))
        lines.append(f"{clip.clip_id};{clip.label + 1};P{clip.subject:02d};{'test' if number % 4 == 0 else 'train'}")
    (folder / "bodies.csv").write_text("\n".join(lines))
    return folder / "bodies"


def prepare_bodies(folder: Path, *options: str) -> ArrowDataset:
    files = [str(folder / "bodies"), str(folder / "out"), "--labels", str(folder / "bodies.csv")]
    main([*files, "--skeleton", "ntu-25", "--overwrite", *options])
    return ArrowDataset(folder / "out")


def test_far_recording_in_millimetres_becomes_the_same_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body_clips(tmp_path)
    expected = prepare_bodies(tmp_path)
    clips = [expected.clip(row).copy() for row in range(len(expected))]
    capsys.readouterr()
    body_clips(tmp_path, lambda joints: 1000 * (joints.astype(float) + np.array([0.4, -0.3, 3.0])))
    dataset = prepare_bodies(tmp_path)
    for row, clip in enumerate(clips):
        np.testing.assert_allclose(dataset.clip(row), clip, atol=1e-5)
    output = capsys.readouterr().out
    assert "taken for millimetres and converted to metres" in output
    assert "subject: P01 to P02 are numbered 1 to 2" in output
    assert "split     9 train, 3 test" in output
    # A file that is read individually, as for prediction, is normalized in the same way.
    assert dataset.normalization is not None
    assert dataset.normalization.scale == 0.001
    for row, clip_id in enumerate(dataset.clip_ids):
        content = (tmp_path / "bodies" / f"{clip_id}.npy").read_bytes()
        clip = read_clip(content, dataset.preparation, dataset.skeleton, dataset.normalization)
        np.testing.assert_array_equal(clip, dataset.clip(row))


def test_trained_network_normalizes_raw_clips(tmp_path: Path) -> None:
    clips = body_clips(tmp_path, lambda joints: 1000 * (joints + 3))
    dataset = prepare_bodies(tmp_path)
    network = save_untrained_network(dataset, tmp_path / "network", data__benchmark="split", model__parts=5)
    predictor = Predictor.load(network)
    assert predictor.card.normalization == dataset.normalization
    content = (clips / f"{dataset.clip_ids[3]}.npy").read_bytes()
    np.testing.assert_array_equal(predictor.read(content), dataset.clip(3))


def test_options_override_what_is_noticed(tmp_path: Path) -> None:
    clips = body_clips(tmp_path, lambda joints: joints + np.float32(3))
    dataset = prepare_bodies(tmp_path, "--unit", "mm", "--up=z", "--no-centre")
    raw = np.load(clips / f"{dataset.clip_ids[0]}.npy")
    np.testing.assert_allclose(dataset.clip(0), raw[..., [0, 2, 1]] * [0.001, 0.001, -0.001], atol=1e-6)


def test_incomplete_tables_are_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "labels.csv").write_text("clip_id,label,subject\na.npy,wave,1\nb,fist,2\n")
    main(arguments(folder))
    output = capsys.readouterr().out
    assert "1 .npy files are not in the table of labels (c)" in output
    assert "x-sub: no training clip of 1 class (fist)" in output


def test_table_without_any_benchmark_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([word for word in arguments(folder) if word not in ("--benchmark", "x-sub:subject=1")])
    assert "there is no benchmark" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_file_format_that_is_not_clear_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (folder / "clips").iterdir():
        path.rename(path.with_suffix(".xyz"))
    with pytest.raises(SystemExit):
        main(arguments(folder))
    assert "contains no clip; give a folder or zip of files with one clip each" in capsys.readouterr().err
