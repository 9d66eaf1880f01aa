"""Metrics of scores, compared with independent computations, and scores files."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import ipc

from fgst.errors import InputError
from fgst.evaluation.metrics import Scores


def scores_of(rows: Any, labels: list[int]) -> Scores:
    """Return scores with one row per clip and one column per class."""
    values = np.array(rows, np.float32)
    return Scores(np.array([f"clip {i}" for i in range(len(labels))], dtype=object), np.array(labels), values)


def random_scores(clips: int, classes: int, seed: int = 0, levels: int | None = None) -> Scores:
    """Return random scores; ``levels`` limits the number of different values, so that there are ties."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(clips, classes)) * 3 if levels is None else rng.integers(0, levels, (clips, classes))
    return scores_of(values, rng.integers(0, classes, clips).tolist())


# Accuracy


def test_top_k_matches_manual_count() -> None:
    scores = scores_of(
        [[0.9, 0.1, 0.0, -1.0], [0.9, 0.1, 0.0, -1.0], [0.9, 0.1, 0.0, -1.0], [0.0, 0.0, 5.0, 1.0]],
        [0, 1, 3, 2],
    )
    assert scores.num_clips == 4
    assert [scores.top(k) for k in (1, 2, 3, 4, 5)] == [50, 75, 75, 100, 100]
    assert scores.predictions.tolist() == [0, 0, 0, 2]


def test_ties_are_resolved_by_lower_class_index() -> None:
    labels = [0, 1, 2, 3]
    scores = scores_of(np.zeros((4, 4)), labels)
    assert [scores.top(k) for k in (1, 2, 3, 4)] == [25, 50, 75, 100]
    assert scores.predictions.tolist() == [0] * 4
    # A network with constant scores is not better than chance.
    assert scores_of([[1, 1, 0]] * 3, [0, 1, 2]).top(2) == pytest.approx(200 / 3, rel=1e-12)


@pytest.mark.parametrize("levels", [None, 1, 2, 4])
@pytest.mark.parametrize("classes", [1, 2, 3, 7])
def test_top_k_matches_stable_sort(classes: int, levels: int | None) -> None:
    scores = random_scores(50, classes, levels=levels)
    for k in (1, 2, 5, 9):
        hits = 0
        for row, label in zip(scores.scores.tolist(), scores.labels.tolist(), strict=True):
            ranking = sorted(range(classes), key=lambda number: (-row[number], number))
            hits += label in ranking[:k]
        assert scores.top(k) == pytest.approx(100 * hits / 50, rel=1e-12)


@pytest.mark.parametrize("levels", [None, 2])
def test_top_1_and_confusion_agree_with_predictions(levels: int | None) -> None:
    scores = random_scores(60, 4, levels=levels)
    share = 100 * np.mean(scores.predictions == scores.labels)
    assert scores.top(1) == pytest.approx(share, rel=1e-12)
    assert 100 * np.trace(scores.confusion()) / 60 == pytest.approx(share, rel=1e-12)


def test_top_5_of_fewer_than_five_classes_is_100() -> None:
    scores = random_scores(30, 3)
    assert scores.top(5) == 100
    assert scores.top(1) < 100


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_are_finite(value: float) -> None:
    """Scores that are not finite predict nothing, and must not be compared, fused, saved or selected."""
    with pytest.raises(InputError, match="the scores of clip clip 1 are not finite"):
        scores_of([[0, 1], [value, 1], [0, 1]], [0, 1, 0])
    with pytest.raises(InputError, match="the scores of clip clip 0 and 2 others are not finite"):
        scores_of([[0, value]] * 3, [0, 1, 0])


# Confusion and classes


def test_confusion_has_true_classes_as_rows() -> None:
    scores = scores_of([[1, 0, 0], [0, 1, 0], [0, 1, 0], [1, 0, 0]], [0, 0, 1, 1])
    assert scores.confusion().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    scores = scores_of([[0, 0, 1]], [0])
    assert scores.confusion().tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_confusion_matches_counts() -> None:
    scores = random_scores(200, 6)
    expected = np.zeros((6, 6), int)
    for label, row in zip(scores.labels, scores.scores, strict=True):
        expected[label, np.argmax(row)] += 1
    np.testing.assert_array_equal(scores.confusion(), expected)


def test_per_class_includes_classes_without_clips() -> None:
    scores = scores_of([[1, 0, 0], [0, 1, 0], [0, 1, 0]], [0, 0, 1])
    assert scores.per_class(["wave", "walk", "sit"]) == [
        {"class": "wave", "num_clips": 2, "correct": 1, "top1": 50.0},
        {"class": "walk", "num_clips": 1, "correct": 1, "top1": 100.0},
        {"class": "sit", "num_clips": 0, "correct": 0, "top1": None},
    ]


# Loss


@pytest.mark.parametrize("scale", [1, 30, 1e4])
def test_loss_matches_cross_entropy_of_torch(scale: float) -> None:
    scores = random_scores(40, 5, seed=2)
    scores = Scores(scores.clip_ids, scores.labels, (scores.scores * scale).astype(np.float32))
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(scores.scores).double(), torch.from_numpy(scores.labels)
    )
    # A clip's loss is the difference of two values as large as its scores.
    assert scores.loss() == pytest.approx(expected.item(), rel=1e-12, abs=1e-14 * float(np.abs(scores.scores).max()))


def test_loss_of_constant_scores_is_log_of_number_of_classes() -> None:
    assert scores_of(np.full((4, 8), 3.0), [0, 1, 2, 3]).loss() == pytest.approx(math.log(8), rel=1e-12)


# Files


@pytest.mark.parametrize(("clips", "classes"), [(17, 5), (1, 1), (0, 3)])
def test_scores_file_round_trip(tmp_path: Path, clips: int, classes: int) -> None:
    scores = random_scores(clips, classes)
    scores.save(tmp_path / "scores.arrow")
    read = Scores.load(str(tmp_path / "scores.arrow"))
    assert read.clip_ids.tolist() == scores.clip_ids.tolist()
    assert read.labels.tolist() == scores.labels.tolist()
    assert read.scores.tobytes() == scores.scores.tobytes()
    assert read.labels.dtype == np.int64
    assert read.scores.dtype == np.float32
    assert read.scores.shape == (clips, classes)


def test_save_accepts_any_memory_layout_and_dtype(tmp_path: Path) -> None:
    scores = random_scores(6, 4)
    converted = Scores(scores.clip_ids, scores.labels.astype(np.int32), np.asfortranarray(scores.scores, np.float64))
    converted.save(tmp_path / "scores.arrow")
    np.testing.assert_array_equal(Scores.load(tmp_path / "scores.arrow").scores, scores.scores)


@pytest.mark.parametrize("length", [0, 1, 100, -1, None])
def test_load_rejects_files_that_are_not_arrow(tmp_path: Path, length: int | None) -> None:
    file = tmp_path / "scores.arrow"
    random_scores(6, 4).save(file)
    file.write_bytes(b"garbage" * 40 if length is None else file.read_bytes()[:length])
    with pytest.raises(InputError, match=r"scores\.arrow: is not a valid scores file"):
        Scores.load(file)


def test_load_rejects_missing_files(tmp_path: Path) -> None:
    for missing in (tmp_path / "none.arrow", tmp_path):
        with pytest.raises(InputError, match=rf"{missing.name}: is not a valid scores file"):
            Scores.load(missing)


@pytest.mark.parametrize("part", ["clip_id", "label", "scores", "split", "digest of the data set", "digest"])
def test_load_rejects_changed_scores(tmp_path: Path, part: str) -> None:
    """One flipped bit would be another accuracy, or scores of other clips."""
    scores = dataclasses.replace(random_scores(6, 4), split="test", digest="5" * 64)
    scores.save(tmp_path / "scores.arrow")
    content = (tmp_path / "scores.arrow").read_bytes()
    batch = ipc.open_file(str(tmp_path / "scores.arrow")).get_batch(0)
    values = {
        "clip_id": b"clip 3",
        "label": scores.labels.tobytes(),
        "scores": scores.scores.tobytes(),
        "split": b"test",
        "digest of the data set": b"5" * 64,
        "digest": batch.schema.metadata[b"sha256"],
    }[part]
    assert values in content
    changed = bytearray(values)
    changed[0 if part == "scores" else -1] ^= 1
    (tmp_path / "scores.arrow").write_bytes(content.replace(values, changed))
    with pytest.raises(InputError, match=r"scores\.arrow: is not a valid scores file \((it was modified|a label)"):
        Scores.load(tmp_path / "scores.arrow")


@pytest.mark.parametrize("metadata", [{"split": "test", "digest": "5" * 64}, {}])
def test_scores_of_earlier_versions_are_read(tmp_path: Path, metadata: dict[str, str]) -> None:
    scores = random_scores(6, 4)
    scores.save(tmp_path / "scores.arrow")
    batch = ipc.open_file(str(tmp_path / "scores.arrow")).get_batch(0).replace_schema_metadata(metadata)
    with ipc.new_file(str(tmp_path / "scores.arrow"), batch.schema) as writer:
        writer.write_batch(batch)
    loaded = Scores.load(tmp_path / "scores.arrow")
    assert loaded.scores.tobytes() == scores.scores.tobytes()
    assert (loaded.split, loaded.digest) == (metadata.get("split", ""), metadata.get("digest", ""))


def fixed_size_lists(values: list[Any], width: int, dtype: pa.DataType | None = None) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values, dtype), width)


FLOATS = fixed_size_lists([1, 2, 3, 4], 2, pa.float32())
INVALID_COLUMNS: dict[str, dict[str, Any]] = {
    "no scores": {"clip_id": ["a", "b"], "label": [0, 1]},
    "no labels": {"clip_id": ["a", "b"], "scores": FLOATS},
    "no clips": {"label": [0, 1], "scores": FLOATS},
    "scores are numbers": {"clip_id": ["a", "b"], "label": [0, 1], "scores": [0.5, 0.5]},
    "scores are lists": {"clip_id": ["a", "b"], "label": [0, 1], "scores": [[0.5], [0.5, 1.0]]},
    "scores are strings": {"clip_id": ["a", "b"], "label": [0, 1], "scores": fixed_size_lists(["1", "2", "3", "4"], 2)},
    "labels are strings": {"clip_id": ["a", "b"], "label": ["0", "1"], "scores": FLOATS},
    "labels are floats": {"clip_id": ["a", "b"], "label": [0.5, 1.0], "scores": FLOATS},
    "clips are numbers": {"clip_id": [1, 2], "label": [0, 1], "scores": FLOATS},
    "a label is missing": {"clip_id": ["a", "b"], "label": [0, None], "scores": FLOATS},
    "a score is missing": {
        "clip_id": ["a", "b"], "label": [0, 1], "scores": pa.array([[1, 2], None], pa.list_(pa.float32(), 2)),
    },
    "a label is too large": {"clip_id": ["a", "b"], "label": [0, 2], "scores": FLOATS},
    "a label is negative": {"clip_id": ["a", "b"], "label": [0, -1], "scores": FLOATS},
}  # fmt: skip


@pytest.mark.parametrize("case", INVALID_COLUMNS)
def test_load_rejects_invalid_columns(tmp_path: Path, case: str) -> None:
    table = pa.table(INVALID_COLUMNS[case])
    with ipc.new_file(str(tmp_path / "scores.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InputError, match=r"scores\.arrow: is not a valid scores file"):
        Scores.load(tmp_path / "scores.arrow")
