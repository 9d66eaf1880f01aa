"""Sources of text and JSON files from one end to the other: convert, train an epoch, classify the raw files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.convert import main as convert_command
from data_prep.custom import main as custom_command
from fgst.data.dataset import ArrowDataset
from fgst.data.export import export
from fgst.data.skeletons import BODY_25, MEDIAPIPE_33, NTU_25, OPENPOSE_18, SHREC_22
from fgst.errors import InputError
from fgst.evaluation.inference import Predictor
from fgst.evaluation.prediction import predict_files
from fgst.tracking.serving import input_example
from fgst.training import fit
from tests.support.joint_csv_files import KINECT_V2, MEDIAPIPE, blocks, long, wide
from tests.support.recordings import (
    body,
    kinect_text,
    pixels,
    write_gestures,
    write_kinetics,
    write_openpose,
    zip_folder,
)
from tests.support.small import save_untrained_network, small_config

CPU = torch.device("cpu")
NAMES = [f"{split}/{label}/clip_{i}" for split in ("train", "test") for label in ("walk", "wave") for i in range(4)]


@dataclass
class Written:
    """A source, the option that converts it, and the parts P of its skeleton."""

    path: Path
    clips: int = len(NAMES)
    parts: int = 5
    options: tuple[str, ...] = ()


def write_files(folder: Path, write: Callable[[int], bytes], suffix: str) -> Path:
    for seed, name in enumerate(NAMES):
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(write(seed))
    return folder


def openpose(folder: Path) -> Written:
    clips = {name: pixels(body(BODY_25, 9 + i % 3, i, persons=1 + i % 2)) for i, name in enumerate(NAMES)}
    return Written(write_openpose(folder, clips))


def kinetics(folder: Path) -> Written:
    train, val = (
        {
            f"{split}{i}": (
                pixels(body(OPENPOSE_18, 9, 10 * first + i), width=1000, height=1000) / 1000,
                ("walk", "wave")[i % 2],
            )
            for i in range(8)
        }
        for first, split in enumerate(("t", "v"))
    )
    return Written(write_kinetics(folder, train, val, ("walk", "wave")))


def shrec(folder: Path) -> Written:
    clips = {
        (g, f, s, 1): body(SHREC_22, 9, 20 * g + 10 * f + s)[0] for g in (1, 2) for f in (1, 2) for s in range(1, 5)
    }
    train, test = ([key for key in clips if (key[2] < 4) == is_train] for is_train in (True, False))
    return Written(write_gestures(folder, clips, train=train, test=test), parts=6)


def mediapipe(folder: Path) -> Written:
    def write(seed: int) -> bytes:
        return wide(body(MEDIAPIPE_33, 9, seed) * (0.2, -0.2, 0.2), lambda i, axis: f"{MEDIAPIPE[i]}_{axis}")

    return Written(write_files(folder, write, ".csv"))


def kinect(folder: Path) -> Written:
    return Written(write_files(folder, lambda seed: blocks(body(NTU_25, 9, seed), KINECT_V2), ".csv"))


def described(folder: Path) -> Written:
    columns = "frame=t,joint=bone,x=px,y=py,z=pz"
    write_files(folder, lambda seed: long(body(NTU_25, 9, seed), KINECT_V2, header="t,bone,px,py,pz,q"), ".csv")
    return Written(folder, options=("--columns", columns))


@pytest.mark.parametrize("write", [openpose, kinetics, shrec, mediapipe, kinect, described])
def test_source_is_converted_trained_on_and_classified(
    tmp_path: Path, write: Callable[[Path], Written], capsys: pytest.CaptureFixture[str]
) -> None:
    written = write(tmp_path / "raw")
    if write is described:
        with pytest.raises(InputError, match="is not recognized"):
            convert_command([str(written.path), str(tmp_path / "out")])
        written.options += ("--format", "joint-csv")
    convert_command([str(written.path), str(tmp_path / "out"), *written.options])
    assert f"{written.clips:,} clips" in capsys.readouterr().out
    check_training_and_prediction(ArrowDataset(tmp_path / "out"), written, tmp_path)
    check_export(ArrowDataset(tmp_path / "out"), tmp_path)


def check_export(dataset: ArrowDataset, tmp_path: Path) -> None:
    """Check that exported files are converted back to the same clips."""
    for suffix in (".pkl", ".npz"):
        export(dataset, tmp_path / f"exported{suffix}")
        convert_command([str(tmp_path / f"exported{suffix}"), str(tmp_path / f"again{suffix}")])
        again = ArrowDataset(tmp_path / f"again{suffix}")
        rows = {name: row for row, name in enumerate(again.clip_ids)}
        benchmark = dataset.benchmarks[0].name
        splits = dataset.splits(benchmark, validation=0)
        for row in np.concatenate([splits.train, splits.test]):
            np.testing.assert_array_equal(again.clip(rows[dataset.clip_ids[row]]), dataset.clip(int(row)))
        assert set(again.clip_ids[again.splits(benchmark, validation=0).train]) == set(dataset.clip_ids[splits.train])


def test_clips_without_persons_are_counted_as_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, val = ({f"{split}{i}": (np.zeros((1, 4, 18, 2)), "walk") for i in range(3)} for split in "tv")
    for clips in (train, val):
        name = next(iter(clips))
        clips[name] = (pixels(body(OPENPOSE_18, 9, 0), width=1000, height=1000) / 1000, "walk")
    write_kinetics(tmp_path / "raw", train, val, ("walk",))
    convert_command([str(tmp_path / "raw"), str(tmp_path / "out")])
    assert "left out  4 clips" in capsys.readouterr().out


def check_training_and_prediction(dataset: ArrowDataset, written: Written, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    config = small_config(dataset, train__epochs=1, model__parts=written.parts, data__validation=0.25)
    (result,) = fit(config, device="cpu")
    assert np.isfinite(result.metrics["train/loss"])
    # The raw files are the clips of the data set.
    network = save_untrained_network(dataset, tmp_path / "network", model__parts=written.parts)
    predictor = Predictor.load(network)
    read: list[np.ndarray] = []
    reading = predictor.read

    class Recording(Predictor):
        def read(self, content: bytes) -> np.ndarray:
            read.append(reading(content))
            return read[-1]

    recording = Recording(predictor.members, predictor.sharpness)
    rows = list(predict_files(recording, [str(written.path)], 2, CPU))
    assert len(rows) == len(read) == len(dataset) == written.clips
    assert all("top" in row for row in rows)
    known = [dataset.clip(row) for row in range(len(dataset))]
    for clip in read:
        assert any(clip.shape == other.shape and np.array_equal(clip, other) for other in known)
    # The example request of a served model is of this format.
    (tmp_path / "networks").symlink_to(network)
    example = input_example(tmp_path / "networks")
    assert predictor.read(example["content"][0].encode()).shape == (1, 4, dataset.skeleton.num_joints, 3)


@pytest.mark.parametrize("as_zip", [False, True])
def test_folder_of_frames_is_one_clip_for_prediction(tmp_path: Path, *, as_zip: bool) -> None:
    written = openpose(tmp_path / "raw")
    convert_command([str(written.path), str(tmp_path / "out")])
    dataset = ArrowDataset(tmp_path / "out")
    predictor = Predictor.load(save_untrained_network(dataset, tmp_path / "network", model__parts=5))
    folder = tmp_path / "raw" / "test" / "wave" / "clip_0"
    sources = [str(folder), str(tmp_path / "raw" / "test" / "wave")]
    if as_zip:
        sources = [str(zip_folder(Path(source), tmp_path / f"{i}.zip")) for i, source in enumerate(sources)]
    one, *several = predict_files(predictor, sources, 2, CPU)
    assert one["file"] == f"{sources[0]}/clip_0"
    assert [row["file"] for row in several] == [f"{sources[1]}/clip_{i}" for i in range(4)]
    assert one["top"] == several[0]["top"]
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "other.json").write_text("{}")
    (row,) = predict_files(predictor, [str(tmp_path / "none")], 2, CPU)
    assert "contains no clip" in row["fault"]


def test_own_skeleton_files_are_converted_trained_on_and_classified(tmp_path: Path) -> None:
    fields = (3, 4, 7, 11, 12)

    def write(seed: int) -> bytes:
        joints = body(NTU_25, 15, seed, persons=1 + seed % 2) * (1000 if seed % 3 == 0 else 1)
        lines = (lambda m, t: None, lambda m, t: f"id-{m}", lambda m, t: f"{m} 0 1 1 1 1 0 0 0 2")
        return kinect_text(joints, fields=fields[seed % 5], body_line=lines[seed % 3], count=seed % 4 > 0)

    path = write_files(tmp_path / "raw", write, ".skeleton")
    rows = [f"{name},{name.split('/')[1]},P{i % 4},{name.split('/')[0]}" for i, name in enumerate(NAMES)]
    (tmp_path / "labels.csv").write_text("\n".join(["clip_id,label,subject,split", *rows]))
    labels = ["--labels", str(tmp_path / "labels.csv"), "--skeleton", "ntu-25"]
    custom_command([str(path), str(tmp_path / "out"), *labels])
    dataset = ArrowDataset(tmp_path / "out")
    assert dataset.preparation == "kinect-v2"
    for row, name in enumerate(dataset.clip_ids):
        clip, seed = dataset.clip(row), NAMES.index(name)
        assert len(clip) == 1 + seed % 2
        joints = body(NTU_25, 15, seed, persons=1 + seed % 2)
        np.testing.assert_allclose(clip, joints - joints[0, 0, NTU_25.centre], atol=1e-5)
    check_training_and_prediction(dataset, Written(path), tmp_path)


def test_sources_that_are_empty_or_incomplete_are_named(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 and then nothing")
    for name, message in (("raw", "is an empty folder"), ("a.npz", "is not a zip, or is incomplete")):
        with pytest.raises(InputError, match=message):
            convert_command([str(tmp_path / name), str(tmp_path / "out")])
