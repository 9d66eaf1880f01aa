"""Scores of clips, and the metrics computed from them. All accuracies are percentages (0 to 100)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from fgst.data.arrow import read_batch, write_batch
from fgst.errors import InputError
from fgst.integrity import DIGEST_KEY, MODIFIED

_METADATA = frozenset(("split", "digest", DIGEST_KEY))


class NotFiniteError(InputError):
    """The scores of a clip are not finite, so they predict nothing."""


@dataclass(frozen=True)
class Scores:
    """A network's scores of some clips. They are identified by clip id, so their order does not matter.

    All scores are finite: of a clip or a network for which they are not, there is no prediction.

    Attributes:
        clip_ids: ``(n,)`` clip ids.
        labels: ``(n,)`` true classes, int64.
        scores: ``(n, classes)`` before the softmax, float32.
        split: "train", "val" or "test"; empty if unknown.
        digest: digest of the data set that the clips belong to; empty if unknown.

    Raises:
        NotFiniteError: if a score is not finite.
    """

    clip_ids: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    split: str = ""
    digest: str = ""

    def __post_init__(self) -> None:
        finite = np.isfinite(self.scores).all(axis=1)
        if not finite.all():
            others = int((~finite).sum()) - 1
            raise NotFiniteError(
                f"the scores of clip {self.clip_ids[finite.argmin()]}{f' and {others} others' if others else ''} are "
                "not finite"
            )

    @property
    def num_clips(self) -> int:
        """The number of clips, ``n``."""
        return len(self.labels)

    @property
    def predictions(self) -> np.ndarray:
        """``(n,)`` classes with the highest score; ties are resolved in favour of the lower class index."""
        return self.scores.argmax(axis=1)

    def top(self, k: int) -> float:
        """Top-k accuracy in %. Ties are resolved in favour of the lower class index."""
        own = np.take_along_axis(self.scores, self.labels[:, None], axis=1)
        better = (self.scores > own).sum(axis=1)
        equal_before = ((self.scores == own) & (np.arange(self.scores.shape[1]) < self.labels[:, None])).sum(axis=1)
        return 100 * int((better + equal_before < k).sum()) / self.num_clips

    def confusion(self) -> np.ndarray:
        """Confusion matrix ``(classes, classes)``: counts by true class (rows) and predicted class (columns)."""
        classes = self.scores.shape[1]
        return np.bincount(self.labels * classes + self.predictions, minlength=classes**2).reshape(classes, classes)

    def loss(self) -> float:
        """Mean cross-entropy without label smoothing, in nats."""
        logits = self.scores.astype(np.float64)
        highest = logits.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(logits - highest).sum(axis=1)) + highest[:, 0]
        return float(np.mean(log_sum - logits[np.arange(len(logits)), self.labels]))

    def per_class(self, classes: Sequence[str]) -> list[dict[str, str | int | float | None]]:
        """Count correct predictions per class.

        Returns:
            A row per class with ``class``, ``num_clips``, ``correct`` and ``top1`` in %, ``None`` for a class without
            clips.
        """
        matrix = self.confusion()
        rows: list[dict[str, str | int | float | None]] = []
        for label, name in enumerate(classes):
            count, correct = int(matrix[label].sum()), int(matrix[label, label])
            top1 = 100.0 * correct / count if count else None
            rows.append({"class": name, "num_clips": count, "correct": correct, "top1": top1})
        return rows

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an Arrow file with columns ``clip_id``, ``label`` and ``scores``."""
        width = self.scores.shape[1]
        values = np.ascontiguousarray(self.scores, np.float32)
        columns = {
            "clip_id": pa.array([str(clip) for clip in self.clip_ids], pa.string()),
            "label": pa.array(self.labels.astype(np.int64)),
            "scores": pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width),
        }
        metadata = {"split": self.split, "digest": self.digest, DIGEST_KEY: self._content_digest()}
        write_batch(str(path), pa.record_batch(columns, metadata=metadata))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scores:
        """Read a file written by :meth:`save`.

        Raises:
            InputError: if the file is missing, damaged or invalid, or if a score is not finite.
        """
        try:
            batch = read_batch(pa.py_buffer(Path(path).read_bytes()), _schema)
            scores = batch.column("scores")
            width = scores.type.list_size
            labels = batch.column("label").to_numpy()
            if labels.size and not 0 <= labels.min() <= labels.max() < width:
                raise ValueError(f"a label is outside 0 to {width - 1}")
            metadata = {key.decode(): value.decode() for key, value in (batch.schema.metadata or {}).items()}
            if unknown := metadata.keys() - _METADATA:
                raise ValueError(f"it has an unknown entry {min(unknown)!r}")
            loaded = cls(
                split=metadata.get("split", ""),
                digest=metadata.get("digest", ""),
                clip_ids=np.array(batch.column("clip_id").to_pylist(), dtype=object),
                labels=labels,
                scores=scores.flatten().to_numpy(zero_copy_only=False).reshape(-1, width),
            )
            if DIGEST_KEY in metadata and metadata[DIGEST_KEY] != loaded._content_digest():
                raise ValueError(f"it {MODIFIED}")
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: is not a valid scores file ({error})") from None
        return loaded

    def _content_digest(self) -> str:
        """SHA-256 of all that is saved; files of earlier versions do not have it."""
        described = [self.split, self.digest, [str(clip) for clip in self.clip_ids], self.scores.shape[1]]
        content = hashlib.sha256(json.dumps(described).encode())
        content.update(self.labels.astype("<i8").tobytes())
        content.update(self.scores.astype("<f4").tobytes())
        return content.hexdigest()


def _schema(schema: pa.Schema) -> pa.Schema:
    """Return the columns of a scores file of as many classes as one with this schema has."""
    width = getattr(schema.field("scores").type, "list_size", 0) if "scores" in schema.names else 0
    if not 0 < width < 2**31:
        raise ValueError("it has no scores of a fixed number of classes")
    columns = {"clip_id": pa.string(), "label": pa.int64(), "scores": pa.list_(pa.float32(), width)}
    return pa.schema(list(columns.items()))
