"""Raw files that are read individually, as for prediction and serving, give the same clips as in the data set."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from fgst.data.formats import FORMATS, read_clip
from fgst.data.formats.ntu import prepare as prepare_ntu
from fgst.data.normalization import RawClip
from fgst.data.skeletons import NTU_25, NW_UCLA_20
from fgst.errors import InputError
from fgst.evaluation.inference import Predictor
from fgst.tracking.serving import input_example
from tests.support.ntu_corpus import corpus, write_folder
from tests.support.small import save_untrained_network


def test_ntu_files_give_clips_of_data_set(tmp_path: Path) -> None:
    cases = corpus(60, seed=4)
    prepared, _ = prepare_ntu([write_folder(tmp_path / "raw", cases)], tmp_path / "ntu", edition="60")
    assert prepared.preparation == "ntu"
    for row, clip in enumerate(prepared.clip_ids):
        content = next((tmp_path / "raw").rglob(f"{clip}.skeleton")).read_bytes()
        np.testing.assert_array_equal(read_clip(content, "ntu", prepared.skeleton), prepared.clip(row))
    # The input example of a served model is such a file, too.
    predictor = Predictor.load(
        save_untrained_network(prepared, tmp_path / "network", data__benchmark="x-sub", model__parts=5)
    )
    (tmp_path / "networks").symlink_to(next((tmp_path / "network").iterdir()))
    request = input_example(tmp_path / "networks")
    assert predictor.read(request["content"][0].encode()).shape == (1, 4, 25, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", FORMATS)
def test_coordinate_that_is_not_finite_is_rejected(name: str, value: float) -> None:
    skeleton = NW_UCLA_20 if name == "nw-ucla" else NTU_25
    joints = np.zeros((4, skeleton.num_joints, 3), np.float32)
    joints[2, 3, 1] = value
    with pytest.raises(InputError):
        read_clip(FORMATS[name].encode(joints, skeleton), name, skeleton)


@pytest.mark.parametrize("name", FORMATS)
def test_encoded_joints_round_trip(name: str) -> None:
    skeleton = NW_UCLA_20 if name == "nw-ucla" else NTU_25
    joints = np.random.default_rng(0).normal(size=(4, skeleton.num_joints, 3)).astype(np.float32)
    normalization = FORMATS[name].normalization
    clip = read_clip(FORMATS[name].encode(joints, skeleton), name, skeleton, normalization)
    expected = joints[None]
    if name == "ntu":  # NTU's cleaning moves the origin
        expected = expected - joints[0, skeleton.centre]
    elif normalization is not None:  # joints are encoded in the axes and the unit of the format
        raw = RawClip(expected[..., :2] if name in ("openpose", "kinetics") else expected)
        expected, _ = dataclasses.replace(normalization, up="y", scale=1.0).apply(raw, skeleton)
    np.testing.assert_allclose(clip, expected, rtol=0, atol=2e-4)  # .skeleton files have four decimals
