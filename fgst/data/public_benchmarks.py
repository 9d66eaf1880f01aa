"""Which data sets are the public ones that papers report results on.

A published accuracy can be compared with one's own only if both are of the same clips. This module is the only place
that decides whether they are: by the content of a data set, never by its name, so that a part of NTU RGB+D, or a
generated data set in its format, is not taken for it, and a conversion from another format is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from fgst.data.dataset import ArrowDataset
from fgst.data.formats import nw_ucla
from fgst.data.formats.ntu_names import EDITIONS
from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import NTU_25, NW_UCLA_20
from fgst.data.splits import Benchmark
from fgst.errors import InputError

TOLERANCE: Final = 0.01
"""Share of the clips by which copies of a public data set differ: with and without the clips that have no skeleton."""


@dataclass(frozen=True)
class PublicBenchmark:
    """A benchmark that papers report results on.

    Attributes:
        skeleton: its joints.
        num_classes: number of its classes.
        rule: which clips are for training and for testing.
        num_train, num_test: number of their clips, as in most public code.
    """

    skeleton: Skeleton
    num_classes: int
    rule: Benchmark
    num_train: int
    num_test: int


_NTU_60, _NTU_120 = EDITIONS["60"], EDITIONS["120"]
PUBLIC_BENCHMARKS: Final[Mapping[str, PublicBenchmark]] = {
    "NW-UCLA X-View": PublicBenchmark(NW_UCLA_20, len(nw_ucla.CLASSES), nw_ucla.BENCHMARKS[0], 1_020, 464),
    "NTU-60 X-Sub": PublicBenchmark(NTU_25, _NTU_60.actions, _NTU_60.benchmarks[0], 40_091, 16_487),
    "NTU-60 X-View": PublicBenchmark(NTU_25, _NTU_60.actions, _NTU_60.benchmarks[1], 37_646, 18_932),
    "NTU-120 X-Sub": PublicBenchmark(NTU_25, _NTU_120.actions, _NTU_120.benchmarks[0], 63_026, 50_919),
    "NTU-120 X-Set": PublicBenchmark(NTU_25, _NTU_120.actions, _NTU_120.benchmarks[1], 54_468, 59_477),
}


def public_benchmark(dataset: ArrowDataset, benchmark: str) -> str:
    """Find the public benchmark that a benchmark of a data set is.

    They are the same if joints and number of classes are equal, the numbers of training and test clips differ by at
    most 1 %, and the public rule puts each clip whose subject, camera or setup is recorded on the side that it is on
    here.

    Args:
        dataset: the data set.
        benchmark: name of its benchmark, or "" for its first.

    Returns:
        A key of :data:`PUBLIC_BENCHMARKS`; empty if it is none of them.
    """
    if dataset.source.get("generated"):
        return ""
    try:
        splits = dataset.splits(benchmark, validation=0)
    except InputError:
        return ""  # a split is empty, which is reported where it is used
    return next(
        (name for name, known in PUBLIC_BENCHMARKS.items() if _is_same(known, dataset, splits.train, splits.test)), ""
    )


def _is_same(known: PublicBenchmark, dataset: ArrowDataset, train: np.ndarray, test: np.ndarray) -> bool:
    if dataset.skeleton.joints != known.skeleton.joints or dataset.num_classes != known.num_classes:
        return False
    sizes = ((len(train), known.num_train), (len(test), known.num_test))
    if any(abs(size - expected) > TOLERANCE * expected for size, expected in sizes):
        return False
    numbers, rule = dataset.columns[known.rule.column], known.rule
    recorded = [rows[numbers[rows] > 0] for rows in (train, test)]  # 0 means "not recorded"
    in_train = [np.isin(numbers[rows], rule.train) for rows in recorded]
    in_test = True if rule.test is None else np.isin(numbers[recorded[1]], rule.test).all()
    return bool(in_train[0].all() and not in_train[1].any() and in_test)
