"""Damaged and inconsistent data sets are rejected with a message that names the file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc

from fgst.data.dataset import ArrowDataset, Clip
from fgst.data.skeletons import NTU_25
from fgst.errors import InputError
from fgst.integrity import with_digest
from tests.support.small import CLASSES, SKELETON, motion_clips, write_small

N = SKELETON.num_joints


def edit_description(folder: Path, **changes: Any) -> None:
    """Change entries of dataset.json, and adapt its digest; ``None`` removes an entry."""
    file = folder / "dataset.json"
    description = json.loads(file.read_text()) | changes
    del description["sha256"]
    file.write_text(json.dumps(with_digest({key: value for key, value in description.items() if value is not None})))


def put_file(folder: Path, content: bytes, name: str = "clips-00000.arrow") -> None:
    """Make ``content`` the only file of the data set, with a correct entry in the description."""
    (folder / name).write_bytes(content)
    edit_description(
        folder, files=[{"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}]
    )


def flip(path: Path, position: int) -> None:
    """Flip a bit of the byte at ``position``."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def flip_first_byte(folder: Path) -> None:
    flip(folder / "clips-00000.arrow", 0)


def flip_coordinate(folder: Path) -> None:
    content = (folder / "clips-00000.arrow").read_bytes()
    joints = next(motion_clips()).joints.tobytes()
    flip(folder / "clips-00000.arrow", content.index(joints) + 2)


def flip_last_byte(folder: Path) -> None:
    flip(folder / "clips-00000.arrow", -1)


def truncate(folder: Path, new_size: Callable[[int], int]) -> None:
    file = folder / "clips-00000.arrow"
    os.truncate(file, new_size(file.stat().st_size))


def lengthen(folder: Path) -> None:
    with (folder / "clips-00000.arrow").open("ab") as file:
        file.write(b"0")


def use_file_of(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Return a function that replaces the file of a data set by that of another one, which ``make`` writes."""

    def damage(folder: Path) -> None:
        make(folder.parent / "other")
        shutil.copy(folder.parent / "other" / "clips-00000.arrow", folder / "clips-00000.arrow")

    return damage


FILE_DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "first byte": (flip_first_byte, "modified"),
    "one bit of a coordinate": (flip_coordinate, "modified"),
    "last byte": (flip_last_byte, "modified"),
    "one byte short": (lambda folder: truncate(folder, lambda size: size - 1), "truncated"),
    "half": (lambda folder: truncate(folder, lambda size: size // 2), "truncated"),
    "empty": (lambda folder: truncate(folder, lambda size: 0), "truncated"),
    "one byte more": (lengthen, "longer"),
    "missing": (lambda folder: (folder / "clips-00000.arrow").unlink(), "missing"),
    "other clips": (
        use_file_of(lambda out: write_small(out, motion_clips(seed=1))),
        "modified|truncated|longer",
    ),
}


@pytest.mark.parametrize("damage", FILE_DAMAGES)
def test_damaged_file_is_reported(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "set"
    write_small(folder)
    ArrowDataset(folder)
    apply_damage, fault = FILE_DAMAGES[damage]
    apply_damage(folder)
    with pytest.raises(InputError, match=rf"clips-00000\.arrow.*({fault}).*prepare") as raised:
        ArrowDataset(folder)
    assert str(raised.value).startswith(str(folder))


def test_damaged_file_among_several_is_reported(tmp_path: Path) -> None:
    write_small(tmp_path / "set", shard_bytes=N * 3 * 4 * 50)
    flip(tmp_path / "set" / "clips-00002.arrow", 700)
    with pytest.raises(InputError, match=r"clips-00002\.arrow.*modified"):
        ArrowDataset(tmp_path / "set")


@pytest.mark.parametrize("verify", [True, False])
def test_truncated_file_is_reported_with_and_without_verification(tmp_path: Path, verify: bool) -> None:
    write_small(tmp_path / "set")
    truncate(tmp_path / "set", lambda size: size - 64)
    with pytest.raises(InputError, match=r"clips-00000\.arrow.*truncated"):
        ArrowDataset(tmp_path / "set", verify=verify)


def arrow_file(schema: pa.Schema, batches: list[pa.RecordBatch]) -> bytes:
    """Return the content of an Arrow file with these record batches."""
    sink = pa.BufferOutputStream()
    with ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def test_file_with_other_columns_is_reported(tmp_path: Path) -> None:
    write_small(tmp_path / "set")
    batch = pa.record_batch({"a": [1, 2, 3]})
    put_file(tmp_path / "set", arrow_file(batch.schema, [batch]))
    with pytest.raises(InputError, match=r"clips-00000\.arrow.*columns"):
        ArrowDataset(tmp_path / "set")


def test_file_with_another_skeleton_is_reported(tmp_path: Path) -> None:
    write_small(tmp_path / "set")
    clip = Clip("a", 0, np.zeros((1, 2, 25, 3), np.float32))
    write_small(tmp_path / "other", [clip], skeleton=NTU_25)
    put_file(tmp_path / "set", (tmp_path / "other" / "clips-00000.arrow").read_bytes())
    with pytest.raises(InputError, match=r"clips-00000\.arrow.*columns"):
        ArrowDataset(tmp_path / "set")


@pytest.mark.parametrize(("batches", "fault"), [(2, "2 record batches"), (0, "0 record batches")])
def test_file_without_exactly_one_record_batch_is_reported(tmp_path: Path, batches: int, fault: str) -> None:
    write_small(tmp_path / "set")
    batch = ipc.open_file(str(tmp_path / "set" / "clips-00000.arrow")).get_batch(0)
    put_file(tmp_path / "set", arrow_file(batch.schema, [batch] * batches))
    with pytest.raises(InputError, match=rf"clips-00000\.arrow.*{fault}"):
        ArrowDataset(tmp_path / "set")


def test_file_without_clips_is_reported(tmp_path: Path) -> None:
    write_small(tmp_path / "set")
    batch = ipc.open_file(str(tmp_path / "set" / "clips-00000.arrow")).get_batch(0)
    put_file(tmp_path / "set", arrow_file(batch.schema, [batch.slice(0, 0)]))
    with pytest.raises(InputError, match=r"clips-00000\.arrow.*no clip"):
        ArrowDataset(tmp_path / "set")


def edited_batch(folder: Path, **columns: Any) -> pa.RecordBatch:
    """Return the record batch of a data set with other values in some columns."""
    batch = ipc.open_file(str(folder / "clips-00000.arrow")).get_batch(0)
    arrays = [
        pa.array(columns[field.name], field.type) if field.name in columns else batch.column(field.name)
        for field in batch.schema
    ]
    return pa.record_batch(arrays, schema=batch.schema)


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ({"num_frames": [2] * 36}, "does not have the frames"),
        ({"num_persons": [0] * 36}, "num_persons of clip 0 is 0"),
        ({"num_frames": [-1] * 36}, "num_frames of clip 0 is -1"),
        ({"num_persons": [2**30] * 36, "num_frames": [2**30] * 36}, "does not have the frames"),
        ({"subject": [1] * 35 + [-7]}, "subject of clip 35 is -7"),
        ({"subject": [1] * 35 + [None]}, "column subject contains nulls"),
        ({"clip_id": [None] * 36}, "column clip_id contains nulls"),
    ],
    ids=str,
)
def test_inconsistent_clips_are_reported(tmp_path: Path, columns: dict[str, Any], fault: str) -> None:
    write_small(tmp_path / "set")
    batch = edited_batch(tmp_path / "set", **columns)
    put_file(tmp_path / "set", arrow_file(batch.schema, [batch]))
    with pytest.raises(InputError, match=rf"clips-00000\.arrow.*{fault}"):
        ArrowDataset(tmp_path / "set")


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compressed_files_are_rejected(tmp_path: Path, codec: str) -> None:
    """A compressed file of a few kilobytes could take all memory."""
    write_small(tmp_path / "set")
    batch = edited_batch(tmp_path / "set")
    sink = pa.BufferOutputStream()
    with ipc.new_file(sink, batch.schema, options=ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_batch(batch)
    put_file(tmp_path / "set", sink.getvalue().to_pybytes())
    with pytest.raises(InputError, match=r"clips-00000\.arrow.*it is compressed"):
        ArrowDataset(tmp_path / "set")


def test_offsets_outside_the_file_are_rejected(tmp_path: Path) -> None:
    """The digest of a hostile file may be correct, and Arrow itself would read memory outside the file."""
    folder = tmp_path / "set"
    write_small(folder)
    content = (folder / "clips-00000.arrow").read_bytes()
    offsets = edited_batch(folder).column("joints").offsets.to_numpy()
    wild = offsets.copy()
    wild[5] = 2**30
    assert content.count(offsets.tobytes()) == 1
    put_file(folder, content.replace(offsets.tobytes(), wild.tobytes()))
    with pytest.raises(InputError, match=r"clips-00000\.arrow: is not an Arrow file"):
        ArrowDataset(folder)


@pytest.mark.parametrize("content", [b"", b"not an Arrow file" * 100, b"ARROW1\0\0" + b"\xff" * 500 + b"ARROW1"])
def test_file_that_is_not_arrow_is_reported(tmp_path: Path, content: bytes) -> None:
    write_small(tmp_path / "set")
    put_file(tmp_path / "set", content)
    with pytest.raises(InputError, match=r"clips-00000\.arrow.*not an Arrow file"):
        ArrowDataset(tmp_path / "set")


@pytest.mark.parametrize("name", ["../clips-00000.arrow", "../other/clips-00000.arrow", "sub/clips-00000.arrow", "/"])
def test_files_outside_the_folder_are_rejected(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "set"
    write_small(folder)
    for target in (tmp_path, tmp_path / "other", folder / "sub"):
        target.mkdir(exist_ok=True)
        shutil.copy(folder / "clips-00000.arrow", target)
    (entry,) = json.loads((folder / "dataset.json").read_text())["files"]
    name = str(tmp_path / "clips-00000.arrow") if name == "/" else name
    edit_description(folder, files=[entry | {"name": name}])
    with pytest.raises(InputError, match=r"dataset\.json.*points outside the data set's directory"):
        ArrowDataset(folder)


@pytest.mark.parametrize("version", [0, 2, "1", 1.5, None])
def test_other_format_versions_are_rejected(tmp_path: Path, version: Any) -> None:
    write_small(tmp_path / "set")
    edit_description(tmp_path / "set", format=version)
    with pytest.raises(InputError, match=r"dataset\.json.*format.*reads format 1"):
        ArrowDataset(tmp_path / "set")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[]", b"3", b"null", b"{}", b'{"format": 1}'])
def test_malformed_description_is_reported(tmp_path: Path, content: bytes) -> None:
    write_small(tmp_path / "set")
    (tmp_path / "set" / "dataset.json").write_bytes(content)
    with pytest.raises(InputError, match=r"set/dataset\.json"):
        ArrowDataset(tmp_path / "set")


@pytest.mark.parametrize("key", ["name", "recipe", "skeleton", "classes", "benchmarks", "files", "source"])
def test_missing_key_of_description_is_reported(tmp_path: Path, key: str) -> None:
    write_small(tmp_path / "set")
    edit_description(tmp_path / "set", **{key: None})
    with pytest.raises(InputError, match=rf"set/dataset\.json.*{key}"):
        ArrowDataset(tmp_path / "set")


@pytest.mark.parametrize(
    "changes",
    [
        {"skeleton": {}},
        {"skeleton": SKELETON.to_dict() | {"parents": [0, 0, 1, 1, 1, 6]}},
        {"skeleton": 3},
        {"classes": 3},
        {"files": []},
        {"files": [3]},
        {"files": [{"name": "clips-00000.arrow"}]},
        {"files": "clips-00000.arrow"},
        {"benchmarks": [{"name": "x-sub", "column": "joints", "train": [1]}]},
        {"benchmarks": [{"name": "x-sub", "column": "subject"}]},
        {"benchmarks": [{"name": "x-sub", "column": "subject", "train": ["a"]}]},
        {"benchmarks": []},
        {"source": [1]},
        {"recipe": "unknown"},
    ],
    ids=str,
)
def test_invalid_description_is_reported(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_small(tmp_path / "set")
    edit_description(tmp_path / "set", **changes)
    with pytest.raises(InputError, match=r"set/dataset\.json"):
        ArrowDataset(tmp_path / "set")


DESCRIPTION_CHANGES: dict[str, dict[str, Any]] = {
    "name": {"name": "smell"},
    "recipe": {"recipe": "nw-ucla"},
    "classes exchanged": {"classes": [CLASSES[1], CLASSES[0], CLASSES[2]]},
    "another class": {"classes": [*CLASSES, "head"]},
    "another subject trains": {
        "benchmarks": [{"name": "x-sub", "column": "subject", "train": [1, 2, 3], "test": None}]
    },
    "source": {"source": {"preparation": "ntu"}},
    "skeleton": {"skeleton": SKELETON.to_dict() | {"centre": 0}},
    "the digest itself": {"sha256": "0" * 64},
    "no digest": {"sha256": None},
}


@pytest.mark.parametrize("change", DESCRIPTION_CHANGES)
def test_changed_description_is_reported(tmp_path: Path, change: str) -> None:
    file = write_small(tmp_path / "set").path / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | DESCRIPTION_CHANGES[change]))
    with pytest.raises(InputError, match=r"set/dataset\.json.*it was modified after it was written"):
        ArrowDataset(tmp_path / "set")


def test_order_and_white_space_of_description_do_not_matter(tmp_path: Path) -> None:
    dataset = write_small(tmp_path / "set", source={1: "an integer as key", 10: ("a tuple", "ö")})
    file = dataset.path / "dataset.json"
    description = json.loads(file.read_text())
    file.write_text(json.dumps(dict(reversed(description.items())), ensure_ascii=False))
    assert ArrowDataset(tmp_path / "set").digest == dataset.digest


def test_description_of_earlier_version_is_read_without_digest(tmp_path: Path) -> None:
    dataset = write_small(tmp_path / "set")
    assert ArrowDataset(dataset.path).has_description_digest
    description = json.loads((dataset.path / "dataset.json").read_text())
    del description["sha256"]
    (dataset.path / "dataset.json").write_text(json.dumps(description))
    earlier = ArrowDataset(dataset.path)
    assert not earlier.has_description_digest
    assert earlier.digest == dataset.digest


@pytest.mark.parametrize("count", [35, "36", None])
def test_wrong_number_of_clips_is_reported(tmp_path: Path, count: Any) -> None:
    write_small(tmp_path / "set")
    edit_description(tmp_path / "set", num_clips=count)
    with pytest.raises(InputError, match=r"set/dataset\.json.*(lists 35 clips, but the files contain 36|num_clips)"):
        ArrowDataset(tmp_path / "set")


def test_unknown_entry_of_description_is_reported(tmp_path: Path) -> None:
    """A damaged name of an entry must not be taken for the absence of an optional one."""
    write_small(tmp_path / "set")
    edit_description(tmp_path / "set", sha257="0")
    with pytest.raises(InputError, match=r"set/dataset\.json.*unknown field sha257"):
        ArrowDataset(tmp_path / "set")


def test_labels_without_class_are_rejected(tmp_path: Path) -> None:
    write_small(tmp_path / "set")
    edit_description(tmp_path / "set", classes=list(CLASSES[:2]))
    with pytest.raises(InputError, match=r"set/dataset\.json.*class"):
        ArrowDataset(tmp_path / "set")


def test_missing_data_set_is_reported_with_preparation_commands(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such directory.*data_prep"):
        ArrowDataset(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"is not a data set.*data_prep"):
        ArrowDataset(tmp_path)
