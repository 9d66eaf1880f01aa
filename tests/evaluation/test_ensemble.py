"""Fusing scores: what may be fused, what comes out, and weights that are the best there are."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgst.errors import InputError
from fgst.evaluation.ensemble import EnsembleCard, Member, align, equal_weights, fit_weights, fuse, softmax, subsets
from fgst.evaluation.metrics import Scores


def scores(seed: int = 0, clips: int = 12, classes: int = 4, right: float = 1.0, **changes: object) -> Scores:
    """Scores that know the classes as well as ``right`` says."""
    rng = np.random.default_rng(seed)
    labels = np.arange(clips) % classes
    values = rng.normal(size=(clips, classes)).astype(np.float32)
    values[np.arange(clips), labels] += right
    names = np.array([f"clip-{number:02d}" for number in range(clips)], dtype=object)
    return dataclasses.replace(Scores(names, labels.astype(np.int64), values, "val", "d" * 64), **changes)


def shuffled(found: Scores, seed: int = 1) -> Scores:
    rows = np.random.default_rng(seed).permutation(found.num_clips)
    return dataclasses.replace(
        found, clip_ids=found.clip_ids[rows], labels=found.labels[rows], scores=found.scores[rows]
    )


@pytest.mark.parametrize("sure", [1.0, 1.7])
def test_fused_probabilities_are_the_weighted_product(sure: float) -> None:
    a, b = scores(1), scores(2)
    fused = softmax(fuse({"joint": a, "bone": b}, {"joint": 3, "bone": 1}, sure).scores)
    for i in range(a.num_clips):  # as one would write it down
        p, q = (
            [math.exp(v) / sum(map(math.exp, row)) for v in row] for row in (a.scores[i].tolist(), b.scores[i].tolist())
        )
        product = [(p[c] ** 0.75 * q[c] ** 0.25) ** sure for c in range(4)]
        assert fused[i] == pytest.approx([value / sum(product) for value in product], rel=1e-5)
    kept = fuse({"joint": a, "bone": b}, {"joint": 3, "bone": 1})
    assert kept.split == "val"
    assert kept.digest == "d" * 64


def test_classes_are_ranked_as_by_a_weighted_sum_of_scores() -> None:
    a, b = scores(1, 400), scores(2, 400)
    fused = fuse({"joint": a, "bone": b}, {"joint": 0.6, "bone": 0.4}, 3.0)
    np.testing.assert_array_equal(fused.predictions, (0.6 * a.scores + 0.4 * b.scores).argmax(axis=1))


def test_order_of_clips_does_not_matter() -> None:
    a, b = scores(1), scores(2)
    straight = fuse({"joint": a, "bone": b}, {"joint": 1, "bone": 1})
    mixed = fuse({"joint": a, "bone": shuffled(b)}, {"joint": 1, "bone": 1})
    np.testing.assert_array_equal(straight.scores, mixed.scores)
    turned = fuse({"joint": shuffled(a), "bone": b}, {"joint": 1, "bone": 1})
    at = {clip: row for row, clip in enumerate(turned.clip_ids)}
    np.testing.assert_array_equal(turned.scores[[at[clip] for clip in straight.clip_ids]], straight.scores)


def test_a_weight_of_nothing_leaves_a_member_out() -> None:
    a, b = scores(1), scores(2)
    alone = fuse({"joint": a, "bone": b}, {"joint": 0.7})
    np.testing.assert_allclose(softmax(alone.scores), softmax(a.scores), rtol=1e-5)
    # members that are as sure as can be still give figures
    sure = dataclasses.replace(b, scores=(1e4 * b.scores).astype(np.float32))
    assert math.isfinite(fuse({"joint": sure, "bone": sure}, {"joint": 1, "bone": 1}).loss())


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (scores(2, digest="e" * 64), "of different data"),
        (scores(2, split="test"), "different splits: val and test"),
        (scores(2, classes=5), "know 4 and 5 classes"),
        (scores(2, clips=11), "1 differ, e.g. clip-11"),
        (scores(2, labels=(np.arange(12) + (np.arange(12) == 7)) % 4), "the class of 1 clips, e.g. clip-07"),
        (scores(2, clip_ids=np.array([f"clip-{min(n, 10):02d}" for n in range(12)], dtype=object)), "1 differ"),
    ],
)
def test_scores_that_do_not_belong_together_are_refused(other: Scores, words: str) -> None:
    with pytest.raises(InputError, match=words):
        fuse({"joint": scores(1), "bone": other}, {"joint": 1, "bone": 1})


def test_a_clip_that_is_named_twice_is_refused() -> None:
    twice = scores(2, clip_ids=np.array(["clip-00"] * 12, dtype=object))
    with pytest.raises(InputError, match="joint name a clip twice"):
        align({"joint": twice, "bone": twice})
    with pytest.raises(InputError, match="not of the same clips"):  # as many clips, all of them known
        align({"joint": scores(1), "bone": scores(2, clips=13, clip_ids=np.array([*scores(1).clip_ids, "clip-00"]))})


@pytest.mark.parametrize("weights", [{"joint": 0, "bone": 0}, {"joint": -1, "bone": 2}, {"joint": math.nan}, {}])
def test_weights_that_mean_nothing_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(InputError, match="must not be negative"):
        fuse({"joint": scores(1), "bone": scores(2)}, weights)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4), st.integers(1, 3))
def test_no_other_weights_are_more_likely(seed: int, members: int, seeds: int) -> None:
    rng = np.random.default_rng(seed)
    names = ["joint", "bone", "joint_motion", "bone_motion"][:members]
    rights = rng.uniform(-1, 3, members)
    trainings = [
        {name: scores(int(rng.integers(1e6)), 40, right=right) for name, right in zip(names, rights, strict=True)}
        for _ in range(seeds)
    ]
    fitted, sharpness = fit_weights(trainings)
    assert sum(fitted.values()) == pytest.approx(1)
    assert min(fitted.values()) >= 0

    def unlikely(weights: dict[str, float], sure: float) -> float:
        loss = sum(40 * fuse(training, weights, sure).loss() for training in trainings)
        return loss + 0.5 * sum((sure * weight - 1) ** 2 for weight in weights.values())  # the prior

    best = unlikely(fitted, sharpness)
    for point in rng.dirichlet(np.ones(members), 50):
        sure = sharpness * float(rng.uniform(0.5, 2))
        assert best <= unlikely(dict(zip(names, point.tolist(), strict=True)), sure) + 1e-3
    assert fit_weights(trainings) == (fitted, sharpness)  # nothing in it is drawn


def test_what_a_member_knows_is_what_it_counts() -> None:
    good, noise = scores(1, 400, right=3.0), scores(2, 400, right=0.0)
    fitted, _ = fit_weights([{"joint": good, "bone": noise}])
    assert fitted["bone"] < 0.1
    assert fuse({"joint": good, "bone": noise}, fitted).top(1) >= good.top(1) - 1
    # two that know as much of different things count alike, and are surer together than each alone
    one, two = scores(3, 400, right=2.0), scores(4, 400, right=2.0)
    fitted, sharpness = fit_weights([{"joint": one, "bone": two}])
    assert fitted["joint"] == pytest.approx(0.5, abs=0.1)
    assert sharpness > 1.5
    assert fuse({"joint": one, "bone": two}, fitted).top(1) > max(one.top(1), two.top(1))


def test_members_that_are_always_right_are_weighted_alike() -> None:
    one, two = scores(3, 40, right=60.0), scores(4, 40, right=60.0)
    fitted, sharpness = fit_weights([{"joint": one, "bone": two}])
    assert fitted["joint"] == pytest.approx(0.5, abs=1e-6)
    assert sharpness == pytest.approx(2, abs=1e-3)


def test_subsets_are_all_there_are() -> None:
    chosen = list(subsets(["a", "b", "c", "d"]))
    assert len(chosen) == len(set(chosen)) == 15
    assert chosen[0] == ("a",)
    assert chosen[-1] == ("a", "b", "c", "d")
    assert equal_weights(["a", "b"]) == {"a": 0.5, "b": 0.5}


def test_card_goes_to_disk_and_back(tmp_path: Path) -> None:
    card = EnsembleCard((Member("joint", "a" * 32, 0.75), Member("bone", "b" * 32, 0.25)), 1.5, "c" * 32)
    card.write(tmp_path / "ensemble.json")
    assert EnsembleCard.read(tmp_path / "ensemble.json") == card


@pytest.mark.parametrize(
    "change",
    [
        {"members": []}, {"members": [{"modality": "joint", "run_id": "a", "weight": 2}]}, {"members": 3},
        {"members": [{"modality": "../joint", "run_id": "a", "weight": 1}]}, {"fitted_by": None, "members": [1]},
        {"sharpness": -1}, {"sharpness": "inf"},
        {"members": [{"modality": "joint", "run_id": "a", "weight": 0.5}] * 2},
    ],
)  # fmt: skip
def test_a_card_that_is_none_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    card = EnsembleCard((Member("joint", "a" * 32, 1.0),))
    card.write(tmp_path / "ensemble.json")
    content = json.loads((tmp_path / "ensemble.json").read_text())
    (tmp_path / "ensemble.json").write_text(json.dumps(content | change))
    with pytest.raises(InputError, match=r"is not an ensemble\.json"):
        EnsembleCard.read(tmp_path / "ensemble.json")
