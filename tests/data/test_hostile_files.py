"""Hostile files: each is refused alone, in one line, and before it takes time or memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from fgst.config import PRESETS
from fgst.data.dataset import ArrowDataset
from fgst.data.formats import ntu, read_clip
from fgst.data.formats.custom import read_skeleton
from fgst.data.label_table import read_label_table
from fgst.data.skeleton import MAX_JOINTS, Skeleton
from fgst.data.skeletons import NTU_25
from fgst.data.sources import ClipError, open_source, parse_clip
from fgst.errors import InputError
from fgst.model.card import ModelCard, load_model
from fgst.parsing import read_json
from tests.support.ntu_corpus import FIRST_ID, Track, one, text
from tests.support.small import SKELETON

HUGE = 3.4e38


def npy_header(header: str) -> bytes:
    """Return an .npy file with this text in its header, and a few numbers."""
    content = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(content).to_bytes(2, "little") + content + bytes(64)


HOSTILE_ARRAYS = {
    "shape of terabytes": npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 6, 3)}"),
    "shape beyond 64 bits": npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (%s, 6, 3)}" % ("9" * 40)),
    "incomplete token": npy_header("{'descr': '''<f8"),
    "nested": npy_header("(" * 9000),
    "nested operators": npy_header("-" * 9000 + "1"),
    "objects": npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (1, 6, 3)}"),
    "zip": b"PK\x05\x06" + bytes(18),
    "pickle": b"\x80\x04N.",
}


@pytest.mark.parametrize("case", HOSTILE_ARRAYS)
def test_hostile_array_is_refused(case: str) -> None:
    with pytest.raises(InputError) as raised:
        read_clip(HOSTILE_ARRAYS[case], "array", SKELETON)
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("error", [MemoryError(), RecursionError("deep"), OverflowError("\nlarge"), KeyError("x")])
def test_any_exception_of_a_parser_is_a_fault_of_the_file(error: Exception) -> None:
    def parse(content: bytes) -> Any:
        raise error

    with pytest.raises(ClipError, match=type(error).__name__) as raised:
        parse_clip(parse, b"")
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"8000000\n" + b"0\n" * 8_000_000, "has 8,000,001 lines"),
        (b"900000\n" + b"0\n" * 900_000, "has 900,000 frames"),
        (b"1\n" * 2_000_000, "lines"),
        (b"\n" * 2_000_000, "lines"),
    ],
)
def test_ntu_file_of_too_many_frames_is_refused(content: bytes, fault: str) -> None:
    with pytest.raises(InputError, match=fault):
        read_clip(content, "ntu", NTU_25)


def test_ntu_file_of_huge_coordinates_does_not_end_the_batch(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "in"
    folder.mkdir()
    joints = np.where(np.arange(14 * 25 * 3).reshape(14, 25, 3) % 2, HUGE, -HUGE)
    (folder / "S001C001P001R001A001.skeleton").write_bytes(text(14, one(rng, 14)))
    (folder / "S001C001P001R001A002.skeleton").write_bytes(text(14, [Track(FIRST_ID, list(range(14)), joints)]))
    os.mkfifo(folder / "S001C001P001R001A003.skeleton")
    (folder / "S001C001P001R001A004.skeleton").write_bytes(b"8000000\n" + b"0\n" * 8_000_000)
    dataset, report = ntu.prepare([folder], tmp_path / "out", edition="60")
    assert dataset.clip_ids.tolist() == ["S001C001P001R001A001"]
    faults = {rejected.path: rejected.fault for rejected in report.rejected}
    assert "not a finite 32-bit number" in faults["S001C001P001R001A002.skeleton"]
    assert "not a regular file" in faults["S001C001P001R001A003.skeleton"]
    assert "larger" in faults["S001C001P001R001A004.skeleton"] or "lines" in faults["S001C001P001R001A004.skeleton"]


def test_members_without_name_are_ignored(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "clips.zip", "w") as archive:
        archive.writestr("ab.npy", b"content")
        archive.writestr("XXXX", b"nameless")
    content = (tmp_path / "clips.zip").read_bytes()
    # zipfile does not write empty names: shorten the name in both headers of the second member.
    # The name becomes an extra field, whose type is unknown and which is empty.
    content = content.replace(b"\x04\x00\x00\x00XXXX", b"\x00\x00\x04\x00\x99\x99\x00\x00")
    central = content.rindex(b"XXXX")
    lengths = central - 18  # of the name, and of the extra field
    content = (
        content[:lengths] + b"\0\0\4\0" + content[lengths + 4 : central] + b"\x99\x99\0\0" + content[central + 4 :]
    )
    (tmp_path / "clips.zip").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "clips.zip") as archive:
        assert "" in archive.namelist()
    with open_source(tmp_path / "clips.zip", suffix=".npy", max_bytes=100, hint="") as source:
        assert [file.name for file in source.files] == ["ab"]


# Preparation of custom data sets, in a process as a user starts it


def test_bad_clips_are_left_out_and_named(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    good = ["good1", "good2", "good3"]
    for name in good:
        np.save(clips / name, np.ones((4, 6, 3)))
    bad = {"header": HOSTILE_ARRAYS["incomplete token"], "terabytes": HOSTILE_ARRAYS["shape of terabytes"]}
    for name, content in bad.items():
        (clips / f"{name}.npy").write_bytes(content)
    np.save(clips / "infinite", np.full((4, 6, 3), np.inf))
    os.mkfifo(clips / "pipe.npy")
    (clips / "folder.npy").mkdir()
    names = [*good, *bad, "infinite", "pipe", "folder", "missing", "x" * 190]
    lines = [f"{name},wave {i % 2},{i % 3}" for i, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("clip_id,label,subject\n" + "\n".join(lines) + "\n")
    bones = {child: SKELETON.joints[parent] for child, parent in zip(SKELETON.joints, SKELETON.parents, strict=True)}
    description = {"name": "stick", "joints": SKELETON.joints, "bones": bones, "centre": "spine"}
    (tmp_path / "skeleton.json").write_text(json.dumps(description))
    command = [
        *(sys.executable, "-m", "data_prep.custom", "clips", "out", "--labels", "labels.csv", "--skeleton"),
        *("skeleton.json", "--benchmark", "x-sub:subject=1"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    stopped = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert stopped.returncode == 2
    assert stopped.stderr.count("\n") == len(names) - len(good) + 1
    assert "\nfolder: there is no file folder.npy\n" in f"\n{stopped.stderr}"
    assert "7 clips are not usable, all listed above; fix or remove them, or pass --skip-bad" in stopped.stderr
    assert not (tmp_path / "out").exists()
    done = subprocess.run(
        [*command, "--skip-bad"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    dataset = ArrowDataset(tmp_path / "out")
    assert dataset.clip_ids.tolist() == good
    assert dataset.source["left_out"] == len(names) - len(good)
    for name in set(names) - set(good):
        assert f" {name}: " in done.stdout


# JSON and CSV


def skeleton_fields(count: int, **changes: Any) -> dict[str, Any]:
    """Return a description of a chain of joints."""
    names = [f"joint {i}" for i in range(count)]
    bones = {names[i]: names[i - 1] for i in range(1, count)}
    return {"name": "chain", "joints": names, "bones": bones, "centre": names[0]} | changes


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (json.dumps(skeleton_fields(3, bones={"joint 0": "joint 1", "joint 1": "joint 0"})), "form a ring"),
        (json.dumps(skeleton_fields(100_000)), "joints: expected array of length <= 10000"),
        (json.dumps(skeleton_fields(3)).replace('"joint 1": "joint 0"', '"joint 1": "joint 0", "joint 1": "joint 2"'),
         "has the key 'joint 1' twice"),
        (json.dumps(skeleton_fields(3, name="x" * 2**20)), "name: expected str of length <= 200"),
        (json.dumps(skeleton_fields(3, centre=None)), "centre: expected str, got null"),
        (json.dumps(skeleton_fields(3, joints=[1, 2])), r"joints\[0\]: expected str, got int"),
        ("[" * 100_000, "expected object, got array"),
        ('{"name": ' + "[" * 100_000, "name: expected str, got array"),
        ('{"other": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
    ],
    ids=lambda value: value[:30],
)  # fmt: skip
def test_hostile_skeleton_is_refused(tmp_path: Path, content: str, fault: str) -> None:
    (tmp_path / "skeleton.json").write_text(content)
    with pytest.raises(InputError, match=rf"skeleton\.json: .*{fault}") as raised:
        read_skeleton(tmp_path / "skeleton.json")
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 600


def test_largest_skeleton_is_read(tmp_path: Path) -> None:
    (tmp_path / "skeleton.json").write_text(json.dumps(skeleton_fields(MAX_JOINTS)))
    skeleton = read_skeleton(tmp_path / "skeleton.json")
    assert skeleton.parents[-1] == MAX_JOINTS - 2


@pytest.mark.parametrize("parents", [(1, 0), (0, 2, 3, 1), (1, 2, 0)])
def test_ring_of_bones_is_refused(parents: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="form a ring"):
        Skeleton("ring", tuple("abcd"[: len(parents)]), parents)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("clip_id,label,label\na,b,c\n", "has two columns 'label'"),
        ("clip_id,label\na,b,c\n", "line 2: has more cells"),
        ("clip_id,label\na," + "x" * 2**20 + "\n", "line 2: field larger than field limit"),
        ("clip_id,label\n" + "x" * 300 + ",b\n", "line 2: clip_id x+... must be at most 200"),
        ("clip_id,label\na\0,b\n", r"line 2: clip_id a\\x00 must be"),
        ("", "has no column clip_id"),
    ],
    ids=lambda value: value[:30],
)
def test_hostile_table_is_refused(tmp_path: Path, content: str, fault: str) -> None:
    (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(InputError, match=rf"labels\.csv: {fault}") as raised:
        read_label_table(tmp_path / "labels.csv")
    assert str(raised.value).isprintable()


def test_pipes_devices_and_folders_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(InputError, match="is not a regular file"):
            read_json(path, int, what="a number")
        with pytest.raises(InputError, match="is not a regular file"):
            read_label_table(path)
    for path in (tmp_path / ("x" * 300), tmp_path / "a\0b", tmp_path / "\ud800"):
        with pytest.raises(InputError) as raised:
            read_json(path, int, what="a number")
        assert str(raised.value).isprintable()


# Networks


def write_card(folder: Path, values: dict[str, Any], **changes: Any) -> Path:
    """Write the card of a network with these settings."""
    config = PRESETS["tiny"].flat() | {"model.focal_joints": 4, "model.parts": 3, "data.recipe": "ntu"} | values
    content = {
        "config": config, "skeleton": SKELETON.to_dict(), "classes": ["a", "b"], "max_persons": 2,
        "dataset": {"name": "small", "digest": "0" * 64}, "preparation": "array",
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    path = folder / "config.json"
    path.write_text(json.dumps(content | changes))
    return path


@pytest.mark.parametrize(
    "values",
    [
        {"data.frames": 10**9},
        {"model.channels": [10**9] * 4},
        {"model.channels": [16] * 100_000, "model.stage1_layers": 99_999, "model.stage2_layers": 1},
        {"model.dilations": [10**9, 1]},
        {"model.dilations": [1] * 1024, "model.channels": [1024] * 4},
        {"model.kernel_size": 10**9 + 1},
        {"model.spatial_heads": 10**9},
        {"model.head_width": 10**9},
    ],
    ids=lambda values: next(iter(values)),
)
def test_oversized_settings_are_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"config\.json: .*{next(iter(values))}"):
        ModelCard.read(write_card(tmp_path, values))


@pytest.mark.parametrize("changes", [{"max_persons": 10**9}, {"classes": ["a"] * 200_000}], ids=["persons", "classes"])
def test_oversized_card_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"config\.json: .*{next(iter(changes))}"):
        ModelCard.read(write_card(tmp_path, {}, **changes))


def test_network_larger_than_its_weights_is_not_allocated(tmp_path: Path) -> None:
    """The network would have more than ten billion weights."""
    write_card(tmp_path, {"model.channels": [16_384] * 8, "model.stage1_layers": 4, "model.stage2_layers": 4})
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    with pytest.raises(InputError, match="1,000 bytes instead of at least"):
        load_model(tmp_path)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"model.temporal": "attention"},
    {"model.temporal": "convolution", "model.dilations": [1]},
    {"model.part_branch": False, "model.cross_attention": False},
    {"model.shared_branches": True, "model.cross_attention": False},
    {"model.focal_selection": False, "model.head_width": 1, "model.spatial_heads": 1},
]


@pytest.mark.parametrize("values", VARIANTS, ids=str)
def test_network_is_loaded_from_the_weights_it_has(tmp_path: Path, values: dict[str, Any]) -> None:
    """The size that is required before the network is built is not larger than its weights."""
    card = ModelCard.read(write_card(tmp_path, values))
    weights = card.build().state_dict()
    save_file(weights, tmp_path / "model.safetensors")
    model, _ = load_model(tmp_path)
    assert model.state_dict().keys() == weights.keys()
