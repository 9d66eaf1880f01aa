"""Damaged raw clips, tables and JSON files: each is either read correctly or refused in one line.

The quick tests read some hundred damaged versions of the files, the slow ones 10,000, both with fixed seeds.
"""

from __future__ import annotations

import functools
import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgst.config import PRESETS
from fgst.data.formats import FORMATS, read_clip
from fgst.data.formats.custom import read_skeleton
from fgst.data.label_table import read_label_table
from fgst.data.layout import parse_description
from fgst.data.normalization import Normalization
from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import NTU_25, NW_UCLA_20, OPENPOSE_18, SHREC_22
from fgst.data.sources import MAX_FILE_BYTES, ClipError, open_source
from fgst.errors import InputError
from fgst.evaluation.ensemble import EnsembleCard
from fgst.model.card import ModelCard
from fgst.parsing import read_table
from fgst.sweep.definition import Parameter, Trial
from fgst.sweep.simulation.curves import read_curves
from fgst.sweep.spec import EarlyStopping, SweepSpec
from tests.data.nw_ucla_files import NAME, clip_json
from tests.support.joint_csv_files import KINECT_V2, blocks, long, wide
from tests.support.mutation import read_mutations
from tests.support.ntu_corpus import one, text
from tests.support.recordings import body, kinect_text, kinetics_clip
from tests.support.small import SKELETON


def checked(clip: np.ndarray, joints: int) -> None:
    """Assert what is true of every clip."""
    assert clip.dtype == np.float32
    assert clip.ndim == 4
    assert clip.shape[2:] == (joints, 3)
    assert clip.size
    assert np.isfinite(clip).all()


def read_nw_ucla(content: bytes) -> None:
    checked(read_clip(content, "nw-ucla", NW_UCLA_20), 20)


def read_ntu(content: bytes) -> None:
    checked(read_clip(content, "ntu", NTU_25), 25)


def read_npy(content: bytes) -> None:
    checked(read_clip(content, "array", SKELETON), 6)


def read_format(name: str, skeleton: Skeleton, content: bytes) -> None:
    """Read a clip whose format determines its normalization, or as metres."""
    normalization = FORMATS[name].normalization or Normalization()
    checked(read_clip(content, name, skeleton, normalization), skeleton.num_joints)


def read_npz(content: bytes) -> None:
    """Read all clips of an archive; a damaged member is refused alone."""
    with in_file(content, "clips.npz") as path:
        refused = 0
        with open_source(path, suffix=".npy", max_bytes=MAX_FILE_BYTES, hint="give an .npz") as source:
            for file in source.files:
                try:
                    checked(read_clip(file.read(), "array", SKELETON), 6)
                except (ClipError, InputError):
                    refused += 1
        if refused == len(source.files):
            raise InputError("no clip can be used")


class in_file:  # noqa: N801 (used like a function)
    """Write content to a temporary file."""

    def __init__(self, content: bytes, name: str) -> None:
        self._content, self._name = content, name

    def __enter__(self) -> Path:
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name, self._name)
        path.write_bytes(self._content)
        return path

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


def read_file(read: Callable[[Path], Any], name: str, content: bytes) -> Any:
    with in_file(content, name) as path:
        return read(path)


def read_skeleton_file(content: bytes) -> None:
    check_skeleton(read_file(read_skeleton, "skeleton.json", content))


def check_skeleton(skeleton: Skeleton) -> None:
    for joint in range(skeleton.num_joints):  # the bones end at a root
        for _ in range(skeleton.num_joints):
            joint = skeleton.parents[joint]
        assert skeleton.parents[joint] == joint


def read_labels_file(content: bytes) -> None:
    table = read_file(read_label_table, "labels.csv", content)
    for clip_id, row in table.rows.items():
        assert clip_id == row.clip_id
        assert table.classes[row.label].isprintable()


def read_description(content: bytes) -> None:
    description = parse_description(content, "folder")
    check_skeleton(description.skeleton)
    json.dumps(description.source, allow_nan=False)


def read_card(content: bytes) -> None:
    card = read_file(ModelCard.read, "config.json", content)
    assert card.config.data.frames <= 10_000
    json.dumps(card.config.flat(), allow_nan=False)


def read_ensemble(content: bytes) -> None:
    card = read_file(EnsembleCard.read, "ensemble.json", content)
    assert 0 < sum(card.weights.values()) <= len(card.members)


def read_sweep(content: bytes) -> None:
    spec = SweepSpec.from_json(content)
    assert SweepSpec.from_json(spec.to_json()) == spec


def read_curves_file(content: bytes) -> None:
    for curve in read_file(read_curves, "curves", content):
        assert len(curve.val) == len(curve.minutes) > 0
        curve.to_json()


def read_csv(content: bytes) -> None:
    try:
        columns, rows = read_table(content)
        for _, row in rows:
            assert list(row) == columns
    except ValueError as error:
        raise InputError(str(error)) from None


def npy(joints: np.ndarray) -> bytes:
    return FORMATS["array"].encode(joints, SKELETON)


def npz() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "abc":
            archive.writestr(f"{name}.npy", npy(np.ones((4, 6, 3))))
    return file.getvalue()


def description() -> bytes:
    content = {
        "format": 1, "name": "small", "recipe": "ntu", "num_clips": 36, "classes": ["a", "b"],
        "benchmarks": [{"name": "x-sub", "column": "subject", "train": [1, 2], "test": None}],
        "files": [{"name": "clips-00000.arrow", "bytes": 4000, "sha256": "0" * 64}],
        "source": {"preparation": "array", "files": 3}, "skeleton": SKELETON.to_dict(),
    }  # fmt: skip
    return json.dumps(content).encode()


def card() -> bytes:
    values = PRESETS["tiny"].flat() | {"model.focal_joints": 4, "model.parts": 3, "data.recipe": "ntu"}
    content = {
        "config": values, "skeleton": SKELETON.to_dict(), "classes": ["a", "b"], "max_persons": 2,
        "dataset": {"name": "small", "digest": "0" * 64}, "preparation": "array",
    }  # fmt: skip
    return json.dumps(content).encode()


def sweep() -> bytes:
    base = PRESETS["tiny"]
    spec = SweepSpec(
        name="focal_k", title="How many?", search="optuna", seeds=2, limit=20, objectives=("val_top1", "flops"),
        parameters=(Parameter("K", (5, 15)), Parameter("lr", low=0.01, high=1, log=True, condition=("K", (5,)))),
        early_stop=EarlyStopping(3, 3), initial_points=((("K", 15), ("lr", 0.1)),), base=base,
        trials=(Trial("K=5", base, "0" * 32, (("K", 5),)),), published=((5, 88.0), ((5, 1), 89.5)), source="Table 2",
        baseline=5, dataset_name="small", dataset_digest="0" * 64,
    )  # fmt: skip
    return json.dumps({**json.loads(spec.to_json()), "early_stop": asdict(EarlyStopping(3, 3))}).encode()


CURVE = {
    "params": {"K": 15, "order": "joint"},
    "seed": 0,
    "val/top1": [41.2, 50, 60],
    "minutes": [1.5, 2, 3],
    "test/top1": 84.5,
}
CSV_CURVES = b"K,seed,val/top1@1,minutes@1,val/top1@2,minutes@2,test/top1\n15,0,41.2,1,50,2,55\n5,1,40,1,,,\n"
LABELS = b"clip_id,label,subject,camera\n" + b"".join(b"clip%d,wave %d,%d,1\n" % (i, i % 3, i) for i in range(20))
SKELETON_FILE = json.dumps(
    {
        "name": "hand-5",
        "joints": ["wrist", "thumb", "index", "middle", "ring"],
        "bones": {"thumb": "wrist", "index": "wrist", "middle": "index", "ring": "middle"},
        "centre": "wrist",
        "partitions": [[["wrist"], ["thumb"], ["index", "middle", "ring"]]],
    }
).encode()
ENSEMBLE = json.dumps(
    {"members": [{"modality": m, "run_id": "0" * 32, "weight": 0.5} for m in ("joint", "bone")], "sharpness": 1.5}
).encode()

NTU_FILE = text(14, one(np.random.default_rng(0), 14))
READERS: dict[str, Callable[[bytes], None]] = {
    "NW-UCLA": read_nw_ucla,
    "NTU": read_ntu,
    "npy": read_npy,
    "npz": read_npz,
    "kinect-v2": functools.partial(read_format, "kinect-v2", NTU_25),
    "openpose": functools.partial(read_format, "openpose", OPENPOSE_18),
    "kinetics": functools.partial(read_format, "kinetics", OPENPOSE_18),
    "shrec": functools.partial(read_format, "shrec", SHREC_22),
    "joint-csv": functools.partial(read_format, "joint-csv", NTU_25),
    "skeleton.json": read_skeleton_file,
    "labels.csv": read_labels_file,
    "dataset.json": read_description,
    "config.json": read_card,
    "ensemble.json": read_ensemble,
    "sweep.json": read_sweep,
    "curves": read_curves_file,
    "table": read_csv,
}
# Undamaged files, by reader and kind.
SAMPLES = {
    "NW-UCLA": clip_json(NAME),
    "NTU": NTU_FILE,
    "NTU of unusual layout": NTU_FILE.replace(b"\n", b"\r\n"),
    "npy": npy(np.ones((4, 6, 3), np.float32)),
    "npy of two persons": npy(np.ones((2, 4, 6, 3), np.int16)),
    "npz": npz(),
    "kinect-v2": kinect_text(body(NTU_25, 14, 0, persons=2), fields=4, body_line=lambda m, t: None),
    "kinect-v2 without counts": kinect_text(body(NTU_25, 8, 0), fields=7, count=False),
    "openpose": FORMATS["openpose"].encode(body(OPENPOSE_18, 8, 0)[0], OPENPOSE_18),
    "kinetics": kinetics_clip(body(OPENPOSE_18, 8, 0, persons=2)[..., :2] / 4, "wave", 3).encode(),
    "shrec": FORMATS["shrec"].encode(body(SHREC_22, 8, 0)[0], SHREC_22),
    "joint-csv in blocks": blocks(body(NTU_25, 8, 0), KINECT_V2, between=str),
    "joint-csv long": long(body(NTU_25, 8, 0, persons=2), KINECT_V2, header="frame,body,joint,x,y,z,v", person=True),
    "joint-csv wide": wide(body(NTU_25, 8, 0), lambda i, axis: f"{KINECT_V2[i]}_{axis}"),
    "skeleton.json": SKELETON_FILE,
    "labels.csv": LABELS,
    "dataset.json": description(),
    "config.json": card(),
    "ensemble.json": ENSEMBLE,
    "sweep.json": sweep(),
    "curves": b"\n".join([json.dumps(CURVE).encode()] * 3),
    "curves in CSV": CSV_CURVES,
    "table": LABELS,
    "table of curves": CSV_CURVES,
}


def read(name: str, content: bytes) -> None:
    """Read a damaged version of a sample."""
    READERS[name.partition(" ")[0]](content)


def test_damaged_files_are_read_or_refused() -> None:
    read_mutations(read, SAMPLES, 400, seed=1, named=True).check(400)


@pytest.mark.slow
def test_thousands_of_damaged_files_are_read_or_refused() -> None:
    read_mutations(read, SAMPLES, 10_000, seed=2, named=True).check(10_000)
