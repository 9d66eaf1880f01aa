"""Recognition of the data sets that papers report results on, by content."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgst.data import public_benchmarks
from fgst.data.dataset import ArrowDataset, Clip
from fgst.data.formats import nw_ucla
from fgst.data.layout import split_list
from fgst.data.public_benchmarks import PUBLIC_BENCHMARKS, public_benchmark
from fgst.data.skeletons import NTU_25, NW_UCLA_20
from fgst.data.splits import Benchmark
from fgst.data.writer import write_dataset
from tests.support import small

SUBJECTS = range(1, 11)


def clips(joints: int = 20, camera: int = 1, numbered: bool = True) -> Iterator[Clip]:
    """Generate clips of 10 classes, 10 subjects and 3 cameras."""
    for label, subject, view in itertools.product(range(10), SUBJECTS, (1, 2, 3)):
        yield Clip(
            f"a{label}_s{subject}_v{view}",
            label,
            np.zeros((1, 2, joints, 3), np.float32) + 1,
            subject=subject if numbered else 0,
            camera=view * camera if numbered else 0,
            splits={} if numbered else {"cv": "test" if view == 3 else "train"},
        )


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that writes a data set of 300 clips, as many as NW-UCLA is now declared to have."""
    known = dataclasses.replace(PUBLIC_BENCHMARKS["NW-UCLA X-View"], num_train=200, num_test=100)
    monkeypatch.setattr(public_benchmarks, "PUBLIC_BENCHMARKS", {**PUBLIC_BENCHMARKS, "NW-UCLA X-View": known})

    def write(content: Any = None, **changes: Any) -> ArrowDataset:
        arguments: dict[str, Any] = {
            "name": "mine", "skeleton": NW_UCLA_20, "classes": nw_ucla.CLASSES, "benchmarks": nw_ucla.BENCHMARKS,
            "recipe": "nw-ucla", "source": {},
        }  # fmt: skip
        return write_dataset(tmp_path / "data", clips() if content is None else content, **arguments | changes)

    return write


def test_data_set_is_recognized_by_content_and_not_by_name(write: Any) -> None:
    dataset = write()
    assert public_benchmark(dataset, "x-view") == public_benchmark(dataset, "") == "NW-UCLA X-View"
    assert public_benchmark(dataset, "x-sub") == ""  # nothing is published for it


def test_conversion_with_lists_of_clips_is_recognized(write: Any) -> None:
    dataset = write(clips(numbered=False), benchmarks=[split_list("cv")], classes=[str(n) for n in range(10)])
    assert public_benchmark(dataset, "cv") == "NW-UCLA X-View"


@pytest.mark.parametrize(
    "changes",
    [
        {"content": list(clips())[:-4], "name": "nw-ucla"},  # a hundredth of the training clips may be missing, no more
        {"content": list(clips(joints=25)), "skeleton": NTU_25},
        {"classes": [*nw_ucla.CLASSES, "another"]},
        {"benchmarks": [Benchmark("x-view", "camera", train=(1, 3), test=(2,))]},  # as many clips, but other ones
        {"source": {"generated": True}},
    ],
    ids=["part", "skeleton", "classes", "split", "generated"],
)
def test_other_data_sets_are_not_recognized(changes: dict[str, Any], write: Any) -> None:
    assert public_benchmark(write(**changes), "x-view") == ""


def test_few_missing_clips_do_not_matter(write: Any) -> None:
    assert public_benchmark(write(list(clips())[:-2]), "x-view") == "NW-UCLA X-View"


def test_small_data_set_of_the_tests_is_none(tmp_path: Path) -> None:
    assert public_benchmark(small.write_small(tmp_path / "small"), "x-view") == ""


def test_declared_sizes_are_those_of_the_public_releases() -> None:
    sizes = {name: known.num_train + known.num_test for name, known in PUBLIC_BENCHMARKS.items()}
    assert sizes == {
        "NW-UCLA X-View": 1_484,
        "NTU-60 X-Sub": 56_578,
        "NTU-60 X-View": 56_578,
        "NTU-120 X-Sub": 113_945,
        "NTU-120 X-Set": 113_945,
    }
