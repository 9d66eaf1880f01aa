"""Single raw files of NTU RGB+D become the clips that the whole data set has of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fgst.cli.data_ntu import prepare as prepare_ntu
from fgst.data.formats.raw_clip import read_clip
from fgst.evaluation.inference import Predictor
from fgst.tracking.serving import input_example
from tests.support.ntu_corpus import corpus, write_folder
from tests.support.small import network


def test_ntu_files_become_the_clips_of_their_data_set(tmp_path: Path) -> None:
    cases = corpus(60, seed=4)
    prepared, _ = prepare_ntu([write_folder(tmp_path / "raw", cases)], tmp_path / "ntu", edition="60")
    assert prepared.preparation == "ntu"
    for row, clip in enumerate(prepared.clip_ids):
        content = next((tmp_path / "raw").rglob(f"{clip}.skeleton")).read_bytes()
        np.testing.assert_array_equal(read_clip(content, "ntu", prepared.skeleton), prepared.clip(row))
    # and what the served model gives as an example is one, too
    networks = Predictor.load(network(prepared, tmp_path / "network", data__benchmark="x-sub", model__parts=5))
    (tmp_path / "networks").symlink_to(next((tmp_path / "network").iterdir()))
    shown = input_example(tmp_path / "networks")
    assert networks.read(shown["content"][0].encode()).shape == (1, 4, 25, 3)
