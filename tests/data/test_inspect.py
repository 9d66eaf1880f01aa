"""``python -m data_prep.inspect``: its summary and pictures, and error messages for damaged data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fgst.cli import data_inspect
from fgst.cli.command import run_command
from fgst.data.skeletons import SKELETONS
from fgst.evaluation import plots
from tests.support.small import write_small


def main(argv: list[str]) -> None:
    """Run the command as its entry point does."""
    run_command(lambda: data_inspect.main(argv))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(write_small(tmp_path / "small").path)


def test_summary_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(folder)])
    out = capsys.readouterr().out
    for text in ("all files are intact", "clips     36", "stick-6, 6 joints", "x-sub     24 train, 12 test"):
        assert text in out


def test_description_without_digest_is_noted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(folder)])
    assert "has no digest" not in capsys.readouterr().out
    description = json.loads((folder / "dataset.json").read_text())
    del description["sha256"]
    (folder / "dataset.json").write_text(json.dumps(description))
    main([str(folder)])
    assert "dataset.json has no digest" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--out", "clip.png"], ["--animate", "--out", "clip.gif"]])
def test_clip_is_drawn(
    arguments: list[str],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    main([str(folder), "--clip", "clip-004", *arguments])
    out = capsys.readouterr().out
    assert "num_persons 2" in out
    with Image.open(tmp_path / arguments[-1]) as picture:
        frames = int(out.split("num_frames")[1].split()[0])
        assert getattr(picture, "n_frames", 1) == (frames if "--animate" in arguments else 1)
        colours = np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0).astype(int)
    blue, orange = (0, 114, 178), (213, 94, 0)  # two persons
    for expected in (blue, orange):
        assert np.abs(colours - expected).max(axis=1).min() < 12


def test_joints_that_were_not_seen_are_not_drawn() -> None:
    joints = np.ones((2, 3, 4, 3)) * [[[1], [2], [-1], [3]]]
    joints[0, 0, 0] = 0  # the centre, within the body
    joints[0, 1, 3] = 0  # another joint
    joints[1, 0, 0] = 0
    joints[1, 0, 2] = 4  # the origin is outside of this body
    joints[1, 2] = 0
    seen = plots.seen_joints(joints, centre=0)
    expected = np.ones((2, 3, 4), bool)
    expected[0, 1, 3] = expected[1, 0, 0] = False
    expected[1, 2] = False
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("name", SKELETONS)
def test_skeleton_is_listed_and_drawn(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--skeleton", name, "--out", str(tmp_path / "skeleton.png")])
    out = capsys.readouterr().out
    skeleton = SKELETONS[name]
    assert out.startswith(f"{name}: {skeleton.num_joints} joints\n")
    lines = out.splitlines()[1 : skeleton.num_joints + 1]
    assert [line.split()[:2] for line in lines] == [[str(i), joint] for i, joint in enumerate(skeleton.joints, 1)]
    assert [line.endswith("centre") for line in lines].index(True) == skeleton.centre
    assert (tmp_path / "skeleton.png").stat().st_size < 60_000
    with Image.open(tmp_path / "skeleton.png") as picture:
        colours = np.asarray(picture.convert("RGB")).astype(int)
    assert (colours[0, 0] == 255).all()  # light background
    blue, orange = (np.abs(colours - colour).max(axis=2) < 12 for colour in ((0, 114, 178), (213, 94, 0)))
    if name == "shrec-22":
        assert not orange.any()
        return
    # Seen from the front, the person's left, blue, is right of the person's right; the joints are left of the parts.
    joints = colours.shape[1] * 5.6 / 8.6
    left, right = (np.flatnonzero(side[:, : int(joints)].any(axis=0)) for side in (blue, orange))
    assert right.max() <= left.min() + 10


def test_own_skeleton_is_listed_and_drawn_if_its_joints_are_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    description: dict[str, Any] = {"name": "stick", "joints": ["pelvis", "head"], "bones": {"head": "pelvis"}}
    path, picture = tmp_path / "stick.json", tmp_path / "stick.png"
    path.write_text(json.dumps(description | {"centre": "head"}))
    main(["--skeleton", str(path), "--out", str(picture)])
    assert "2  head                 bone from 1 pelvis, centre" in capsys.readouterr().out
    with Image.open(picture) as image:
        assert image.width > image.height
    description = {"name": "robot", "joints": ["pelvis", "wheel"], "bones": {"wheel": "pelvis"}, "centre": "pelvis"}
    path.write_text(json.dumps(description))
    main(["--skeleton", str(path)])
    assert "P         2" in capsys.readouterr().out
    with pytest.raises(SystemExit) as raised:
        main(["--skeleton", str(path), "--out", str(tmp_path / "robot.png")])
    assert raised.value.code == 2
    assert "there is no position for its joint 'wheel'" in capsys.readouterr().err


def test_data_set_and_skeleton_exclude_each_other(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], [str(folder), "--skeleton", "coco-17"], ["--skeleton", "coco-17", "--clip", "clip-004"]):
        with pytest.raises(SystemExit) as raised:
            main(arguments)
        assert raised.value.code == 2
        assert "data set" in capsys.readouterr().err


def test_damage_and_invalid_options_are_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(*arguments: str) -> str:
        with pytest.raises(SystemExit) as raised:
            main([str(folder), *arguments])
        assert raised.value.code == 2
        return capsys.readouterr().err

    assert "similar names are clip-0" in error("--clip", "clip-4")
    assert "similar names are clip-004" in error("--clip", "004")
    assert "--clip" in error("--animate")
    assert "ends in .png" in error("--clip", "clip-004", "--out", "clip.xyz")
    (file,) = folder.glob("*.arrow")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert "was modified" in error()
