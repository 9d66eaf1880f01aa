"""Writing Arrow data sets: atomically, in files of limited size, and to valid targets only."""

from __future__ import annotations

import dataclasses
import os
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import ipc

from fgst import durable
from fgst.data.dataset import ArrowDataset, Clip
from fgst.data.layout import file_digest
from fgst.data.splits import Benchmark
from fgst.data.writer import check_output, write_dataset
from fgst.errors import InputError
from tests.support.process import kill_on_line, start_python
from tests.support.small import BENCHMARKS, CLASSES, SKELETON, motion_clips, write_small

N = SKELETON.num_joints


def snapshot(folder: Path) -> dict[str, str]:
    """Return the digests of all files below a folder, and all sub-folders."""
    return {
        str(entry.relative_to(folder)): file_digest(entry) if entry.is_file() else "folder"
        for entry in folder.rglob("*")
    }


def test_file_size_is_limited_to_shard_bytes_or_one_clip(tmp_path: Path) -> None:
    limit = N * 3 * 4 * 45
    write_small(tmp_path / "set", shard_bytes=limit)
    files = sorted((tmp_path / "set").glob("*.arrow"))
    for file, following in zip(files, [*files[1:], None], strict=True):
        sizes = [frames * persons * N * 3 * 4 for frames, persons in lengths(file)]
        assert sum(sizes) <= limit or len(sizes) == 1
        if following is not None:  # a file is closed only if the next clip does not fit
            frames, persons = lengths(following)[0]
            assert sum(sizes) + frames * persons * N * 3 * 4 > limit
    assert len(files) > 3


def lengths(file: Path) -> list[tuple[int, int]]:
    """Return the numbers of frames and persons of each clip."""
    table = ipc.open_file(str(file)).read_all()
    return list(zip(table["num_frames"].to_pylist(), table["num_persons"].to_pylist(), strict=True))


def test_writer_buffers_one_shard_at_a_time(tmp_path: Path) -> None:
    references: list[weakref.ref[np.ndarray]] = []
    max_alive = 0

    def clips() -> Iterator[Clip]:
        nonlocal max_alive
        for number in range(40):
            joints = np.full((1, 10, N, 3), number, np.float32)
            references.append(weakref.ref(joints))
            yield Clip(f"{number}", 0, joints, 1 + number)
            del joints
            max_alive = max(max_alive, sum(reference() is not None for reference in references))

    write_small(tmp_path / "set", clips(), shard_bytes=5 * 10 * N * 3 * 4)
    assert 5 <= max_alive <= 5 + 2


def test_write_dataset_returns_opened_data_set(tmp_path: Path) -> None:
    written = write_dataset(
        str(tmp_path / "set"), motion_clips(), name="n", skeleton=SKELETON, classes=list(CLASSES),
        benchmarks=list(BENCHMARKS), recipe="nw-ucla", source={},
    )  # fmt: skip
    read = ArrowDataset(str(tmp_path / "set"))
    assert (written.path, written.digest, written.recipe) == (read.path, read.digest, "nw-ucla")
    assert written.path == tmp_path / "set"


ERRORS = [ValueError("bad file"), OSError("disk full"), KeyboardInterrupt()]


def failing_clips(number: int, error: BaseException) -> Iterator[Clip]:
    """Generate ``number`` clips, then raise an error."""
    for i, clip in enumerate(motion_clips(seed=3)):
        if i == number:
            raise error
        yield clip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("number", [0, 20])
def test_failed_write_leaves_no_files(tmp_path: Path, error: BaseException, number: int) -> None:
    with pytest.raises(type(error)):
        write_small(tmp_path / "set", failing_clips(number, error), shard_bytes=N * 3 * 4 * 50)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_failed_write_preserves_existing_data_set(tmp_path: Path, error: BaseException) -> None:
    write_small(tmp_path / "set")
    before = snapshot(tmp_path)
    with pytest.raises(type(error)):
        write_small(tmp_path / "set", failing_clips(20, error), shard_bytes=N * 3 * 4 * 50, overwrite=True)
    assert snapshot(tmp_path) == before


def test_invalid_benchmarks_are_rejected_before_writing(tmp_path: Path) -> None:
    write_small(tmp_path / "set")
    before = snapshot(tmp_path)
    for benchmarks in ([Benchmark("x-sub", "person", (1,))], []):
        with pytest.raises((InputError, ValueError)):
            write_small(tmp_path / "set", benchmarks=benchmarks, overwrite=True)
        assert snapshot(tmp_path) == before


@pytest.mark.parametrize("failures", [1, 2])
def test_failed_rename_preserves_existing_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    old = write_small(tmp_path / "set")
    rename, failed = Path.rename, 0

    def failing_rename(self: Path, target: Path) -> Path:
        nonlocal failed
        if Path(target) == tmp_path / "set" and failed < failures:
            failed += 1
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(durable, "_exchange", lambda first, second: False)  # as on a network file system
    monkeypatch.setattr(Path, "rename", failing_rename)
    with pytest.raises(InputError, match=r"set: cannot be written \(no\)"):
        write_small(tmp_path / "set", motion_clips(seed=3), overwrite=True)
    assert failed == failures
    copies = [file.parent for file in tmp_path.rglob("dataset.json")]
    assert len(copies) == 1  # in the backup folder if renaming it back fails, too
    assert failures > 1 or copies == [tmp_path / "set"]
    assert ArrowDataset(copies[0]).digest == old.digest


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


@pytest.mark.parametrize("exists", [False, True])
def test_killed_writer_preserves_existing_data_set(tmp_path: Path, exists: bool) -> None:
    if exists:
        old = write_small(tmp_path / "set")
    kill_on_line(start_python(WRITE_AND_WAIT, tmp_path / "set"), "thirty")
    assert list(tmp_path.rglob("*.arrow"))  # the writer had started
    if exists:
        assert ArrowDataset(tmp_path / "set").digest == old.digest
    else:
        assert not (tmp_path / "set").exists()
        with pytest.raises(InputError):
            ArrowDataset(tmp_path / "set")
    make_older(tmp_path)
    new = write_small(tmp_path / "set", motion_clips(seed=3), overwrite=True)
    assert ArrowDataset(tmp_path / "set").digest == new.digest
    assert list(tmp_path.iterdir()) == [tmp_path / "set"]  # what the killed writer left is removed


def make_older(folder: Path) -> list[Path]:
    """Let temporary folders look as if they were created an hour ago; returns them."""
    temporaries = [path for path in folder.iterdir() if path.suffix == ".tmp"]
    assert temporaries
    for path in temporaries:
        os.utime(path, (time.time() - 3600,) * 2)
    return temporaries


def test_folder_of_running_writer_is_not_removed(tmp_path: Path) -> None:
    process = start_python(WRITE_AND_WAIT, tmp_path / "set")
    try:
        assert process.stdout is not None
        assert any("thirty" in line for line in process.stdout)
        [temporary] = make_older(tmp_path)
        write_small(tmp_path / "set")
        assert temporary.is_dir()
    finally:
        process.kill()
        process.wait()


def test_existing_data_set_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    first = write_small(tmp_path / "set", shard_bytes=4000)
    with pytest.raises(InputError, match=r"set: already contains a data set.*--overwrite"):
        write_small(tmp_path / "set", motion_clips(seed=3))
    assert ArrowDataset(tmp_path / "set").digest == first.digest
    second = write_small(tmp_path / "set", motion_clips(seed=3), overwrite=True)
    assert second.digest != first.digest
    assert ArrowDataset(tmp_path / "set").digest == second.digest
    assert sorted(entry.name for entry in (tmp_path / "set").iterdir()) == ["clips-00000.arrow", "dataset.json"]
    assert list(tmp_path.iterdir()) == [tmp_path / "set"]


def test_replaced_data_set_remains_readable_while_open(tmp_path: Path) -> None:
    first = write_small(tmp_path / "set")
    write_small(tmp_path / "set", motion_clips(seed=3), overwrite=True)
    np.testing.assert_array_equal(first.clip(2), list(motion_clips())[2].joints)


def test_other_files_and_folders_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    before = snapshot(tmp_path)
    for out, fault in (("file", "is a file"), ("folder", "not empty"), ("file/set", "cannot be written")):
        for overwrite in (False, True):
            with pytest.raises(InputError, match=rf"{out}: .*{fault}"):
                write_small(tmp_path / out, overwrite=overwrite)
    assert snapshot(tmp_path) == before


def test_data_set_with_extra_files_is_never_replaced(tmp_path: Path) -> None:
    write_small(tmp_path / "set")
    (tmp_path / "set" / "notes.txt").write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=r"set: .*notes\.txt"):
        write_small(tmp_path / "set", motion_clips(seed=3), overwrite=True)
    assert snapshot(tmp_path) == before


def test_empty_folder_and_new_nested_folder_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_small(tmp_path / "empty")
    write_small(tmp_path / "a" / "b" / "c")
    assert ArrowDataset(tmp_path / "empty").digest == ArrowDataset(tmp_path / "a" / "b" / "c").digest


def test_data_set_is_readable_by_other_users(tmp_path: Path) -> None:
    write_small(tmp_path / "set")
    assert (tmp_path / "set").stat().st_mode & 0o055 == 0o055


@pytest.mark.skipif(os.geteuid() == 0, reason="root has permission to write everywhere")
def test_missing_permission_is_reported_before_writing(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="cannot be written"):
            check_output(tmp_path / "set", overwrite=False)
    finally:
        tmp_path.chmod(0o700)


def test_target_is_checked_before_clips_are_read(tmp_path: Path) -> None:
    write_small(tmp_path / "set")
    with pytest.raises(InputError, match="already"):
        write_small(tmp_path / "set", failing_clips(0, AssertionError("a clip was read")))


def test_folder_that_cannot_be_created_is_reported_in_one_line() -> None:
    if not Path("/proc/self").exists():
        pytest.skip("this platform has no /proc, where no folder can be created")
    with pytest.raises(InputError, match=r"^/proc/set: cannot be written"):
        write_small(Path("/proc/set"))


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
    "subject too large": (Clip("bad", 0, zeros(1, 5, N, 3), subject=2**31), "subject is 2147483648"),
    "camera negative": (Clip("bad", 0, zeros(1, 5, N, 3), camera=-1), "camera is -1"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", BAD_CLIPS)
@pytest.mark.parametrize("position", [0, 30])
def test_invalid_clip_is_reported_without_writing_files(tmp_path: Path, kind: str, position: int) -> None:
    bad, fault = BAD_CLIPS[kind]
    clips = [*motion_clips()]
    clips.insert(position, bad)
    with pytest.raises(InputError, match=rf"clip bad: .*{fault}"):
        write_small(tmp_path / "set", clips, shard_bytes=4000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shard_bytes", [2**28, 1])
def test_repeated_clip_name_is_rejected(tmp_path: Path, shard_bytes: int) -> None:
    clips = [*motion_clips()]
    clips.append(dataclasses.replace(clips[-1], clip_id=clips[3].clip_id))
    with pytest.raises(InputError, match=r"clip clip-003: .*twice"):
        write_small(tmp_path / "set", clips, shard_bytes=shard_bytes)
    assert list(tmp_path.iterdir()) == []


def test_empty_data_set_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no clip"):
        write_small(tmp_path / "set", [])
    assert list(tmp_path.iterdir()) == []


def test_unknown_recipe_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"recipe is 'kinetics'.*nw-ucla"):
        write_small(tmp_path / "set", recipe="kinetics")
