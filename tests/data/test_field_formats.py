"""Damage, prediction and training in the layouts of other projects."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest

from fgst.data.formats import SOURCE_FORMATS, read_clip
from fgst.data.skeletons import COCO_17
from fgst.errors import InputError
from fgst.training.trainer import fit
from tests.data.converted import CLIPS, SIDES, convert, write_annotations
from tests.support import field_files as files
from tests.support import ntu_corpus
from tests.support.mutation import read_mutations
from tests.support.small import small_config

# Damaged files


def convert_content(name: str, content: bytes) -> None:
    """Convert a data set of which one file has the given content; runs in another process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        if name.startswith("train"):
            clips = files.known_clips(subjects=(1, 3), cameras=1)
            sides = files.split(clips)
            files.write_st_gcn(Path(folder), [files.st_gcn_array(members, 24) for members in sides], sides)
        path.write_bytes(content)
        if [f for f in SOURCE_FORMATS if f.recognizes(path)]:
            convert(path, Path(folder, "out"), skip_bad=True)
        else:
            raise InputError("is not recognized")


def test_damaged_files_are_converted_or_refused(tmp_path: Path) -> None:
    clips = files.known_clips(subjects=(1, 3), cameras=1)
    sides = files.split(clips)
    files.write_ctr_gcn(tmp_path / "clips.npz", clips)
    files.write_ctr_gcn(tmp_path / "packed.npz", clips, compressed=True)
    write_annotations(tmp_path / "annotations.pkl", clips)
    files.write_st_gcn(tmp_path, [files.st_gcn_array(members, 24) for members in sides], sides)
    names = ("clips.npz", "packed.npz", "annotations.pkl", "train_data.npy", "train_label.pkl")
    samples = {name: (tmp_path / name).read_bytes() for name in names}
    read_mutations(convert_content, samples, 150, named=True).check(150)


# Prediction and training


def as_skeleton_file(clip: files.Known) -> bytes:
    tracks = [
        ntu_corpus.Track(ntu_corpus.FIRST_ID + person, list(range(len(joints))), joints)
        for person, joints in enumerate(clip.joints)
    ]
    return ntu_corpus.text(clip.joints.shape[1], tracks)


def write_all(folder: Path) -> dict[str, Path]:
    """Write the clips in each layout whose clips are also in ``.skeleton`` files."""
    arrays = [files.st_gcn_array(clips) for clips in SIDES]
    return {
        "npz": files.write_ctr_gcn(folder / "NTU60_CS.npz", CLIPS),
        "npy": files.write_st_gcn(folder / "xsub", arrays, SIDES),
        "pkl": write_annotations(folder / "ntu60_3danno.pkl", CLIPS),
    }


@pytest.mark.parametrize(("layout", "tolerance"), [("npz", 1e-6), ("npy", 1e-6), ("pkl", 3e-3)])
def test_skeleton_files_give_the_clips_of_the_data_set(tmp_path: Path, layout: str, tolerance: float) -> None:
    dataset, _ = convert(write_all(tmp_path)[layout], tmp_path / "out")
    order = CLIPS if layout == "pkl" else [clip for members in SIDES for clip in members]
    for row, clip in enumerate(order):
        joints = read_clip(as_skeleton_file(clip), dataset.preparation, dataset.skeleton, dataset.normalization)
        np.testing.assert_allclose(joints, dataset.clip(row), rtol=0, atol=tolerance, err_msg=clip.name)


def test_single_annotation_gives_the_clip_of_the_data_set(tmp_path: Path) -> None:
    clips = [files.in_image(clip, COCO_17) for clip in files.known_clips(COCO_17)]
    dataset, _ = convert(write_annotations(tmp_path / "a.pkl", clips), tmp_path / "out")
    for row, clip in enumerate(clips):
        content = pickle.dumps(files.annotation(clip))
        joints = read_clip(content, dataset.preparation, dataset.skeleton, dataset.normalization)
        np.testing.assert_array_equal(joints, dataset.clip(row))
    for content in (pickle.dumps({"a": 1}), pickle.dumps([1, 2]), b"text", pickle.dumps({"keypoint": 3})):
        with pytest.raises(InputError):
            read_clip(content, "pyskl", COCO_17)
    (tmp_path / "single.pkl").write_bytes(pickle.dumps(files.annotation(clips[0])))
    with pytest.raises(InputError, match=r"is a single clip.*fgst\.predict"):
        convert(tmp_path / "single.pkl", tmp_path / "single")


@pytest.mark.parametrize("layout", ["npz", "npy", "pkl"])
def test_training_on_converted_clips(tmp_path: Path, layout: str) -> None:
    dataset, _ = convert(write_all(tmp_path)[layout], tmp_path / "out")
    config = small_config(dataset, train__epochs=1, model__parts=5, data__protocol="paper")
    [result] = fit(config)
    assert np.isfinite(result.metrics["train/loss"])
