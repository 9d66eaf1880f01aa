"""Damaged Arrow files, scores, checkpoints and registered models: either the right result, or one line.

Each file is damaged in two ways: as by a disk or a transfer, so that digests differ; and as by an attacker, or in files
of earlier versions, where only the structure can be checked. Nothing may crash the process, in particular no offset of
an Arrow file, and no damage may lead to other figures where there is a digest.
"""

from __future__ import annotations

import functools
import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc

from fgst.data.dataset import ArrowDataset
from fgst.data.layout import file_digest
from fgst.evaluation.metrics import Scores
from fgst.integrity import with_digest
from tests.support.mutation import read_mutations
from tests.support.process import start_python
from tests.support.small import motion_clips, save_untrained_network, small_config, write_small

# Data sets and scores: no torch


def read_arrow(folder: Path, name: str, content: bytes) -> None:
    """Read a damaged version of the file ``name`` in ``folder``; digests of ``adapted`` files match the damage."""
    file = folder / name
    original = file.with_suffix(".original").read_bytes()
    file.write_bytes(content)
    if file.parent.name == "adapted":
        description = json.loads((file.parent / "dataset.json").read_bytes())
        del description["sha256"]
        description["files"] = [{"name": file.name, "bytes": len(content), "sha256": file_digest(file)}]
        (file.parent / "dataset.json").write_text(json.dumps(with_digest(description)))
    if "scores" in name:
        check_scores(file, original, has_digest=name == "scores.arrow")
    else:
        dataset = ArrowDataset(file.parent)
        assert file.parent.name == "adapted" or content == original or file.suffix == ".json"
        persons, frames = dataset.columns["num_persons"], dataset.columns["num_frames"]
        for row in range(len(dataset)):
            assert dataset.clip(row).shape == (persons[row], frames[row], 6, 3)
        assert dataset.gather(np.arange(len(dataset))).shape == (int((persons * frames).sum()), 6, 3)
        if file.suffix == ".json" and has_digest(content):  # blanks may differ
            file.write_bytes(original)
            expected = ArrowDataset(file.parent)
            assert vars(dataset).keys() == vars(expected).keys()
            for entry in ("digest", "name", "recipe", "source", "classes", "benchmarks", "skeleton"):
                assert getattr(dataset, entry) == getattr(expected, entry)


def has_digest(content: bytes) -> bool:
    return "sha256" in json.loads(content.removeprefix(b"\xef\xbb\xbf"))


def check_scores(file: Path, original: bytes, *, has_digest: bool) -> None:
    scores = Scores.load(file)
    assert np.isfinite(scores.scores).all()
    assert (scores.top(1), scores.loss(), len(scores.clip_ids)) >= (0, 0, 0) or not scores.num_clips
    if has_digest:
        file.write_bytes(original)
        expected = Scores.load(file)
        assert scores.scores.tobytes() == expected.scores.tobytes()
        assert scores.labels.tobytes() == expected.labels.tobytes()
        assert scores.clip_ids.tolist() == expected.clip_ids.tolist()
        assert (scores.split, scores.digest) == (expected.split, expected.digest)


def write_scores(folder: Path) -> None:
    """Write scores, and the same scores as earlier versions did, without a digest."""
    rng = np.random.default_rng(0)
    ids = np.array([f"clip-{number}" for number in range(9)], dtype=object)
    labels, values = rng.integers(0, 4, 9), rng.normal(size=(9, 4)).astype(np.float32)
    Scores(ids, labels, values, "test", "0" * 64).save(folder / "scores.arrow")
    batch = ipc.open_file(str(folder / "scores.arrow")).get_batch(0)
    earlier = batch.replace_schema_metadata({"split": "test", "digest": "0" * 64})
    with ipc.new_file(str(folder / "earlier-scores.arrow"), earlier.schema) as writer:
        writer.write_table(pa.Table.from_batches([earlier]))


@pytest.mark.parametrize("count", [500, pytest.param(8000, marks=pytest.mark.slow)])
def test_damaged_arrow_files(tmp_path: Path, count: int) -> None:
    names = ("damaged/clips-00000.arrow", "damaged/dataset.json", "adapted/clips-00000.arrow")
    for name in ("damaged", "adapted"):
        write_small(tmp_path / name, motion_clips(8))
    write_scores(tmp_path)
    samples = {}
    for name in (*names, "scores.arrow", "earlier-scores.arrow"):
        samples[name] = (tmp_path / name).read_bytes()
        (tmp_path / name).with_suffix(".original").write_bytes(samples[name])
    read_mutations(functools.partial(read_arrow, tmp_path), samples, count, named=True).check(count)


FLIP_BITS = """
import sys
from pathlib import Path
from fgst.errors import InputError
from fgst.evaluation.metrics import Scores

path, start, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
content = path.read_bytes()
refused = 0
for bit in range(8 * size):
    damaged = bytearray(content)
    damaged[start + bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    try:
        Scores.load(path)
    except InputError:
        refused += 1
print(refused)
"""


@pytest.mark.parametrize("file", ["scores.arrow", "earlier-scores.arrow"])
def test_each_bit_of_offsets_of_scores(tmp_path: Path, file: str) -> None:
    """Arrow itself reads other memory, or crashes, if some of these bits are flipped."""
    write_scores(tmp_path)
    content = (tmp_path / file).read_bytes()
    offsets = ipc.open_file(str(tmp_path / file)).get_batch(0).column("clip_id").buffers()[1].to_pybytes()
    assert content.count(offsets) == 1
    process = start_python(FLIP_BITS, tmp_path / file, content.index(offsets), len(offsets))
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    # Without a digest, an offset may be changed to another one between its neighbours.
    assert 8 * len(offsets) * (1 if file == "scores.arrow" else 0.9) <= int(out) <= 8 * len(offsets)


# Checkpoints and models


def read_network(folder: Path, name: str, content: bytes) -> None:
    """Load networks, or resume a training, after one of their files was damaged."""
    import torch

    from fgst.evaluation.inference import Predictor
    from fgst.training.trainer import fit
    from tests.support.digests import adapt_digests

    torch.set_num_threads(1)
    kind = name.partition("/")[0]
    working = folder / "working"
    shutil.rmtree(working, ignore_errors=True)
    shutil.copytree(folder / kind, working)
    file = working / name.partition("/")[2]
    file.write_bytes(content)
    if kind.startswith("adapted"):
        adapt_digests(file.parent)
    damaged = content != (folder / name).read_bytes()
    if kind.endswith("training"):
        config = small_config(folder / "data", train__ema=0.9)
        with closing(fit(config, device="cpu", checkpoints=working)) as results:  # type: ignore[type-var]
            assert next(results).is_replay
        assert kind.startswith("adapted") or not damaged or file.suffix == ".json"
    else:
        predictor = Predictor.load(working)
        # Without its digest, a document is one of an earlier version, in which other damage may go unnoticed.
        if not kind.startswith("adapted") and (file.suffix != ".json" or has_digest(content)):
            assert not damaged or file.suffix == ".json"
            expected = Predictor.load(folder / kind)
            clip = next(motion_clips()).joints
            assert predictor.card == expected.card
            assert predictor.top([clip], 3) == expected.top([clip], 3)


@pytest.mark.parametrize("count", [150, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_checkpoints_and_models(tmp_path: Path, count: int) -> None:
    import torch

    from fgst.evaluation.ensemble import EnsembleCard, Member
    from tests.training.helpers import run

    torch.set_num_threads(1)
    dataset = write_small(tmp_path / "data")
    members = []
    (tmp_path / "model").mkdir()
    for modality in ("joint", "bone"):
        checkpoint = save_untrained_network(dataset, tmp_path / "network", data__modality=modality)
        (checkpoint / "state.pt").unlink()
        checkpoint.rename(tmp_path / "model" / modality)
        members.append(Member(modality, "0" * 32, 0.5))
    EnsembleCard(tuple(members), 1.5).write(tmp_path / "model" / "ensemble.json")
    shutil.copytree(tmp_path / "model" / "joint", tmp_path / "adapted-network")
    run(small_config(dataset, train__ema=0.9), tmp_path / "training", epochs=2)
    shutil.copytree(tmp_path / "training", tmp_path / "adapted-training")
    names = [
        *("model/ensemble.json", "model/bone/config.json", "model/bone/model.safetensors"),
        *(f"training/epoch-00002/{file}" for file in ("config.json", "model.safetensors", "state.pt")),
        *(f"adapted-training/epoch-00002/{file}" for file in ("model.safetensors", "state.pt")),
        "adapted-network/model.safetensors",
    ]
    samples: dict[str, Any] = {name: (tmp_path / name).read_bytes() for name in names}
    outcomes = read_mutations(functools.partial(read_network, tmp_path), samples, count, named=True, memory=2**31)
    outcomes.check(count)
