"""Explanations by focal joints: statistics and clips, compared with loops over the attention maps, and figures."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fgst.data.dataset import ArrowDataset
from fgst.data.loader import Batch, ClipLoader
from fgst.errors import InputError
from fgst.evaluation.ensemble import softmax
from fgst.evaluation.explain import BATCH_SIZE, analyze_focal_joints, explain, make_focal_clip
from fgst.model import AttentionMaps, FGSTFormer
from fgst.model.card import ModelCard, load_model
from tests.support import small
from tests.support.numerics import assert_close

CPU = torch.device("cpu")
Network = tuple[FGSTFormer, ModelCard]


@pytest.fixture(scope="module")
def network(dataset: ArrowDataset, tmp_path_factory: pytest.TempPathFactory) -> Network:
    """An untrained network for bones."""
    return load_model(small.save_untrained_network(dataset, tmp_path_factory.mktemp("network"), data__modality="bone"))


@pytest.fixture(scope="module")
def loader(dataset: ArrowDataset, network: Network) -> ClipLoader:
    """A loader of the test clips."""
    return ClipLoader(dataset, dataset.splits("x-sub", validation=0).test, network[1].config.data, CPU)


@pytest.fixture(scope="module")
def explained(
    dataset: ArrowDataset, network: Network, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """The output folder of an explanation, and the names of its files."""
    model, card = network
    out = tmp_path_factory.mktemp("out")
    return out, explain(model, card, dataset, out, clips=["clip-014"])


def forward(model: FGSTFormer, loader: ClipLoader) -> Iterator[tuple[Batch, np.ndarray, AttentionMaps]]:
    """Yield each batch with its probabilities and attention maps.

    The batches are those of the explanation: in other batches, rounding may select other focal joints where scores are
    nearly equal.
    """
    with torch.inference_mode():
        for batch in loader.evaluation_batches(BATCH_SIZE):
            scores, maps = model(batch.clips, batch.person_mask, return_maps=True)
            yield batch, softmax(scores.numpy()), maps


def test_heat_map_counts_focal_frames_of_present_persons(
    dataset: ArrowDataset, network: Network, loader: ClipLoader, explained: tuple[Path, list[str]]
) -> None:
    written = json.loads((explained[0] / "focal.json").read_text())
    by_class: dict[int, list[list[float]]] = {}
    for batch, _, maps in forward(network[0], loader):
        assert maps.focal_joints is not None
        for index, row in enumerate(batch.rows.tolist()):
            counts, frames = [0.0] * 6, 0
            for person in range(int(dataset.columns["num_persons"][loader.rows[row]])):
                for joints in maps.focal_joints[index, person].tolist():
                    frames += 1
                    for joint in joints:
                        counts[joint] += 1
            by_class.setdefault(int(loader.labels[row]), []).append([count / frames for count in counts])
    assert list(written["classes"]) == list(dataset.classes)
    for label, name in enumerate(dataset.classes):
        expected = 100 * np.mean(by_class[label], axis=0)
        np.testing.assert_allclose(written["classes"][name], expected, atol=0.5001e-3)  # rounded to three decimals
        assert sum(written["classes"][name]) == pytest.approx(400, abs=6 * 0.5001e-3)  # four of six joints per frame


def test_best_clips_are_most_probable_correct_ones(network: Network, loader: ClipLoader) -> None:
    best = analyze_focal_joints(network[0], loader).best
    probabilities = np.concatenate([rows for _, rows, _ in forward(network[0], loader)])
    labels = loader.labels.numpy()
    for label in range(3):
        candidates = [
            (probabilities[row].argmax() == label, probabilities[row, label], row)
            for row in np.flatnonzero(labels == label)
        ]
        assert best[label] == max(candidates)[2]


def test_focal_clip_matches_attention_maps(dataset: ArrowDataset, network: Network, loader: ClipLoader) -> None:
    model, card = network
    row = int(np.flatnonzero(dataset.columns["num_persons"][loader.rows] == 2)[0])
    clip = make_focal_clip(model, card, dataset, loader, row)
    batch = loader.batch(np.array([row]))
    with torch.inference_mode():
        _, maps = model(batch.clips, batch.person_mask, return_maps=True)
    assert maps.focal_joints is not None
    T = maps.focal_joints.shape[2]
    layers = [layer for layer in maps.part_to_joint if layer.shape[2] == T]
    assert clip.person_mask.all()
    for person in range(2):
        for frame in range(T):
            selected = maps.focal_joints[0, person, frame].tolist()
            assert np.flatnonzero(clip.focal[person, frame]).tolist() == sorted(selected)
            weights = {
                (joint, part): float(np.mean([float(m[0, person, frame, :, slot, part].mean()) for m in layers]))
                for slot, joint in enumerate(selected)
                for part in range(3)
            }
            strongest = clip.strongest(person, frame)
            assert len(strongest) == 3
            for (joint, part, weight), expected in zip(strongest, sorted(weights.values(), reverse=True), strict=False):
                assert weight == pytest.approx(weights[joint, part], rel=1e-5)
                assert weight == pytest.approx(expected, rel=1e-5)
    # The clip contains positions, although the modality of the network is bone.
    config = dataclasses.replace(card.config.data, modality="joint")
    expected_joints = ClipLoader(dataset, loader.rows, config, CPU).batch(np.array([row])).clips[0].numpy()
    assert_close(clip.joints, expected_joints, terms=200, dtype=torch.float32)
    shades = clip.shade()[clip.focal]
    assert shades.min() == 0
    assert shades.max() == 1


def test_written_files_are_listed_and_readable(dataset: ArrowDataset, explained: tuple[Path, list[str]]) -> None:
    out, written = explained
    assert sorted(written) == sorted(path.name for path in out.iterdir())
    assert {f"{label:03d}-{name.replace(' ', '-')}.png" for label, name in enumerate(dataset.classes)} <= set(written)
    assert {"joints.png", "classes.png", "focal.csv", "clip-clip-014.png", "clip-clip-014.gif"} <= set(written)
    for name in written:
        if not name.endswith((".json", ".csv")):
            with Image.open(out / name) as picture:
                picture.load()
                assert picture.format == name.rpartition(".")[2].upper()
                assert min(picture.size) > 200
                frames: Any = picture
                if name.endswith(".gif"):
                    assert frames.n_frames == 8


@pytest.mark.parametrize(("suffix", "start"), [("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_figures_of_chosen_classes_are_vector_graphics(
    suffix: str, start: bytes, dataset: ArrowDataset, network: Network, tmp_path: Path
) -> None:
    written = explain(*network, dataset, tmp_path, classes=["foot", "left hand"], clips=["clip-014"], suffix=suffix)
    assert {name for name in written if name.endswith(suffix)} == {
        f"joints.{suffix}", f"classes.{suffix}", f"002-foot.{suffix}", f"000-left-hand.{suffix}",
        f"clip-clip-014.{suffix}",
    }  # fmt: skip
    for name in written:
        content = (tmp_path / name).read_bytes()
        assert content.startswith(start) or not name.endswith(suffix)
        if name.endswith("svg"):
            assert b"<text" in content
            assert b"clip-014" in content or "clip" not in name


def test_unknown_class_is_rejected_with_similar_ones(dataset: ArrowDataset, network: Network, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--class hand: there is no such class; e\.g\. left hand, right hand"):
        explain(*network, dataset, tmp_path, classes=["hand"])
    assert not any(tmp_path.iterdir())


def test_network_that_selects_all_joints_shows_their_scores(dataset: ArrowDataset, tmp_path: Path) -> None:
    checkpoint = small.save_untrained_network(dataset, tmp_path / "network", model__focal_joints=6)
    model, card = load_model(checkpoint)
    explain(model, card, dataset, tmp_path / "out", classes=["foot"])
    content = json.loads((tmp_path / "out" / "focal.json").read_text())
    assert content["chance"] is content["beyond_chance"] is None
    assert "all joints are focal" in content["what"]
    loader = ClipLoader(dataset, dataset.splits("x-sub", validation=0).test, card.config.data, CPU)
    expected: dict[int, list[np.ndarray]] = {}
    for batch, _, maps in forward(model, loader):
        assert maps.focal_scores is not None
        for index, row in enumerate(batch.rows.tolist()):
            persons = int(dataset.columns["num_persons"][loader.rows[row]])
            scores = maps.focal_scores[index, :persons].numpy().reshape(-1, 6)
            expected.setdefault(int(loader.labels[row]), []).append(scores.mean(axis=0))
    for label, name in enumerate(dataset.classes):
        np.testing.assert_allclose(content["classes"][name], np.mean(expected[label], axis=0), atol=0.51e-3)
    row = int(np.flatnonzero(loader.labels.numpy() == 0)[0])
    assert make_focal_clip(model, card, dataset, loader, row).all_focal


def test_unknown_clip_is_rejected(dataset: ArrowDataset, network: Network, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--clip missing: not one of the 12 test clips"):
        explain(*network, dataset, tmp_path, clips=["missing"])
