"""CTR-GCN's ``.npz`` is converted to exactly its clips, labels and splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgst.data.formats import SOURCE_FORMATS
from fgst.data.formats.ntu_names import ACTIONS
from fgst.data.skeletons import NTU_25, NW_UCLA_20
from fgst.errors import InputError
from tests.data.converted import CLIPS, SIDES, check, convert, split_names
from tests.support import field_files as files


def ctr_gcn_clips() -> list[tuple[str, int, np.ndarray]]:
    return [
        (f"{split}_{row}", clip.label, files.centred(clip))
        for split, members in zip(("train", "test"), SIDES, strict=True)
        for row, clip in enumerate(members)
    ]


@pytest.mark.parametrize(
    "changes", [{}, {"compressed": True}, {"copies": True}, {"one_hot": False}, {"frames": 24}], ids=str
)
def test_ctr_gcn_npz(tmp_path: Path, changes: dict[str, Any]) -> None:
    dataset, report = convert(files.write_ctr_gcn(tmp_path / "NTU60_CS.npz", CLIPS, **changes), tmp_path / "out")
    check(dataset, ctr_gcn_clips())
    assert dataset.skeleton == NTU_25
    assert [benchmark.name for benchmark in dataset.benchmarks] == ["x-sub"]
    train, test = split_names(dataset, "x-sub")
    assert (len(train), len(test)) == (18, 18)
    assert all(name.startswith("train_") for name in train)
    if changes.get("one_hot", True):
        assert dataset.classes == ACTIONS[:60]
    assert dataset.preparation == "ntu"
    assert any("already centred" in note for note in report.notes)


def test_ctr_gcn_npz_of_one_person_and_of_another_skeleton(tmp_path: Path) -> None:
    clips = [clip for clip in files.known_clips(NW_UCLA_20) if clip.label < 49]
    train = files.write_ctr_gcn(tmp_path / "mine.npz", clips, persons=1)
    dataset, _ = convert(train, tmp_path / "out")
    assert dataset.skeleton == NW_UCLA_20
    assert dataset.max_persons == 1
    assert [benchmark.name for benchmark in dataset.benchmarks] == ["official"]


def test_ctr_gcn_npz_that_is_not_centred_is_centred(tmp_path: Path) -> None:
    x = {
        f"x_{side}": files.st_gcn_array(clips).transpose(0, 2, 4, 3, 1).reshape(len(clips), 30, 150)
        for side, clips in zip(("train", "test"), SIDES, strict=True)
    }
    dataset, report = convert(files.write_ctr_gcn(tmp_path / "NTU60_CS.npz", CLIPS, changes=x), tmp_path / "out")
    check(dataset, ctr_gcn_clips(), tolerance=1e-6)
    assert any("not centred yet" in note for note in report.notes)


def test_ctr_gcn_npz_with_nothing_in_a_clip(tmp_path: Path) -> None:
    x = np.zeros((18, 30, 150), np.float32)
    x[1:, :5] = 1
    path = files.write_ctr_gcn(tmp_path / "a.npz", CLIPS, changes={"x_test": x})
    with pytest.raises(InputError, match="test_0: no joint of any person is seen"):
        convert(path, tmp_path / "out")
    dataset, report = convert(path, tmp_path / "out", skip_bad=True)
    assert len(dataset) == 35
    assert [name for name, _ in report.rejected] == ["test_0"]


ONE_HOT = np.eye(60)[[clip.label for clip in SIDES[1]]]


def first_row(array: np.ndarray, value: float) -> np.ndarray:
    """Return an array with another first row."""
    changed = array.copy()
    changed[0] = value
    return changed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": np.zeros((18, 30, 151), np.float32)}, "x_train: has 151 numbers per frame.*--skeleton"),
        ({"x_train": np.zeros((18, 3, 30, 25, 2), np.float32)}, "has shape .*, not .clips, frames, persons"),
        ({"x_test": np.zeros((18, 30, 75), np.float32)}, "x_test: has rows of another length"),
        ({"x_test": np.array([["a"]])}, "x_test: has <U1 values"),
        ({"x_test": np.array([{}])}, "x_test: has object values"),
        ({"y_test": np.zeros((17, 60))}, r"y_test: has shape \(17, 60\), but there are 18 clips"),
        ({"y_test": first_row(ONE_HOT, 0)}, "test_0: its label, 0 classes at once, is not a number"),
        ({"y_test": first_row(ONE_HOT, 1)}, "test_0: its label, 60 classes at once"),
        ({"y_test": first_row(ONE_HOT.argmax(1), -3)}, "test_0: its label, -3, is not a number"),
        ({"y_test": first_row(ONE_HOT.argmax(1), 10**9)}, "test_0: its label"),
        ({"x_test": first_row(np.ones((18, 30, 150)), np.inf)}, "test_0: a coordinate is not a finite number"),
        ({"x_test": np.asfortranarray(np.ones((18, 30, 150), np.float32))}, "Fortran order"),
    ],
)
def test_ctr_gcn_npz_with_wrong_arrays(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    path = files.write_ctr_gcn(tmp_path / "a.npz", CLIPS, changes=changes)
    with pytest.raises(InputError, match=message):
        convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("compressed", [True, False])
def test_damaged_npz_is_never_converted(tmp_path: Path, compressed: bool) -> None:
    path = files.write_ctr_gcn(tmp_path / "a.npz", CLIPS, compressed=compressed)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1  # within x_train
    path.write_bytes(content)
    for skip_bad in (True, False):
        with pytest.raises(InputError, match=r"x_train.*is damaged"):
            convert(path, tmp_path / "out", skip_bad=skip_bad)
    path.write_bytes(content[: len(content) // 2])
    assert not [f for f in SOURCE_FORMATS if f.recognizes(path)]
