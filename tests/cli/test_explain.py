"""What a network looks at: the numbers behind the pictures against slow loops over its maps, and the files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fgst.cli.explain import _clip, explain, main
from fgst.data.dataset import ArrowDataset
from fgst.data.loader import ClipLoader
from fgst.errors import InputError
from fgst.evaluation.ensemble import softmax
from fgst.evaluation.focal_plots import FocalClip, focal_heat_map
from fgst.model.card import load_model
from tests.support import small
from tests.support.small import network

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ArrowDataset:
    torch.set_num_threads(1)
    return small.write_small(tmp_path_factory.mktemp("data") / "small")


@pytest.fixture(scope="module")
def folder(dataset: ArrowDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return network(dataset, tmp_path_factory.mktemp("network"), data__modality="bone")


@pytest.fixture(scope="module")
def explained(dataset: ArrowDataset, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    model, card = load_model(folder)
    out = tmp_path_factory.mktemp("out")
    return out, explain(model, card, dataset, out, clips=["clip-014"])


def test_heat_map_counts_focal_frames_of_those_who_are_there(
    dataset: ArrowDataset, folder: Path, explained: tuple[Path, list[str]]
) -> None:
    model, card = load_model(folder)
    told = json.loads((explained[0] / "focal.json").read_text())
    rows = dataset.splits("x-sub", validation=0).test
    store = ClipLoader(dataset, rows, card.config.data, CPU)
    by_class: dict[int, list[list[float]]] = {}
    for row in range(len(rows)):
        batch = store.batch(np.array([row]))
        with torch.inference_mode():
            _, maps = model(batch.clips, batch.person_mask, return_maps=True)
        counts, frames = [0.0] * 6, 0
        for person in range(int(dataset.columns["num_persons"][rows[row]])):
            for frame in maps.focal_joints[0, person].tolist():
                frames += 1
                for joint in frame:
                    counts[joint] += 1
        by_class.setdefault(int(store.labels[row]), []).append([count / frames for count in counts])
    assert list(told["classes"]) == list(dataset.classes)
    for label, name in enumerate(dataset.classes):
        expected = 100 * np.mean(by_class[label], axis=0)
        np.testing.assert_allclose(told["classes"][name], expected, atol=1e-3)
        assert sum(told["classes"][name]) == pytest.approx(400, abs=0.01)  # four of six joints in each frame


def test_each_class_is_drawn_by_the_clip_that_is_right_and_surest(
    dataset: ArrowDataset, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, card = load_model(folder)
    drawn: list[FocalClip] = []
    monkeypatch.setattr("fgst.cli.explain.focal_stills", lambda clip, *rest: drawn.append(clip))
    monkeypatch.setattr("fgst.cli.explain.focal_animation", lambda *rest: None)
    explain(model, card, dataset, tmp_path)
    rows = dataset.splits("x-sub", validation=0).test
    store = ClipLoader(dataset, rows, card.config.data, CPU)
    with torch.inference_mode():
        chances = np.concatenate([softmax(model(b.clips, b.person_mask).numpy()) for b in store.evaluation_batches(16)])
    labels = store.labels.numpy()
    for label, clip in enumerate(drawn):
        own = [(chances[row].argmax() == label, chances[row, label], row) for row in np.flatnonzero(labels == label)]
        assert clip.clip_id == store.clip_ids[max(own)[2]]


def test_a_clip_shows_the_joints_scores_and_attentions_of_the_maps(dataset: ArrowDataset, folder: Path) -> None:
    model, card = load_model(folder)
    rows = dataset.splits("x-sub", validation=0).test
    store = ClipLoader(dataset, rows, card.config.data, CPU)
    row = int(np.flatnonzero(dataset.columns["num_persons"][rows] == 2)[0])
    clip = _clip(model, card, dataset, store, row)
    batch = store.batch(np.array([row]))
    with torch.inference_mode():
        _, maps = model(batch.clips, batch.person_mask, return_maps=True)
    T = maps.focal_joints.shape[2]
    layers = [layer for layer in maps.part_to_joint if layer.shape[2] == T]
    assert clip.person_mask.all()
    for person in range(2):
        for frame in range(T):
            chosen = maps.focal_joints[0, person, frame].tolist()
            assert np.flatnonzero(clip.focal[person, frame]).tolist() == sorted(chosen)
            pairs = []
            for slot, joint in enumerate(chosen):
                for part in range(3):
                    weight = np.mean([float(m[0, person, frame, :, slot, part].mean()) for m in layers])
                    pairs.append((weight, joint, part))
            for (joint, part, weight), expected in zip(
                clip.strongest(person, frame), sorted(pairs, reverse=True), strict=False
            ):
                assert weight == pytest.approx(expected[0], rel=1e-4)
                assert (joint, part) == expected[1:]
    # The joints are where they are, though the network is given bones.
    joint = dataclasses.replace(card.config.data, modality="joint")
    np.testing.assert_array_equal(clip.joints, ClipLoader(dataset, rows, joint, CPU).batch(np.array([row])).clips[0])
    shades = clip.shade()[clip.focal]
    assert shades.min() == 0
    assert shades.max() == 1


def test_files_are_pictures_that_can_be_read(dataset: ArrowDataset, explained: tuple[Path, list[str]]) -> None:
    out, written = explained
    assert sorted(written) == sorted(path.name for path in out.iterdir())
    assert {f"{label:03d}-{name.replace(' ', '-')}.png" for label, name in enumerate(dataset.classes)} <= set(written)
    assert {"joints.png", "clip-clip-014.png", "clip-clip-014.gif"} <= set(written)
    for name in written:
        if not name.endswith(".json"):
            with Image.open(out / name) as picture:
                picture.load()
                assert picture.format == name.rpartition(".")[2].upper()
                assert min(picture.size) > 200
                if name.endswith(".gif"):
                    assert picture.n_frames == 8


def test_a_hundred_and_twenty_classes_are_legible(tmp_path: Path) -> None:
    focal_heat_map(np.random.default_rng(0).uniform(0, 100, (120, 25)), [f"class {n}" for n in range(120)],
                   small.SKELETON.joints * 4 + ("x",), tmp_path / "map.png")  # fmt: skip
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.height > 120 * 30


def test_bad_input_is_named(dataset: ArrowDataset, folder: Path, tmp_path: Path, tracking_uri: str) -> None:
    from fgst.tracking.store import TrackingStore

    model, card = load_model(folder)
    with pytest.raises(InputError, match="nobody: is none of the"):
        explain(model, card, dataset, tmp_path, clips=["nobody"])
    with pytest.raises(InputError, match="--out"):
        main(["--run-id", "0" * 32, "--no-log"])
    store = TrackingStore(tracking_uri)
    experiment = store.experiment("small x-sub")
    sweep = store.start(experiment, "s", "a sweep", {"fgst.kind": "sweep", "fgst.best_run": "a" * 32})
    with pytest.raises(InputError, match=f"no single network; one of its networks is --run-id {'a' * 32}"):
        main(["--run-id", sweep.run_id, "--tracking-uri", tracking_uri])
    made = network(dataset, tmp_path / "plain", model__focal_selection=False, model__part_branch=False,
                   model__cross_attention=False)  # fmt: skip
    made.rename(tmp_path / "plain" / "checkpoint")
    run = store.start(experiment, "t", "a trial", {"fgst.kind": "trial"})
    run.log_artifacts(tmp_path / "plain")
    with pytest.raises(InputError, match="without focal joints"):
        main(["--run-id", run.run_id, "--tracking-uri", tracking_uri])


def test_command_keeps_the_pictures_with_the_run(
    dataset: ArrowDataset, folder: Path, tmp_path: Path, tracking_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from fgst.tracking.store import TrackingStore

    store = TrackingStore(tracking_uri)
    run = store.start(store.experiment("small x-sub"), "t", "a trial", {"fgst.kind": "trial"})
    (tmp_path / "run" / "checkpoint").mkdir(parents=True)
    for name in ("model.safetensors", "config.json"):
        (tmp_path / "run" / "checkpoint" / name).write_bytes((folder / name).read_bytes())
    run.log_artifacts(tmp_path / "run")
    main(["--run-id", run.run_id, "--tracking-uri", tracking_uri])
    assert f"under figures/focal of run {run.run_id}" in capsys.readouterr().out
    with store.artifacts(run.run_id, "figures/focal") as kept:
        assert (kept / "joints.png").is_file()
        assert len(list(kept.glob("*.gif"))) == 1
