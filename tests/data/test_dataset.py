"""The Arrow data set: what is written is what is read, and nothing half-written or damaged is ever taken for one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc

from fgst.data.dataset import ArrowDataset, Benchmark, Clip, file_digest
from fgst.data.skeleton import NTU_25
from fgst.data.writer import check_output, write_dataset
from fgst.errors import InputError
from tests.support.small import BENCHMARKS, CLASSES, SKELETON, kill_when_told, motion_clips, start_python, write_small

N = SKELETON.num_joints
MAXIMUM = np.finfo(np.float32).max


def odd_clips() -> list[Clip]:
    """Clips of one and two persons and of 1 to 40 frames, with every kind of finite float32 in them."""
    rng = np.random.default_rng(7)
    clips = []
    for number, (persons, frames) in enumerate([(1, 1), (2, 1), (1, 3), (2, 40), (1, 2), (1, 17), (2, 5), (1, 1)]):
        joints = rng.normal(size=(persons, frames, N, 3)).astype(np.float32)
        joints.flat[:6] = [0.0, -0.0, 1e-45, -MAXIMUM, MAXIMUM, np.nextafter(np.float32(1), np.float32(2))]
        clips.append(Clip(f"ö {number}", number % 3, joints, 1 + number, 2 + number, 3 + number, 4 + number))
    return clips


def snapshot(folder: Path) -> dict[str, str]:
    """Every file under a folder with its digest, and every folder."""
    return {
        str(entry.relative_to(folder)): file_digest(entry) if entry.is_file() else "folder"
        for entry in folder.rglob("*")
    }


def describe(folder: Path, **changes: Any) -> None:
    """Change entries of dataset.json; ``None`` removes one."""
    file = folder / "dataset.json"
    description = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in description.items() if value is not None}))


def put_file(folder: Path, content: bytes, name: str = "clips-00000.arrow") -> None:
    """Make ``content`` the only file of the data set, its size and digest as they should be."""
    (folder / name).write_bytes(content)
    describe(folder, files=[{"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}])


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


# Round trip


@pytest.mark.parametrize(("shard_bytes", "files"), [(2**28, 1), (N * 3 * 4 * 10, 6), (1, 8)])
def test_what_is_written_is_read_to_the_bit(tmp_path: Path, shard_bytes: int, files: int) -> None:
    clips = odd_clips()
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


def test_no_file_holds_more_than_shard_bytes_unless_of_one_clip(tmp_path: Path) -> None:
    limit = N * 3 * 4 * 45
    write_small(tmp_path / "set", shard_bytes=limit)
    files = sorted((tmp_path / "set").glob("*.arrow"))
    for file, following in zip(files, [*files[1:], None], strict=True):
        held = [frames * persons * N * 3 * 4 for frames, persons in _lengths(file)]
        assert sum(held) <= limit or len(held) == 1
        if following is not None:  # nor is a file closed early
            frames, persons = _lengths(following)[0]
            assert sum(held) + frames * persons * N * 3 * 4 > limit
    assert len(files) > 3


def _lengths(file: Path) -> list[tuple[int, int]]:
    table = ipc.open_file(str(file)).read_all()
    return list(zip(table["num_frames"].to_pylist(), table["num_persons"].to_pylist(), strict=True))


def test_joints_of_other_types_and_layouts_become_float32(tmp_path: Path) -> None:
    values = np.arange(2 * 4 * N * 3).reshape(2, 4, N, 3)
    clips = [
        Clip("double", 0, values / 7, 1),
        Clip("integer", 0, values, 5),
        Clip("not contiguous", 0, np.asfortranarray((values / 7).astype(np.float32)), 5),
    ]
    dataset = write_small(tmp_path / "set", clips)
    for row, clip in enumerate(clips):
        np.testing.assert_array_equal(dataset.clip(row), clip.joints.astype(np.float32))


def test_gather_puts_frames_person_by_person_one_after_another(tmp_path: Path) -> None:
    clips = odd_clips()
    dataset = write_small(tmp_path / "set", clips, shard_bytes=N * 3 * 4 * 10)
    rows = np.array([6, 0, 3, 3])
    expected = [frame for row in rows for person in clips[row].joints for frame in person]
    gathered = dataset.gather(rows)
    np.testing.assert_array_equal(gathered, np.stack(expected))
    gathered[:] = 0  # it is a copy
    np.testing.assert_array_equal(dataset.clip(6), clips[6].joints)
    assert dataset.gather(np.array([], np.int64)).shape == (0, N, 3)


def test_the_writer_holds_one_shard_at_a_time(tmp_path: Path) -> None:
    handed_out: list[weakref.ref[np.ndarray]] = []
    most = 0

    def clips() -> Iterator[Clip]:
        nonlocal most
        for number in range(40):
            joints = np.full((1, 10, N, 3), number, np.float32)
            handed_out.append(weakref.ref(joints))
            yield Clip(f"{number}", 0, joints, 1 + number)
            del joints
            most = max(most, sum(reference() is not None for reference in handed_out))

    write_small(tmp_path / "set", clips(), shard_bytes=5 * 10 * N * 3 * 4)
    assert 5 <= most <= 5 + 2


# Memory map


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps")
def test_a_clip_is_a_view_of_the_mapped_file(tmp_path: Path) -> None:
    write_small(tmp_path / "set", odd_clips(), shard_bytes=N * 3 * 4 * 10)
    before = pa.total_allocated_bytes()
    dataset = ArrowDataset(tmp_path / "set")
    views = [dataset.clip(row) for row in range(len(dataset))]
    mapped = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith(str(tmp_path)):
            first, last = (int(address, 16) for address in fields[0].split("-"))
            mapped.append((first, last, fields[5]))
    for view in views:
        homes = {path for first, last, path in mapped if first <= view.ctypes.data < last}
        assert len(homes) == 1
        assert homes.pop().endswith(".arrow")
    assert len({path for _, _, path in mapped}) == 6
    # Nothing in Arrow's own memory either, but for a few bytes of the joined columns.
    assert pa.total_allocated_bytes() - before < 4096


def test_a_clip_is_read_only(tmp_path: Path) -> None:
    dataset = write_small(tmp_path / "set")
    view = dataset.clip(0)
    assert np.shares_memory(view, dataset.clip(0))
    assert not view.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0, 0, 0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        view.flags.writeable = True


def test_each_file_is_one_uncompressed_record_batch_without_nulls(tmp_path: Path) -> None:
    clips = odd_clips()
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


def test_a_reader_of_the_file_alone_needs_only_arrow(tmp_path: Path) -> None:
    """The layout is the documented one: a list of frames, each of N * 3 numbers, person by person."""
    clips = odd_clips()
    write_small(tmp_path / "set", clips)
    table = ipc.open_file(str(tmp_path / "set" / "clips-00000.arrow")).read_all()
    for clip, row in zip(clips, table.to_pylist(), strict=True):
        joints = np.array(row["joints"], np.float32).reshape(row["num_persons"], row["num_frames"], N, 3)
        np.testing.assert_array_equal(joints, clip.joints)


# Opening what is not right


def flip_first(folder: Path) -> None:
    flip(folder / "clips-00000.arrow", 0)


def flip_a_coordinate(folder: Path) -> None:
    content = (folder / "clips-00000.arrow").read_bytes()
    some = next(motion_clips()).joints.tobytes()
    flip(folder / "clips-00000.arrow", content.index(some) + 2)


def flip_last(folder: Path) -> None:
    flip(folder / "clips-00000.arrow", -1)


def cut(folder: Path, kept: Callable[[int], int]) -> None:
    file = folder / "clips-00000.arrow"
    os.truncate(file, kept(file.stat().st_size))


def lengthen(folder: Path) -> None:
    with (folder / "clips-00000.arrow").open("ab") as file:
        file.write(b"0")


def take_a_file_of(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        make(folder.parent / "other")
        shutil.copy(folder.parent / "other" / "clips-00000.arrow", folder / "clips-00000.arrow")

    return damage


FILE_DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "first byte": (flip_first, "altered"),
    "one bit of a coordinate": (flip_a_coordinate, "altered"),
    "last byte": (flip_last, "altered"),
    "one byte short": (lambda folder: cut(folder, lambda size: size - 1), "truncated"),
    "half": (lambda folder: cut(folder, lambda size: size // 2), "truncated"),
    "empty": (lambda folder: cut(folder, lambda size: 0), "truncated"),
    "one byte more": (lengthen, "longer"),
    "missing": (lambda folder: (folder / "clips-00000.arrow").unlink(), "missing"),
    "other clips": (take_a_file_of(lambda out: write_small(out, motion_clips(seed=1))), "altered|truncated|longer"),
}


@pytest.mark.parametrize("damage", FILE_DAMAGES)
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "set"
    write_small(folder)
    ArrowDataset(folder)
    apply, what = FILE_DAMAGES[damage]
    apply(folder)
    with pytest.raises(InputError, match=rf"clips-00000\.arrow.*({what}).*prepare") as raised:
        ArrowDataset(folder)
    assert str(raised.value).startswith(str(folder))


def test_the_damaged_file_among_several_is_named(tmp_path: Path) -> None:
    write_small(tmp_path / "set", shard_bytes=N * 3 * 4 * 50)
    flip(tmp_path / "set" / "clips-00002.arrow", 700)
    with pytest.raises(InputError, match=r"clips-00002\.arrow.*altered"):
        ArrowDataset(tmp_path / "set")


@pytest.mark.parametrize("verify", [True, False])
def test_a_truncated_file_is_named_even_without_reading_it(tmp_path: Path, verify: bool) -> None:
    write_small(tmp_path / "set")
    cut(tmp_path / "set", lambda size: size - 64)
    with pytest.raises(InputError, match=r"clips-00000\.arrow.*truncated"):
        ArrowDataset(tmp_path / "set", verify=verify)


def arrow_file(schema: pa.Schema, batches: list[pa.RecordBatch]) -> bytes:
    sink = pa.BufferOutputStream()
    with ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def test_an_arrow_file_of_other_columns_is_named(tmp_path: Path) -> None:
    write_small(tmp_path / "set")
    batch = pa.record_batch({"a": [1, 2, 3]})
    put_file(tmp_path / "set", arrow_file(batch.schema, [batch]))
    with pytest.raises(InputError, match=r"clips-00000\.arrow.*columns"):
        ArrowDataset(tmp_path / "set")


def test_a_file_of_another_skeleton_is_named(tmp_path: Path) -> None:
    write_small(tmp_path / "set")
    clip = Clip("a", 0, np.zeros((1, 2, 25, 3), np.float32))
    write_small(tmp_path / "other", [clip], skeleton=NTU_25)
    put_file(tmp_path / "set", (tmp_path / "other" / "clips-00000.arrow").read_bytes())
    with pytest.raises(InputError, match=r"clips-00000\.arrow.*columns"):
        ArrowDataset(tmp_path / "set")


@pytest.mark.parametrize(("batches", "what"), [(2, "2 record batches"), (0, "0 record batches")])
def test_a_file_of_several_record_batches_is_named(tmp_path: Path, batches: int, what: str) -> None:
    write_small(tmp_path / "set")
    batch = ipc.open_file(str(tmp_path / "set" / "clips-00000.arrow")).get_batch(0)
    put_file(tmp_path / "set", arrow_file(batch.schema, [batch] * batches))
    with pytest.raises(InputError, match=rf"clips-00000\.arrow.*{what}"):
        ArrowDataset(tmp_path / "set")


def test_a_file_without_clips_is_named(tmp_path: Path) -> None:
    write_small(tmp_path / "set")
    batch = ipc.open_file(str(tmp_path / "set" / "clips-00000.arrow")).get_batch(0)
    put_file(tmp_path / "set", arrow_file(batch.schema, [batch.slice(0, 0)]))
    with pytest.raises(InputError, match=r"clips-00000\.arrow.*no clip"):
        ArrowDataset(tmp_path / "set")


@pytest.mark.parametrize("content", [b"", b"no Arrow file at all" * 100, b"ARROW1\0\0" + b"\xff" * 500 + b"ARROW1"])
def test_a_file_that_is_not_arrow_is_named(tmp_path: Path, content: bytes) -> None:
    write_small(tmp_path / "set")
    put_file(tmp_path / "set", content)
    with pytest.raises(InputError, match=r"clips-00000\.arrow.*not an Arrow file"):
        ArrowDataset(tmp_path / "set")


@pytest.mark.parametrize("name", ["../clips-00000.arrow", "../other/clips-00000.arrow", "sub/clips-00000.arrow", "/"])
def test_a_file_outside_the_folder_is_never_read(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "set"
    write_small(folder)
    for target in (tmp_path, tmp_path / "other", folder / "sub"):
        target.mkdir(exist_ok=True)
        shutil.copy(folder / "clips-00000.arrow", target)
    (entry,) = json.loads((folder / "dataset.json").read_text())["files"]
    name = str(tmp_path / "clips-00000.arrow") if name == "/" else name
    describe(folder, files=[entry | {"name": name}])
    with pytest.raises(InputError, match=r"dataset\.json.*leaves the data set's folder"):
        ArrowDataset(folder)


@pytest.mark.parametrize("found", [0, 2, "1", 1.5, None])
def test_another_format_number_is_refused(tmp_path: Path, found: Any) -> None:
    write_small(tmp_path / "set")
    describe(tmp_path / "set", format=found)
    with pytest.raises(InputError, match=r"dataset\.json.*format.*reads format 1"):
        ArrowDataset(tmp_path / "set")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[]", b"3", b"null", b"{}", b'{"format": 1}'])
def test_a_broken_description_is_named(tmp_path: Path, content: bytes) -> None:
    write_small(tmp_path / "set")
    (tmp_path / "set" / "dataset.json").write_bytes(content)
    with pytest.raises(InputError, match=r"set/dataset\.json"):
        ArrowDataset(tmp_path / "set")


@pytest.mark.parametrize("key", ["name", "recipe", "skeleton", "classes", "benchmarks", "files", "source"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    write_small(tmp_path / "set")
    describe(tmp_path / "set", **{key: None})
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
        {"recipe": "unheard-of"},
    ],
    ids=str,
)
def test_a_description_that_says_something_else_is_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_small(tmp_path / "set")
    describe(tmp_path / "set", **changes)
    with pytest.raises(InputError, match=r"set/dataset\.json"):
        ArrowDataset(tmp_path / "set")


def test_labels_beyond_the_classes_are_refused(tmp_path: Path) -> None:
    write_small(tmp_path / "set")
    describe(tmp_path / "set", classes=list(CLASSES[:2]))
    with pytest.raises(InputError, match=r"set/dataset\.json.*class"):
        ArrowDataset(tmp_path / "set")


def test_no_data_set_is_told_apart_from_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: no such directory.*data_prep"):
        ArrowDataset(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"is not a data set.*data_prep"):
        ArrowDataset(tmp_path)


# All or nothing


ERRORS = [ValueError("bad file"), OSError("disk full"), KeyboardInterrupt()]


def clips_that_break(number: int, error: BaseException) -> Iterator[Clip]:
    for i, clip in enumerate(motion_clips(seed=3)):
        if i == number:
            raise error
        yield clip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("number", [0, 20])
def test_a_writer_that_breaks_off_leaves_nothing(tmp_path: Path, error: BaseException, number: int) -> None:
    with pytest.raises(type(error)):
        write_small(tmp_path / "set", clips_that_break(number, error), shard_bytes=N * 3 * 4 * 50)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_writer_that_breaks_off_leaves_the_old_data_set_as_it_was(tmp_path: Path, error: BaseException) -> None:
    write_small(tmp_path / "set")
    before = snapshot(tmp_path)
    with pytest.raises(type(error)):
        write_small(tmp_path / "set", clips_that_break(20, error), shard_bytes=N * 3 * 4 * 50, overwrite=True)
    assert snapshot(tmp_path) == before


def test_a_data_set_that_could_not_be_opened_is_not_written(tmp_path: Path) -> None:
    write_small(tmp_path / "set")
    before = snapshot(tmp_path)
    for benchmarks in ([Benchmark("x-sub", "person", (1,))], []):
        with pytest.raises((InputError, ValueError)):
            write_small(tmp_path / "set", benchmarks=benchmarks, overwrite=True)
        assert snapshot(tmp_path) == before


@pytest.mark.parametrize("failures", [1, 2])
def test_a_failing_rename_does_not_cost_the_old_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    old = write_small(tmp_path / "set")
    rename, failed = Path.rename, 0

    def failing(self: Path, target: Path) -> Path:
        nonlocal failed
        if Path(target) == tmp_path / "set" and failed < failures:
            failed += 1
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no"):
        write_small(tmp_path / "set", motion_clips(seed=3), overwrite=True)
    assert failed == failures
    kept = [file.parent for file in tmp_path.rglob("dataset.json")]
    assert len(kept) == 1  # not necessarily where it was, if that name cannot be had
    assert failures > 1 or kept == [tmp_path / "set"]
    assert ArrowDataset(kept[0]).digest == old.digest


WRITE_AND_WAIT = """
import sys, time
from itertools import islice
from tests.support.small import motion_clips, write_small

def clips():
    yield from islice(motion_clips(seed=3), 30)
    print("thirty", flush=True)
    time.sleep(60)

write_small(sys.argv[1], clips(), shard_bytes=4000, overwrite=True)
"""


@pytest.mark.parametrize("there", [False, True])
def test_a_writer_that_is_killed_leaves_no_data_set_or_the_old_one(tmp_path: Path, there: bool) -> None:
    if there:
        old = write_small(tmp_path / "set")
    kill_when_told(start_python(WRITE_AND_WAIT, tmp_path / "set"), "thirty")
    assert list(tmp_path.rglob("*.arrow"))  # it was at work
    if there:
        assert ArrowDataset(tmp_path / "set").digest == old.digest
    else:
        assert not (tmp_path / "set").exists()
        with pytest.raises(InputError):
            ArrowDataset(tmp_path / "set")
    again = write_small(tmp_path / "set", motion_clips(seed=3), overwrite=True)
    assert ArrowDataset(tmp_path / "set").digest == again.digest


# Where a data set may be written


def test_an_existing_data_set_is_replaced_only_on_demand(tmp_path: Path) -> None:
    first = write_small(tmp_path / "set", shard_bytes=4000)
    with pytest.raises(InputError, match=r"set: holds a data set already.*--overwrite"):
        write_small(tmp_path / "set", motion_clips(seed=3))
    assert ArrowDataset(tmp_path / "set").digest == first.digest
    second = write_small(tmp_path / "set", motion_clips(seed=3), overwrite=True)
    assert second.digest != first.digest
    assert ArrowDataset(tmp_path / "set").digest == second.digest
    assert sorted(entry.name for entry in (tmp_path / "set").iterdir()) == ["clips-00000.arrow", "dataset.json"]
    assert list(tmp_path.iterdir()) == [tmp_path / "set"]


def test_a_reader_of_the_old_data_set_goes_on_reading_it(tmp_path: Path) -> None:
    first = write_small(tmp_path / "set")
    write_small(tmp_path / "set", motion_clips(seed=3), overwrite=True)
    np.testing.assert_array_equal(first.clip(2), list(motion_clips())[2].joints)


def test_anything_but_a_data_set_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    before = snapshot(tmp_path)
    for out, what in (("file", "is a file"), ("folder", "not empty"), ("file/set", "cannot be written")):
        for overwrite in (False, True):
            with pytest.raises(InputError, match=rf"{out}: .*{what}"):
                write_small(tmp_path / out, overwrite=overwrite)
    assert snapshot(tmp_path) == before


def test_a_data_set_with_files_of_the_user_in_it_is_never_replaced(tmp_path: Path) -> None:
    write_small(tmp_path / "set")
    (tmp_path / "set" / "notes.txt").write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=r"set: .*notes\.txt"):
        write_small(tmp_path / "set", motion_clips(seed=3), overwrite=True)
    assert snapshot(tmp_path) == before


def test_an_empty_or_deep_new_folder_is_fine(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_small(tmp_path / "empty")
    write_small(tmp_path / "a" / "b" / "c")
    assert ArrowDataset(tmp_path / "empty").digest == ArrowDataset(tmp_path / "a" / "b" / "c").digest


def test_colleagues_may_read_it(tmp_path: Path) -> None:
    write_small(tmp_path / "set")
    assert (tmp_path / "set").stat().st_mode & 0o055 == 0o055


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named_before_any_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="cannot be written"):
            check_output(tmp_path / "set", overwrite=False)
    finally:
        tmp_path.chmod(0o700)


def test_the_target_is_checked_before_any_clip_is_read(tmp_path: Path) -> None:
    write_small(tmp_path / "set")
    with pytest.raises(InputError, match="already"):
        write_small(tmp_path / "set", clips_that_break(0, AssertionError("a clip was read")))


# Bad clips


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def with_value(value: float, dtype: Any = np.float32) -> np.ndarray:
    joints = np.zeros((2, 3, N, 3), dtype)
    joints[-1, -1, -1, -1] = value
    return joints


BAD_CLIPS: dict[str, tuple[Clip, str]] = {
    "no persons axis": (Clip("bad", 0, zeros(5, N, 3)), "shape"),
    "other joints": (Clip("bad", 0, zeros(1, 5, N + 1, 3)), "shape"),
    "two coordinates": (Clip("bad", 0, zeros(1, 5, N, 2)), "shape"),
    "joints last": (Clip("bad", 0, zeros(1, 5, 3, N)), "shape"),
    "no frames": (Clip("bad", 0, zeros(1, 0, N, 3)), "shape"),
    "no persons": (Clip("bad", 0, zeros(0, 5, N, 3)), "shape"),
    "not a number": (Clip("bad", 0, with_value(np.nan)), "finite"),
    "infinite": (Clip("bad", 0, with_value(np.inf)), "finite"),
    "minus infinite": (Clip("bad", 0, with_value(-np.inf)), "finite"),
    "infinite as float32": (Clip("bad", 0, with_value(1e39, np.float64)), "finite"),
    "label too high": (Clip("bad", 3, zeros(1, 5, N, 3)), "label 3"),
    "label negative": (Clip("bad", -1, zeros(1, 5, N, 3)), "label -1"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", BAD_CLIPS)
@pytest.mark.parametrize("position", [0, 30])
def test_a_bad_clip_is_named_and_nothing_is_written(tmp_path: Path, kind: str, position: int) -> None:
    bad, what = BAD_CLIPS[kind]
    clips = [*motion_clips()]
    clips.insert(position, bad)
    with pytest.raises(InputError, match=rf"clip bad: .*{what}"):
        write_small(tmp_path / "set", clips, shard_bytes=4000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shard_bytes", [2**28, 1])
def test_a_clip_that_occurs_twice_is_named(tmp_path: Path, shard_bytes: int) -> None:
    clips = [*motion_clips()]
    clips.append(dataclasses.replace(clips[-1], clip_id=clips[3].clip_id))
    with pytest.raises(InputError, match=r"clip clip-003: .*twice"):
        write_small(tmp_path / "set", clips, shard_bytes=shard_bytes)
    assert list(tmp_path.iterdir()) == []


def test_no_clip_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no clip"):
        write_small(tmp_path / "set", [])
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"recipe is 'kinetics'.*nw-ucla"):
        write_small(tmp_path / "set", recipe="kinetics")


# Digest


def test_equal_content_has_an_equal_digest_whatever_its_source(tmp_path: Path) -> None:
    digests = {
        write_small(tmp_path / "a").digest,
        ArrowDataset(tmp_path / "a").digest,
        write_small(tmp_path / "b", source={"url": "elsewhere"}).digest,
        write_small(tmp_path / "c", name="another name").digest,
    }
    assert len(digests) == 1
    assert len(digests.pop()) == 64


def test_a_digest_differs_with_anything_that_a_training_sees(tmp_path: Path) -> None:
    clips = [*motion_clips()]
    nudged = clips[7].joints.copy()
    nudged[0, 0, 0, 0] = np.nextafter(nudged[0, 0, 0, 0], np.float32(1))
    regrown = dataclasses.replace(SKELETON, parents=(0, 0, 1, 2, 1, 0))
    renamed = dataclasses.replace(SKELETON, joints=(*SKELETON.joints[:5], "feet"))
    variants: dict[str, tuple[list[Clip], dict[str, Any]]] = {
        "as it is": (clips, {}),
        "a value": ([*clips[:7], dataclasses.replace(clips[7], joints=nudged), *clips[8:]], {}),
        "a label": ([dataclasses.replace(clips[0], label=1), *clips[1:]], {}),
        "a subject": ([dataclasses.replace(clips[0], subject=2), *clips[1:]], {}),
        "a clip's name": ([dataclasses.replace(clips[0], clip_id="other"), *clips[1:]], {}),
        "the order": (clips[::-1], {}),
        "a clip less": (clips[:-1], {}),
        "a class name": (clips, {"classes": ("left hand", "right hand", "leg")}),
        "the order of classes": (clips, {"classes": CLASSES[::-1]}),
        "the skeleton's bones": (clips, {"skeleton": regrown}),
        "the skeleton's parts": (clips, {"skeleton": dataclasses.replace(SKELETON, partitions=())}),
        "a joint's name": (clips, {"skeleton": renamed}),
        "who trains": (clips, {"benchmarks": [dataclasses.replace(BENCHMARKS[0], train=(1, 2, 3)), BENCHMARKS[1]]}),
    }
    digests = {
        name: write_small(tmp_path / name, members, **changes).digest for name, (members, changes) in variants.items()
    }
    assert len(set(digests.values())) == len(digests), digests


# Splits


def split_ids(dataset: ArrowDataset, benchmark: str = "", **options: Any) -> dict[str, set[str]]:
    splits = dataset.splits(benchmark, **options)
    return {name: set(dataset.clip_ids[getattr(splits, name)]) for name in ("train", "val", "test")}


@pytest.fixture
def dataset(tmp_path: Path) -> ArrowDataset:
    return write_small(tmp_path / "set", shard_bytes=4000)


def test_validation_holds_out_whole_subjects_of_the_training_clips(dataset: ArrowDataset) -> None:
    subject_of = {clip.clip_id: clip.subject for clip in motion_clips()}
    splits, ids = dataset.splits(), split_ids(dataset)
    who = {name: {subject_of[clip] for clip in members} for name, members in ids.items()}
    assert who["test"] == {5, 6}
    assert who["train"] | who["val"] == {1, 2, 3, 4}
    assert not who["train"] & who["val"]
    assert who["val"] == set(splits.val_subjects)
    assert len(splits.val_subjects) == 1  # round(0.2 * 4)
    assert ids["train"] | ids["val"] | ids["test"] == set(subject_of)
    assert sum(map(len, ids.values())) == len(subject_of)
    assert all(rows.tolist() == sorted(set(rows.tolist())) for rows in (splits.train, splits.val, splits.test))


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.25, 1), (0.5, 2), (0.75, 3), (0.99, 3)])
def test_validation_takes_its_share_of_the_subjects_but_leaves_one(
    dataset: ArrowDataset, share: float, count: int
) -> None:
    assert len(dataset.splits(validation=share).val_subjects) == count


def test_the_same_seed_holds_out_the_same_subjects(dataset: ArrowDataset) -> None:
    again = ArrowDataset(dataset.path)
    for seed in range(20):
        assert split_ids(dataset, seed=seed) == split_ids(again, seed=seed)
    assert {dataset.splits(seed=seed).val_subjects for seed in range(20)} == {(1,), (2,), (3,), (4,)}
    assert len({frozenset(split_ids(dataset, seed=seed)["test"]) for seed in range(20)}) == 1


def test_the_paper_s_protocol_trains_on_all_training_clips(dataset: ArrowDataset) -> None:
    with_validation, without = split_ids(dataset), split_ids(dataset, validation=0)
    assert without["val"] == set()
    assert without["train"] == with_validation["train"] | with_validation["val"]
    assert without["test"] == with_validation["test"]
    assert dataset.splits(validation=0).val_subjects == ()


def test_one_subject_cannot_be_split_and_the_message_says_what_to_do(tmp_path: Path) -> None:
    dataset = write_small(tmp_path / "set", benchmarks=[Benchmark("x-sub", "subject", (3,))])
    with pytest.raises(InputError, match=r"x-sub.*one subject.*--protocol paper"):
        dataset.splits()
    assert len(dataset.splits(validation=0).train) == 6


def test_a_benchmark_is_a_function_of_its_column(tmp_path: Path) -> None:
    clips = [*motion_clips()]
    dataset = write_small(
        tmp_path / "set",
        clips,
        benchmarks=[
            Benchmark("x-set", "setup", (1, 3)),
            Benchmark("x-view", "camera", (1,), (2,)),
            Benchmark("part", "replication", (1,), (1, 2)),
            Benchmark("few", "subject", (1,), (6,)),
        ],
    )
    expected = {
        "": (lambda clip: clip.setup in (1, 3), lambda clip: clip.setup not in (1, 3)),
        "x-set": (lambda clip: clip.setup in (1, 3), lambda clip: clip.setup not in (1, 3)),
        "x-view": (lambda clip: clip.camera == 1, lambda clip: clip.camera == 2),
        "part": (lambda clip: clip.replication == 1, lambda clip: clip.replication == 2),
        "few": (lambda clip: clip.subject == 1, lambda clip: clip.subject == 6),
    }
    for name, (trains, tests) in expected.items():
        found = split_ids(dataset, name, validation=0)
        assert found["train"] == {clip.clip_id for clip in clips if trains(clip)}
        assert found["test"] == {clip.clip_id for clip in clips if tests(clip)}
        assert found["train"]
        assert found["test"]


def test_validation_by_subject_under_a_benchmark_by_camera(dataset: ArrowDataset) -> None:
    clips = {clip.clip_id: clip for clip in motion_clips()}
    (held_out,) = dataset.splits("x-view", seed=1).val_subjects
    found = split_ids(dataset, "x-view", seed=1)
    assert found["val"] == {name for name, clip in clips.items() if clip.camera == 1 and clip.subject == held_out}
    assert found["train"] == {name for name, clip in clips.items() if clip.camera == 1 and clip.subject != held_out}
    assert found["test"] == {name for name, clip in clips.items() if clip.camera == 2}


def test_an_unknown_benchmark_is_refused_with_the_known_ones(dataset: ArrowDataset) -> None:
    with pytest.raises(InputError, match=r"data\.benchmark is 'x-sup'.*x-sub, x-view"):
        dataset.splits("x-sup")


@pytest.mark.parametrize(("train", "test", "what"), [((9,), None, "training"), ((1, 2), (9,), "test")])
def test_a_benchmark_without_clips_is_named(
    tmp_path: Path, train: tuple[int, ...], test: tuple[int, ...] | None, what: str
) -> None:
    dataset = write_small(tmp_path / "set", benchmarks=[Benchmark("x-sub", "subject", train, test)])
    with pytest.raises(InputError, match=rf"x-sub has no {what} clip"):
        dataset.splits(validation=0)


def test_write_dataset_returns_the_open_data_set(tmp_path: Path) -> None:
    written = write_dataset(
        str(tmp_path / "set"), motion_clips(), name="n", skeleton=SKELETON, classes=list(CLASSES),
        benchmarks=list(BENCHMARKS), recipe="nw-ucla", source={},
    )  # fmt: skip
    read = ArrowDataset(str(tmp_path / "set"))
    assert (written.path, written.digest, written.recipe) == (read.path, read.digest, "nw-ucla")
    assert written.path == tmp_path / "set"
