"""What leaves a checkout for a cluster: neither data, nor results, nor what each machine makes for itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.support.cluster.config_checks import FILES, ROOT, read

MOST = 5 * 1000 * 1000
FOLDERS = ("fgst", "data_prep", "sweeps", "cluster", "mlflow", "docs", "tests", "benchmarks")
# What lies in a checkout after some work in it; each may be gigabytes.
PLANTED = (
    "datasets/ntu-60/clips-00000.arrow", "ray_results/01/focal/model.safetensors",
    "mlruns/1/artifacts/model.safetensors", "mlflow.db", "mlflow.db-wal", "checkpoints/0/state.pt",
    ".venv/lib/python3.11/site-packages/torch/libtorch.so", ".git/objects/pack/pack-1.pack", "server/postgres/base/1",
    "server/password", ".env", "build/lib/big.bin", "fgst/__pycache__/config.cpython-311.pyc",
    "sweeps/__pycache__/focal_k.cpython-311.pyc", ".mypy_cache/3.11/c.db", ".pytest_cache/v/cache",
    "fgst.egg-info/SOURCES.txt", ".hypothesis/examples/1",
)  # fmt: skip
NEEDED = ("fgst/sweep/engine.py", "sweeps/focal_k.py", "data_prep/demo.py", "pyproject.toml", "constraints.txt")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work") / "fgst"
    folder.mkdir()
    for entry in ROOT.iterdir():
        if entry.name in FOLDERS:
            shutil.copytree(entry, folder / entry.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif entry.is_file() and entry.name not in PLANTED:
            shutil.copy(entry, folder)
    for name in PLANTED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.urandom(MOST // len(PLANTED) + 1))  # all of them: more than may be
    return folder


def test_a_jobs_package_is_small(checkout: Path, tmp_path: Path) -> None:
    """The package as `ray job submit --working-dir .` makes it."""
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "package.zip"
    create_package(str(checkout), package, include_gitignore=True)
    with zipfile.ZipFile(package) as archive:
        names = set(archive.namelist())
    assert not names & set(PLANTED)
    assert set(NEEDED) <= names
    assert package.stat().st_size < MOST


def test_a_package_without_the_lists_would_not_be(checkout: Path, tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    bare = tmp_path / "bare"
    shutil.copytree(checkout, bare)
    for name in (".rayignore", ".gitignore"):
        (bare / name).unlink()
    create_package(str(bare), tmp_path / "package.zip", include_gitignore=True)
    assert (tmp_path / "package.zip").stat().st_size > MOST


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
@pytest.mark.parametrize("whole", [False, True], ids=["as mounted", "whole checkout"])
def test_what_rsync_takes_to_a_node(path: Path, whole: bool, checkout: Path, tmp_path: Path) -> None:
    """The file's mounts with its lists; and the lists alone, should somebody mount the whole checkout."""
    from ray.autoscaler._private.command_runner import SSHCommandRunner

    if shutil.which("rsync") is None:
        pytest.skip("install rsync: apt-get install rsync")
    config = read(path)
    options = {name: config.get(name) for name in ("rsync_exclude", "rsync_filter")}
    lists = SSHCommandRunner._create_rsync_filter_args(None, options)
    node = tmp_path / "node"
    mounts = {"~/fgst": "."} if whole else config.get("file_mounts", {})
    for remote, local in mounts.items():
        source = checkout / local
        if local.startswith(("~", "/")) or not source.exists():
            continue  # the user's own: a token, credentials
        target = node / remote.replace("~/fgst", "").strip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        ends = ("/", "/") if source.is_dir() else ("", "")  # as Ray writes them
        subprocess.run(["rsync", "-az", *lists, f"{source}{ends[0]}", f"{target}{ends[1]}"], check=True)
    there = [file.relative_to(node).as_posix() for file in node.rglob("*") if file.is_file()]
    assert not [name for name in there if name.endswith(PLANTED)]
    assert {Path(name).name for name in NEEDED} <= {Path(name).name for name in there}
    assert sum((node / name).stat().st_size for name in there) < MOST
