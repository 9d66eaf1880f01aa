"""Copying a checkout to a cluster: the copy contains code, and no data, results or machine-specific files."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster.config_checks import CLUSTER_FILES, ROOT, read

MAX_BYTES = 5 * 1000 * 1000
FOLDERS = ("fgst", "data_prep", "sweeps", "cluster", "mlflow", "docs", "tests", "benchmarks")
# Files of a checkout in use, which may be large.
UNWANTED = (
    "datasets/ntu-60/clips-00000.arrow", "ray_results/01/focal/model.safetensors",
    "mlruns/1/artifacts/model.safetensors", "mlflow.db", "mlflow.db-wal", "checkpoints/0/state.pt",
    ".venv/lib/python3.11/site-packages/torch/libtorch.so", ".git/objects/pack/pack-1.pack", "server/postgres/base/1",
    "server/password", ".env", "build/lib/big.bin", "fgst/__pycache__/config.cpython-311.pyc",
    "sweeps/__pycache__/focal_k.cpython-311.pyc", ".mypy_cache/3.11/c.db", ".pytest_cache/v/cache",
    "fgst.egg-info/SOURCES.txt", ".hypothesis/examples/1",
)  # fmt: skip
NEEDED = ("fgst/sweep/backends/ray.py", "sweeps/focal_k.py", "data_prep/demo.py", "pyproject.toml", "constraints.txt")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work") / "fgst"
    folder.mkdir()
    for entry in ROOT.iterdir():
        if entry.name in FOLDERS:
            shutil.copytree(entry, folder / entry.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif entry.is_file() and entry.name not in (".git", *UNWANTED):  # in a Git worktree, .git is a file
            shutil.copy(entry, folder)
    for name in UNWANTED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.urandom(MAX_BYTES // len(UNWANTED) + 1))  # their sum exceeds the limit
    return folder


def test_job_package_contains_only_code(checkout: Path, tmp_path: Path) -> None:
    """The package is the one that ``ray job submit --working-dir .`` uploads."""
    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "package.zip"
    create_package(str(checkout), package, include_gitignore=True)
    with zipfile.ZipFile(package) as archive:
        names = set(archive.namelist())
    assert not names & set(UNWANTED)
    assert set(NEEDED) <= names
    assert package.stat().st_size < MAX_BYTES


def test_job_package_without_ignore_files_is_too_large(checkout: Path, tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    bare = tmp_path / "bare"
    shutil.copytree(checkout, bare)
    for name in (".rayignore", ".gitignore"):
        (bare / name).unlink()
    create_package(str(bare), tmp_path / "package.zip", include_gitignore=True)
    assert (tmp_path / "package.zip").stat().st_size > MAX_BYTES


class LocalRsync:
    """Runs the rsync commands of Ray's command runner with a folder of this machine as the target."""

    def check_call(self, command: list[str], **_options: Any) -> None:
        rsync, _, _, *options, target = command  # without the option --rsh and its value
        subprocess.run([rsync, *options, target.partition(":")[2]], stdout=subprocess.DEVNULL, check=True)


@pytest.mark.parametrize("path", CLUSTER_FILES, ids=lambda path: path.name)
@pytest.mark.parametrize("whole", [False, True], ids=["file mounts", "whole checkout"])
def test_rsync_copies_only_code(path: Path, whole: bool, checkout: Path, tmp_path: Path) -> None:
    """This holds for the mounts of the file, and for a mount of the whole checkout with the exclusions of the file."""
    from ray.autoscaler._private.command_runner import SSHCommandRunner

    if shutil.which("rsync") is None:
        pytest.skip("install rsync: apt-get install rsync")
    config = read(path)
    options = {name: config.get(name) for name in ("rsync_exclude", "rsync_filter")}
    authentication = {"ssh_user": "user", "ssh_proxy_use_node_id": True}
    runner = SSHCommandRunner("", "node", None, authentication, "packages", LocalRsync(), False)
    node = tmp_path / "node"
    mounts = {"~/fgst": "."} if whole else config.get("file_mounts", {})
    for remote, local in mounts.items():
        source = checkout / local
        if local.startswith(("~", "/")) or not source.exists():
            continue  # the user's token and credentials
        target = node / remote.replace("~/fgst", "").strip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        slash = "/" if source.is_dir() else ""  # as Ray does
        runner.run_rsync_up(f"{source}{slash}", f"{target}{slash}", options)
    copied = [file.relative_to(node).as_posix() for file in node.rglob("*") if file.is_file()]
    assert not [name for name in copied if name.endswith(UNWANTED)]
    assert {Path(name).name for name in NEEDED} <= {Path(name).name for name in copied}
    assert sum((node / name).stat().st_size for name in copied) < MAX_BYTES
