"""Ensembles: matching and fusing scores, fitted weights, and ensemble cards."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgst.errors import InputError
from fgst.evaluation.ensemble import EnsembleCard, Member, align, equal_weights, fit_weights, fuse, softmax, subsets
from fgst.evaluation.metrics import Scores
from tests.evaluation.helpers import make_scores, shuffled
from tests.support.numerics import assert_close


@pytest.mark.parametrize("sharpness", [1.0, 1.7])
def test_fused_probabilities_are_weighted_products(sharpness: float) -> None:
    a, b = make_scores(1), make_scores(2)
    fused = softmax(fuse({"joint": a, "bone": b}, {"joint": 3, "bone": 1}, sharpness).scores)
    for i in range(a.num_clips):
        p, q = (
            [math.exp(v) / sum(map(math.exp, row)) for v in row] for row in (a.scores[i].tolist(), b.scores[i].tolist())
        )
        product = [(p[c] ** 0.75 * q[c] ** 0.25) ** sharpness for c in range(4)]
        # Fused scores of magnitude 10 are rounded to float32.
        assert fused[i] == pytest.approx([value / sum(product) for value in product], rel=1e-5)
    result = fuse({"joint": a, "bone": b}, {"joint": 3, "bone": 1})
    assert result.split == "val"
    assert result.digest == "d" * 64


def test_fused_ranking_matches_weighted_sums_of_scores() -> None:
    a, b = make_scores(1, 400), make_scores(2, 400)
    fused = fuse({"joint": a, "bone": b}, {"joint": 0.6, "bone": 0.4}, 3.0)
    sums = 0.6 * a.scores.astype(np.float64) + 0.4 * b.scores
    second, first = np.sort(sums, axis=1)[:, -2:].T
    distinct = first - second > 1e-5  # more than float32 rounding of fused scores of magnitude 10
    assert distinct.mean() > 0.99
    np.testing.assert_array_equal(fused.predictions[distinct], sums.argmax(axis=1)[distinct])


def test_fuse_does_not_depend_on_clip_order() -> None:
    a, b = make_scores(1), make_scores(2)
    expected = fuse({"joint": a, "bone": b}, {"joint": 1, "bone": 1})
    second_shuffled = fuse({"joint": a, "bone": shuffled(b)}, {"joint": 1, "bone": 1})
    assert_close(second_shuffled.scores, expected.scores, terms=200, dtype=torch.float32)
    first_shuffled = fuse({"joint": shuffled(a), "bone": b}, {"joint": 1, "bone": 1})
    row_of = {clip: row for row, clip in enumerate(first_shuffled.clip_ids)}
    assert_close(
        first_shuffled.scores[[row_of[clip] for clip in expected.clip_ids]],
        expected.scores,
        terms=200,
        dtype=torch.float32,
    )


def test_fuse_ignores_members_without_weight() -> None:
    a, b = make_scores(1), make_scores(2)
    single = fuse({"joint": a, "bone": b}, {"joint": 0.7})
    np.testing.assert_allclose(softmax(single.scores), softmax(a.scores), rtol=1e-5)


def test_fusing_extreme_scores_gives_a_finite_loss() -> None:
    extreme = make_scores(2, scores=(1e4 * make_scores(2).scores).astype(np.float32))
    assert math.isfinite(fuse({"joint": extreme, "bone": extreme}, {"joint": 1, "bone": 1}).loss())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (make_scores(2, digest="e" * 64), "of different data sets"),
        (make_scores(2, split="test"), "different splits: val and test"),
        (make_scores(2, classes=5), "have 4 and 5 classes"),
        (make_scores(2, clips=11), "1 differ, e.g. clip-11"),
        (make_scores(2, labels=(np.arange(12) + (np.arange(12) == 7)) % 4), "the class of 1 clips, e.g. clip-07"),
        (make_scores(2, clip_ids=np.array([f"clip-{min(n, 10):02d}" for n in range(12)], dtype=object)), "1 differ"),
    ],
)
def test_fuse_rejects_scores_that_do_not_match(other: Scores, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fuse({"joint": make_scores(1), "bone": other}, {"joint": 1, "bone": 1})


def test_align_rejects_duplicate_clips() -> None:
    duplicates = make_scores(2, clip_ids=np.array(["clip-00"] * 12, dtype=object))
    with pytest.raises(InputError, match="joint contain a clip twice"):
        align({"joint": duplicates, "bone": duplicates})
    clip_ids = np.array([*make_scores(1).clip_ids, "clip-00"])  # the same set of clips
    with pytest.raises(InputError, match="not of the same clips: those of bone contain a clip twice"):
        align({"joint": make_scores(1), "bone": make_scores(2, clips=13, clip_ids=clip_ids)})


@pytest.mark.parametrize("weights", [{"joint": 0, "bone": 0}, {"joint": -1, "bone": 2}, {"joint": math.nan}, {}])
def test_fuse_rejects_invalid_weights(weights: dict[str, float]) -> None:
    with pytest.raises(InputError, match="must not be negative"):
        fuse({"joint": make_scores(1), "bone": make_scores(2)}, weights)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4), st.integers(1, 3))
def test_fitted_weights_have_maximum_posterior(seed: int, members: int, seeds: int) -> None:
    rng = np.random.default_rng(seed)
    names = ["joint", "bone", "joint_motion", "bone_motion"][:members]
    margins = rng.uniform(-1, 3, members)
    trainings = [
        {name: make_scores(int(rng.integers(10**6)), 40, margin=m) for name, m in zip(names, margins, strict=True)}
        for _ in range(seeds)
    ]
    fitted, sharpness = fit_weights(trainings)
    assert sum(fitted.values()) == pytest.approx(1, rel=1e-12)
    assert min(fitted.values()) >= 0

    def negative_log_posterior(weights: dict[str, float], sharpness: float) -> float:
        loss = sum(40 * fuse(training, weights, sharpness).loss() for training in trainings)
        return loss + 0.5 * sum((sharpness * weight - 1) ** 2 for weight in weights.values())

    minimum = negative_log_posterior(fitted, sharpness)
    # fuse() rounds scores of magnitude 10 or more to float32, for each clip.
    tolerance = 40 * seeds * 100 * np.finfo(np.float32).eps
    for point in rng.dirichlet(np.ones(members), 50):
        other_sharpness = sharpness * float(rng.uniform(0.5, 2))
        other = negative_log_posterior(dict(zip(names, point.tolist(), strict=True)), other_sharpness)
        assert minimum <= other + tolerance
    repeated, repeated_sharpness = fit_weights(trainings)
    assert repeated == pytest.approx(fitted, rel=1e-9, abs=1e-12)
    assert repeated_sharpness == pytest.approx(sharpness, rel=1e-9, abs=1e-12)


def test_uninformative_members_get_little_weight() -> None:
    informative, noise = make_scores(1, 400, margin=3.0), make_scores(2, 400, margin=0.0)
    fitted, _ = fit_weights([{"joint": informative, "bone": noise}])
    assert fitted["bone"] < 0.1
    assert fuse({"joint": informative, "bone": noise}, fitted).top(1) >= informative.top(1) - 1


def test_independent_members_get_equal_weights_and_are_sharpened() -> None:
    joint, bone = make_scores(3, 400, margin=2.0), make_scores(4, 400, margin=2.0)
    fitted, sharpness = fit_weights([{"joint": joint, "bone": bone}])
    assert fitted["joint"] == pytest.approx(0.5, abs=0.1)
    assert sharpness > 1.5
    assert fuse({"joint": joint, "bone": bone}, fitted).top(1) > max(joint.top(1), bone.top(1))


def test_perfect_members_get_equal_weights() -> None:
    joint, bone = make_scores(3, 40, margin=60.0), make_scores(4, 40, margin=60.0)
    fitted, sharpness = fit_weights([{"joint": joint, "bone": bone}])
    assert fitted["joint"] == pytest.approx(0.5, abs=1e-6)
    assert sharpness == pytest.approx(2, abs=1e-3)


def test_subsets_are_complete_and_unique() -> None:
    result = list(subsets(["a", "b", "c", "d"]))
    assert len(result) == len(set(result)) == 15
    assert result[0] == ("a",)
    assert result[-1] == ("a", "b", "c", "d")
    assert equal_weights(["a", "b"]) == {"a": 0.5, "b": 0.5}


def test_ensemble_card_round_trip(tmp_path: Path) -> None:
    card = EnsembleCard((Member("joint", "a" * 32, 0.75), Member("bone", "b" * 32, 0.25)), 1.5, "c" * 32)
    card.write(tmp_path / "ensemble.json")
    assert EnsembleCard.read(tmp_path / "ensemble.json") == card


@pytest.mark.parametrize("change", [{"sharpness": 2.0}, {"sha256": None}, {"fitted_by": "b" * 32}, {"more": 1}])
def test_changed_ensemble_card_is_rejected(tmp_path: Path, change: dict[str, object]) -> None:
    EnsembleCard((Member("joint", "a" * 32, 1.0),)).write(tmp_path / "ensemble.json")
    content = json.loads((tmp_path / "ensemble.json").read_text())
    (tmp_path / "ensemble.json").write_text(json.dumps(content | change))
    with pytest.raises(InputError, match=r"is not a valid ensemble\.json \((it was modified|.*unknown)"):
        EnsembleCard.read(tmp_path / "ensemble.json")
    del content["sha256"]  # as earlier versions wrote it
    (tmp_path / "ensemble.json").write_text(json.dumps(content))
    assert EnsembleCard.read(tmp_path / "ensemble.json").sharpness == 1.0


@pytest.mark.parametrize(
    "change",
    [
        {"members": []}, {"members": [{"modality": "joint", "run_id": "a", "weight": 2}]}, {"members": 3},
        {"members": [{"modality": "../joint", "run_id": "a", "weight": 1}]}, {"fitted_by": None, "members": [1]},
        {"sharpness": -1}, {"sharpness": "inf"},
        {"members": [{"modality": "joint", "run_id": "a", "weight": 0.5}] * 2},
    ],
)  # fmt: skip
def test_invalid_ensemble_cards_are_rejected(tmp_path: Path, change: dict[str, object]) -> None:
    card = EnsembleCard((Member("joint", "a" * 32, 1.0),))
    card.write(tmp_path / "ensemble.json")
    content = json.loads((tmp_path / "ensemble.json").read_text())
    del content["sha256"]
    (tmp_path / "ensemble.json").write_text(json.dumps(content | change))
    with pytest.raises(InputError, match=r"is not a valid ensemble\.json"):
        EnsembleCard.read(tmp_path / "ensemble.json")
