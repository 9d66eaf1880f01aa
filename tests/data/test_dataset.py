"""Reading Arrow data sets: contents, memory mapping, digests."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc

from fgst.data.dataset import ArrowDataset, Clip
from tests.support.small import BENCHMARKS, CLASSES, SKELETON, motion_clips, write_small

N = SKELETON.num_joints
MAXIMUM = np.finfo(np.float32).max


def varied_clips() -> list[Clip]:
    """Clips of one and two persons and of 1 to 40 frames, with extreme finite float32 values."""
    rng = np.random.default_rng(7)
    clips = []
    for number, (persons, frames) in enumerate([(1, 1), (2, 1), (1, 3), (2, 40), (1, 2), (1, 17), (2, 5), (1, 1)]):
        joints = rng.normal(size=(persons, frames, N, 3)).astype(np.float32)
        joints.flat[:6] = [0.0, -0.0, 1e-45, -MAXIMUM, MAXIMUM, np.nextafter(np.float32(1), np.float32(2))]
        clips.append(Clip(f"ö {number}", number % 3, joints, 1 + number, 2 + number, 3 + number, 4 + number))
    return clips


@pytest.mark.parametrize(("shard_bytes", "files"), [(2**28, 1), (N * 3 * 4 * 10, 6), (1, 8)])
def test_round_trip_is_bit_exact(tmp_path: Path, shard_bytes: int, files: int) -> None:
    clips = varied_clips()
    write_small(tmp_path / "set", iter(clips), shard_bytes=shard_bytes)
    dataset = ArrowDataset(tmp_path / "set")

    assert len(list((tmp_path / "set").glob("*.arrow"))) == files
    assert len(dataset) == len(clips)
    assert dataset.clip_ids.tolist() == [clip.clip_id for clip in clips]
    for column in ("label", "subject", "camera", "setup", "replication"):
        assert dataset.columns[column].tolist() == [getattr(clip, column) for clip in clips]
        assert dataset.columns[column].dtype == np.int32
    for row, clip in enumerate(clips):
        read = dataset.clip(row)
        assert read.dtype == np.float32
        assert read.shape == clip.joints.shape == (
            dataset.columns["num_persons"][row], dataset.columns["num_frames"][row], N, 3,
        )  # fmt: skip
        assert read.tobytes() == clip.joints.tobytes()
    assert dataset.max_persons == 2
    assert (dataset.name, dataset.recipe, dataset.classes) == ("small", "ntu", CLASSES)
    assert dataset.num_classes == 3
    assert dataset.skeleton == SKELETON
    assert dataset.benchmarks == BENCHMARKS
    assert dataset.source == {"made by": "a test"}


def test_joints_are_converted_to_float32(tmp_path: Path) -> None:
    values = np.arange(2 * 4 * N * 3).reshape(2, 4, N, 3)
    clips = [
        Clip("double", 0, values / 7, 1),
        Clip("integer", 0, values, 5),
        Clip("not contiguous", 0, np.asfortranarray((values / 7).astype(np.float32)), 5),
    ]
    dataset = write_small(tmp_path / "set", clips)
    for row, clip in enumerate(clips):
        np.testing.assert_array_equal(dataset.clip(row), clip.joints.astype(np.float32))


def test_gather_concatenates_frames_person_by_person(tmp_path: Path) -> None:
    clips = varied_clips()
    dataset = write_small(tmp_path / "set", clips, shard_bytes=N * 3 * 4 * 10)
    rows = np.array([6, 0, 3, 3])
    expected = [frame for row in rows for person in clips[row].joints for frame in person]
    gathered = dataset.gather(rows)
    np.testing.assert_array_equal(gathered, np.stack(expected))
    gathered[:] = 0  # must not modify the data set
    np.testing.assert_array_equal(dataset.clip(6), clips[6].joints)
    assert dataset.gather(np.array([], np.int64)).shape == (0, N, 3)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps")
def test_clips_are_views_of_memory_mapped_files(tmp_path: Path) -> None:
    write_small(tmp_path / "set", varied_clips(), shard_bytes=N * 3 * 4 * 10)
    allocated_before = pa.total_allocated_bytes()
    dataset = ArrowDataset(tmp_path / "set")
    views = [dataset.clip(row) for row in range(len(dataset))]
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith(str(tmp_path)):
            first, last = (int(address, 16) for address in fields[0].split("-"))
            mapped.append((first, last, fields[5]))
    for view in views:
        files = {path for first, last, path in mapped if first <= view.ctypes.data < last}
        assert len(files) == 1
        assert files.pop().endswith(".arrow")
    assert len({path for _, _, path in mapped}) == 6
    # Arrow allocates memory for the concatenated columns only.
    assert pa.total_allocated_bytes() - allocated_before < 4096


def test_clips_are_read_only(tmp_path: Path) -> None:
    dataset = write_small(tmp_path / "set")
    view = dataset.clip(0)
    assert np.shares_memory(view, dataset.clip(0))
    assert not view.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0, 0, 0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        view.flags.writeable = True


def test_files_are_one_uncompressed_record_batch_without_nulls(tmp_path: Path) -> None:
    clips = varied_clips()
    write_small(tmp_path / "set", clips, shard_bytes=N * 3 * 4 * 50)
    files = sorted((tmp_path / "set").glob("*.arrow"))
    assert len(files) == 3
    content = b""
    for file in files:
        reader = ipc.open_file(str(file))
        assert reader.num_record_batches == 1
        assert reader.schema.names == [
            *("clip_id", "label", "subject", "camera", "setup", "replication", "num_persons", "num_frames", "joints")
        ]
        joints = reader.schema.field("joints").type
        assert joints.value_type.value_type == pa.float32()
        assert joints.value_type.list_size == N * 3
        assert all(column.null_count == 0 for column in reader.read_all().columns)
        content += file.read_bytes()
    for clip in clips:
        assert clip.joints.tobytes() in content


def test_files_can_be_read_with_arrow_alone(tmp_path: Path) -> None:
    """The layout is the documented one: a list of frames with N * 3 numbers each, person by person."""
    clips = varied_clips()
    write_small(tmp_path / "set", clips)
    table = ipc.open_file(str(tmp_path / "set" / "clips-00000.arrow")).read_all()
    for clip, row in zip(clips, table.to_pylist(), strict=True):
        joints = np.array(row["joints"], np.float32).reshape(row["num_persons"], row["num_frames"], N, 3)
        np.testing.assert_array_equal(joints, clip.joints)


def test_digest_does_not_depend_on_name_and_source(tmp_path: Path) -> None:
    digests = {
        write_small(tmp_path / "a").digest,
        ArrowDataset(tmp_path / "a").digest,
        write_small(tmp_path / "b", source={"url": "another source"}).digest,
        write_small(tmp_path / "c", name="another name").digest,
    }
    assert len(digests) == 1
    assert len(digests.pop()) == 64


def test_digest_depends_on_all_training_inputs(tmp_path: Path) -> None:
    clips = [*motion_clips()]
    modified_joints = clips[7].joints.copy()
    modified_joints[0, 0, 0, 0] = np.nextafter(modified_joints[0, 0, 0, 0], np.float32(1))
    other_parents = dataclasses.replace(SKELETON, parents=(0, 0, 1, 2, 1, 0))
    other_joint_name = dataclasses.replace(SKELETON, joints=(*SKELETON.joints[:5], "feet"))
    variants: dict[str, tuple[list[Clip], dict[str, Any]]] = {
        "unchanged": (clips, {}),
        "a value": ([*clips[:7], dataclasses.replace(clips[7], joints=modified_joints), *clips[8:]], {}),
        "a label": ([dataclasses.replace(clips[0], label=1), *clips[1:]], {}),
        "a subject": ([dataclasses.replace(clips[0], subject=2), *clips[1:]], {}),
        "a clip's name": ([dataclasses.replace(clips[0], clip_id="other"), *clips[1:]], {}),
        "the order": (clips[::-1], {}),
        "one clip less": (clips[:-1], {}),
        "a class name": (clips, {"classes": ("left hand", "right hand", "leg")}),
        "the order of classes": (clips, {"classes": CLASSES[::-1]}),
        "the skeleton's bones": (clips, {"skeleton": other_parents}),
        "the skeleton's parts": (clips, {"skeleton": dataclasses.replace(SKELETON, partitions=())}),
        "a joint's name": (clips, {"skeleton": other_joint_name}),
        "the training subjects": (
            clips,
            {"benchmarks": [dataclasses.replace(BENCHMARKS[0], train=(1, 2, 3)), BENCHMARKS[1]]},
        ),
    }
    digests = {
        name: write_small(tmp_path / name, members, **changes).digest for name, (members, changes) in variants.items()
    }
    assert len(set(digests.values())) == len(digests), digests
