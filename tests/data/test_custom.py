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
from fgst.data.skeletons import SKELETONS, find_skeleton

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
    np.testing.assert_array_equal(dataset.clip(1), np.load(folder / "clips" / "b.npy").astype(np.float32))


def test_npz_gives_same_clips_as_folder(folder: Path) -> None:
    main(arguments(folder))
    np.savez(folder / "clips.npz", **{path.stem: np.load(path) for path in (folder / "clips").iterdir()})
    main([*arguments(folder, clips=folder / "clips.npz"), "--overwrite"])
    dataset = ArrowDataset(folder / "out")
    assert dataset.clip_ids.tolist() == ["a", "b", "c"]
    np.testing.assert_array_equal(dataset.clip(0)[0], np.load(folder / "clips" / "a.npy").astype(np.float32))


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
        ("labels.csv", "clip_id,label,subject\na,x,one\n", "line 2: subject is 'one'"),
        ("labels.csv", "clip_id,label,subject\na,,1\n", "line 2: has no clip_id or no label"),
        ("labels.csv", "clip_id,label,subject\nz,x,1\nb,y,2\n", "there is no file z.npy"),
        ("labels.csv", "clip_id,label,subject\n../skeleton,x,1\nb,y,2\n", "there is no file ../skeleton.npy"),
        ("labels.csv", "clip_id,label,subject\na,x,1\nb,y,1\n", "its test split is empty; subject is one of 1"),
        ("labels.csv", "clip_id,label\na,x\n", "has no subject, which benchmark x-sub splits by"),
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
        ("clips/a.npy", np.full((3, 5, 3), np.nan), "not a finite 32-bit number"),
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
        assert "17, 3), not (persons, frames, " in error
        assert "; skeletons of 17 joints: coco-17, h36m-17;" in error
        assert error.count("\n") == 1
    np.save(folder / "clips" / "a.npy", np.zeros((4, 17, 2)))
    with pytest.raises(SystemExit):
        main(arguments(folder, skeleton="coco-17"))
    assert "skeletons of" not in capsys.readouterr().err


@pytest.mark.parametrize("text", ["x-sub", "x-sub:person=1", "x-sub:subject=", "x-sub:subject=one"])
def test_malformed_benchmarks_are_rejected(text: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments(folder, benchmark=text))
    assert "NAME:COLUMN=VALUES" in capsys.readouterr().err
