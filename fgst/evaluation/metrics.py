"""Scores of clips, and the metrics computed from them. All accuracies are percentages (0 to 100)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from fgst.errors import InputError


@dataclass(frozen=True)
class Scores:
    """A network's scores of some clips. They are identified by clip id, so their order does not matter.

    Attributes:
        clip_ids: ``(n,)`` clip ids.
        labels: ``(n,)`` true classes, int64.
        scores: ``(n, classes)`` before the softmax, float32.
        split: "train", "val" or "test"; empty if unknown.
        digest: digest of the data set that the clips belong to; empty if unknown.
    """

    clip_ids: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    split: str = ""
    digest: str = ""

    @property
    def num_clips(self) -> int:
        """The number of clips, ``n``."""
        return len(self.labels)

    @property
    def predictions(self) -> np.ndarray:
        """``(n,)`` classes with the highest score; ties are resolved in favour of the lower class index."""
        return self.scores.argmax(axis=1)

    def top(self, k: int) -> float:
        """Top-k accuracy in %. Ties are resolved in favour of the lower class index.

        NaN counts as higher than the true class's score, so a diverged network is never correct.
        """
        own = np.take_along_axis(self.scores, self.labels[:, None], axis=1)
        better = (~(self.scores <= own)).sum(axis=1)
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
        values = pa.array(np.ascontiguousarray(self.scores, np.float32).reshape(-1))
        table = pa.table(
            {
                "clip_id": pa.array([str(clip) for clip in self.clip_ids], pa.string()),
                "label": pa.array(self.labels.astype(np.int64)),
                "scores": pa.FixedSizeListArray.from_arrays(values, width),
            }
        )
        table = table.replace_schema_metadata({"split": self.split, "digest": self.digest})
        with ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scores:
        """Read a file written by :meth:`save`.

        Raises:
            InputError: if the file is missing or invalid.
        """
        try:
            table = ipc.open_file(pa.BufferReader(Path(path).read_bytes())).read_all().combine_chunks()
            scores = table.column("scores").combine_chunks()
            width = scores.type.list_size
            types = {"clip_id": pa.string(), "label": pa.int64(), "scores": pa.list_(pa.float32(), width)}
            for name, expected in types.items():
                if table.column(name).type != expected or table.column(name).null_count:
                    raise ValueError(f"column {name} is not of type {expected}, or contains nulls")
            labels = table.column("label").to_numpy()
            if labels.size and not 0 <= labels.min() <= labels.max() < width:
                raise ValueError(f"a label is outside 0 to {width - 1}")
            metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
            return cls(
                split=metadata.get("split", ""),
                digest=metadata.get("digest", ""),
                clip_ids=np.array(table.column("clip_id").to_pylist(), dtype=object),
                labels=labels,
                scores=scores.flatten().to_numpy(zero_copy_only=False).reshape(-1, width),
            )
        except (OSError, KeyError, AttributeError, ValueError, pa.ArrowException) as error:
            raise InputError(f"{path}: is not a valid scores file ({error})") from None
