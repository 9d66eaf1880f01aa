"""Exported files have the layouts of CTR-GCN and pyskl, and are converted back to the same data set."""

from __future__ import annotations

import errno
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgst.cli.data_export import main
from fgst.data import export as export_module
from fgst.data.dataset import ArrowDataset, Clip
from fgst.data.export import export
from fgst.data.formats.ntu_names import ACTIONS
from fgst.data.layout import split_list
from fgst.data.skeletons import BODY_25, NTU_25
from fgst.data.splits import Benchmark
from fgst.data.writer import write_dataset
from fgst.errors import InputError
from tests.data.converted import convert
from tests.support import field_files as files
from tests.support.small import write_small

RULES = (Benchmark("x-sub", "subject", (1, 2)), split_list("train-small"), Benchmark("x-view", "camera", (2, 3), (1,)))


def clips() -> list[Clip]:
    """Clips with everything that normalization would change, and some in no list."""
    made = [
        Clip(
            known.name, known.label, files.centred(known).copy(), subject=known.subject, camera=known.camera, setup=1,
            replication=1, splits={} if row % 3 == 2 else {"train-small": "test" if row % 3 else "train"},
        )
        for row, known in enumerate(files.known_clips())
    ]  # fmt: skip
    made[0].joints[:, 4:7] = 0  # frames without any person
    made[1].joints[:, -2:] = 0  # at the end, too
    made[2].joints[1] = 0  # a person who is absent throughout
    made[3].joints[:, :, 7] = 0  # a joint that is never seen
    made[4].joints[:, :, 1] = 0  # the centre is at the origin in all frames
    made[5].joints[:] = made[5].joints[::-1].copy()  # the second person moves more
    made[6] = replace(made[6], joints=np.tile(made[6].joints[:, :6], (1, 3, 1, 1)))  # repeats itself
    made[7].joints[:] = 0
    made[8].joints[:] += 5  # not centred
    return made


def write(folder: Path, **changes: Any) -> ArrowDataset:
    arguments: dict[str, Any] = {
        "name": "mine", "skeleton": NTU_25, "classes": ACTIONS[:60], "benchmarks": RULES, "recipe": "nw-ucla",
        "source": {"preparation": "ntu"},
    }  # fmt: skip
    return write_dataset(folder, changes.pop("clips", clips()), **(arguments | changes))


def check_same(dataset: ArrowDataset, again: ArrowDataset, rows: np.ndarray) -> None:
    """Check that ``again`` has the clips in ``rows`` of ``dataset`` in this order, bit by bit."""
    assert again.clip_ids.tolist() == dataset.clip_ids[rows].tolist()
    for name in ("label", "subject", "camera", "setup", "replication", "num_persons", "num_frames"):
        assert again.columns[name].tolist() == dataset.columns[name][rows].tolist(), name
    for row, source in enumerate(rows):
        assert again.clip(row).tobytes() == dataset.clip(int(source)).tobytes(), dataset.clip_ids[source]
    assert (again.classes, again.skeleton, again.recipe) == (dataset.classes, dataset.skeleton, dataset.recipe)
    assert again.preparation == dataset.preparation


def test_pkl_is_converted_back_to_the_same_data_set(tmp_path: Path) -> None:
    dataset = write(tmp_path / "data")
    assert export(dataset, tmp_path / "mine.pkl") == []
    again, report = convert(tmp_path / "mine.pkl", tmp_path / "again")
    check_same(dataset, again, np.arange(len(dataset)))
    assert again.digest == dataset.digest
    assert not report.removed
    export(again, tmp_path / "again.pkl")
    twice, _ = convert(tmp_path / "again.pkl", tmp_path / "twice")
    assert (twice.digest, twice.preparation) == (dataset.digest, "ntu")


def test_pkl_of_clips_in_the_plane_has_two_coordinates_and_scores(tmp_path: Path) -> None:
    flat = [replace(clip, joints=clip.joints * np.array([1, 1, 0], np.float32)) for clip in clips()]
    dataset = write(tmp_path / "mine", clips=flat)
    notes = export(dataset, tmp_path / "mine.pkl")
    assert any("two coordinates" in note for note in notes)
    annotation = pickle.loads((tmp_path / "mine.pkl").read_bytes())["annotations"][3]
    assert annotation["keypoint"].shape == (*dataset.clip(3).shape[:3], 2)
    np.testing.assert_array_equal(annotation["keypoint_score"], dataset.clip(3).any(axis=-1))
    again, _ = convert(tmp_path / "mine.pkl", tmp_path / "again")
    for row in range(len(dataset)):
        np.testing.assert_array_equal(again.clip(row), dataset.clip(row))


@pytest.mark.parametrize("benchmark", ["x-sub", "train-small", "x-view"])
def test_npz_is_converted_back_to_the_same_clips(tmp_path: Path, benchmark: str) -> None:
    dataset = write(tmp_path / "data")
    export(dataset, tmp_path / "mine.npz", benchmark=benchmark)
    again, _ = convert(tmp_path / "mine.npz", tmp_path / "again")
    splits = dataset.splits(benchmark, validation=0)
    check_same(dataset, again, np.concatenate([splits.train, splits.test]))
    restored = again.splits("", validation=0)
    assert again.benchmarks[0] == dataset.benchmark(benchmark)
    assert again.clip_ids[restored.train].tolist() == dataset.clip_ids[splits.train].tolist()
    assert again.clip_ids[restored.test].tolist() == dataset.clip_ids[splits.test].tolist()


def test_npz_as_ctr_gcn_reads_it(tmp_path: Path) -> None:
    dataset = write(tmp_path / "data")
    export(dataset, tmp_path / "mine.npz", frames=300)
    splits = dataset.splits("x-sub", validation=0)
    with np.load(tmp_path / "mine.npz", allow_pickle=False) as arrays:
        for side, rows in (("train", splits.train), ("test", splits.test)):
            x, y = arrays[f"x_{side}"], arrays[f"y_{side}"]
            assert (x.shape, x.dtype, y.shape, y.dtype) == ((18, 300, 150), np.float32, (18, 60), np.float64)
            assert np.where(y > 0)[1].tolist() == dataset.columns["label"][rows].tolist()
            persons = x.reshape(18, 300, 2, 25, 3)
            for row, source in enumerate(rows):
                joints = dataset.clip(int(source)).transpose(1, 0, 2, 3)
                np.testing.assert_array_equal(persons[row, : len(joints), : joints.shape[1]], joints)
                assert not persons[row, len(joints) :].any()
                assert not persons[row, :, joints.shape[1] :].any()


@pytest.mark.filterwarnings("ignore:numpy.core")
def test_pkl_as_pyskl_reads_it(tmp_path: Path) -> None:
    dataset = write(tmp_path / "data")
    export(dataset, tmp_path / "mine.pkl")
    content = pickle.loads((tmp_path / "mine.pkl").read_bytes())
    assert set(content["split"]) == {
        "xsub_train", "xsub_val", "xview_train", "xview_val", "train-small_train", "train-small_val",
    }  # fmt: skip
    splits = dataset.splits("x-sub", validation=0)
    assert content["split"]["xsub_val"] == dataset.clip_ids[splits.test].tolist()
    for row, item in enumerate(content["annotations"]):
        assert (item["frame_dir"], item["label"]) == (dataset.clip_ids[row], dataset.columns["label"][row])
        np.testing.assert_array_equal(item["keypoint"], dataset.clip(row))
        assert item["total_frames"] == item["keypoint"].shape[1]


@pytest.mark.parametrize("suffix", [".npz", ".pkl"])
def test_other_skeleton_round_trip(tmp_path: Path, suffix: str) -> None:
    dataset = write_small(tmp_path / "data")
    notes = export(dataset, tmp_path / f"mine{suffix}")
    again, _ = convert(tmp_path / f"mine{suffix}", tmp_path / "again")
    assert sorted(again.clip_ids) == sorted(dataset.clip_ids)
    assert (again.skeleton, again.classes, again.benchmarks) == (dataset.skeleton, dataset.classes, dataset.benchmarks)
    assert notes == (["CTR-GCN's code reads 25 joints; these clips have 6"] if suffix == ".npz" else [])


def test_what_an_npz_cannot_hold_is_said(tmp_path: Path) -> None:
    changed = clips()
    changed[0] = replace(changed[0], joints=np.repeat(changed[0].joints, 3, axis=0))
    dataset = write(tmp_path / "data", clips=changed)
    notes = export(dataset, tmp_path / "mine.npz", benchmark="train-small", frames=20)
    assert notes == [
        f"{sum(clip.joints.shape[1] > 20 and bool(clip.splits) for clip in changed)} clips are longer than 20 frames: "
        "the rest is left out",
        "1 clips have more than 2 persons: the others are left out",
        "12 clips are in neither split of train-small: they are left out",
    ]
    again, _ = convert(tmp_path / "mine.npz", tmp_path / "again")
    np.testing.assert_array_equal(again.clip(0), dataset.clip(0)[:2, :20])
    assert "only the list train-small is in the file" not in notes
    assert "only the list x-sub is in the file" in export(dataset, tmp_path / "other.npz", benchmark="x-sub")


def test_another_skeleton_of_25_joints_is_said(tmp_path: Path) -> None:
    dataset = write(tmp_path / "data", skeleton=BODY_25)
    notes = export(dataset, tmp_path / "mine.npz")
    assert "CTR-GCN's graph is that of ntu-25; these clips have skeleton body-25" in notes


@pytest.mark.parametrize("suffix", [".npz", ".pkl"])
def test_other_class_names_and_benchmarks_for_an_exported_file(tmp_path: Path, suffix: str) -> None:
    export(write(tmp_path / "data"), tmp_path / f"mine{suffix}", benchmark="x-sub")
    (tmp_path / "classes.txt").write_text("".join(f"class {i}\n" for i in range(60)))
    options: dict[str, Any] = {"classes": tmp_path / "classes.txt", "benchmarks": ("mine:subject=1",)}
    again, _ = convert(tmp_path / f"mine{suffix}", tmp_path / "again", **options)
    assert again.classes[59] == "class 59"
    assert again.benchmarks[-1] == Benchmark("mine", "subject", (1,))


def test_preparation_of_clips_that_were_normalized(tmp_path: Path) -> None:
    normalization = {
        "scale": 0.001,
        "scaling": "constant",
        "up": "y",
        "centred": True,
        "persons": True,
        "trimmed": True,
    }
    for preparation, expected in (("array", "array"), ("nw-ucla", "array"), ("ntu", "ntu")):
        dataset = write(
            tmp_path / preparation, source={"preparation": preparation, "normalization": normalization}, clips=clips()
        )
        export(dataset, tmp_path / f"{preparation}.pkl")
        assert convert(tmp_path / f"{preparation}.pkl", tmp_path / f"{preparation}-again")[0].preparation == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine.txt"], "must end in .npz"),
        (["folder.npz"], "is a folder"),
        (["old.npz"], "exists; pass --overwrite"),
        (["new.pkl", "--frames", "300"], "--frames: clips in a .pkl keep their lengths"),
        (["new.npz", "--benchmark", "x-set"], "data.benchmark is 'x-set'"),
        (["old.npz/new.npz"], "cannot be written"),
    ],
)
def test_export_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data")
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "old.npz").write_bytes(b"old")
    with pytest.raises((InputError, SystemExit), match=message):
        main(["data", *arguments])
    assert (tmp_path / "old.npz").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "folder.npz", "old.npz"]


def test_command_replaces_a_file_and_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "data")
    (tmp_path / "mine.npz").write_bytes(b"old")
    main([str(tmp_path / "data"), str(tmp_path / "mine.npz"), "--overwrite"])
    output = capsys.readouterr().out
    assert "exported  36 clips" in output
    main([str(tmp_path / "data"), str(tmp_path / "list.npz"), "--benchmark", "train-small"])
    output = capsys.readouterr().out
    assert "exported  24 clips" in output
    assert "12 clips are in neither split of train-small: they are left out" in output
    main([str(tmp_path / "data"), str(tmp_path / "mine.npz"), "--overwrite"])
    output = capsys.readouterr().out
    assert "only the list x-sub is in the file" in output
    assert convert(tmp_path / "mine.npz", tmp_path / "again")[0].name == "again"


@pytest.mark.parametrize("suffix", [".npz", ".pkl"])
def test_failed_export_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    dataset = write(tmp_path / "data")
    out = tmp_path / f"mine{suffix}"
    out.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export_module, "_padded", fail)
    monkeypatch.setattr(export_module, "write_pickle", fail)
    with pytest.raises(InputError, match="free some space"):
        export(dataset, out, overwrite=True)
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", out.name]


@pytest.mark.parametrize("change", ["names", "persons", "skeleton"])
def test_description_that_does_not_fit_the_arrays(tmp_path: Path, change: str) -> None:
    import json
    import zipfile

    export(write(tmp_path / "data"), tmp_path / "mine.npz")
    with zipfile.ZipFile(tmp_path / "mine.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    description = json.loads(members["fgst.json"])
    if change == "names":
        description["train"].pop()
    elif change == "persons":
        description["train"][0][1] = 7
    else:
        description["dataset"]["skeleton"]["joints"].pop()
    members["fgst.json"] = json.dumps(description).encode()
    with zipfile.ZipFile(tmp_path / "mine.npz", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(InputError, match=r"export the data set again|is said to have 7 persons"):
        convert(tmp_path / "mine.npz", tmp_path / "again")
