"""``cluster.local.yaml`` as Ray reads it, and its setup script, which runs on this machine in a temporary home."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.cluster import hosts

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "cluster.local.yaml").read_text())
    return loaded


def test_file_is_valid(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["max_workers"] == len(config["metadata"]["workers"])
    assert prepared["available_node_types"]["local.cluster.node"]["min_workers"] == prepared["max_workers"]
    assert prepared["head_setup_commands"][-1] == prepared["worker_setup_commands"][-1]


def test_only_code_is_copied(config: dict[str, Any]) -> None:
    mounts = config["file_mounts"]
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    copied = {local for local in mounts.values() if not local.startswith("~")}
    assert {package.split(".")[0] for package in packages} <= copied
    assert {"sweeps", "cluster", "pyproject.toml", "constraints.txt"} <= copied
    assert all((ROOT / local).exists() for local in copied)
    assert not copied & {".", ".git", ".venv", "datasets", "ray_results", "mlruns", "server"}


def test_ray_requires_token(config: dict[str, Any]) -> None:
    head = config["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in head
    assert head.startswith(
        "RAY_enable_autoscaler_v2=0 ray start"
    )  # version 2 starts no workers with the provider "local"
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "export RAY_AUTH_MODE=token" in (ROOT / "cluster" / "local.sh").read_text()


class Machine:
    """A home folder with the files that Ray copies there."""

    def __init__(self, folder: Path) -> None:
        self.home, self.shared = folder / "home", folder / "shared"
        self.shared.mkdir()
        for name in (".ray/auth_token", ".mlflow/credentials"):
            (self.home / name).parent.mkdir(parents=True)
            (self.home / name).write_text("secret\n")
        (self.home / ".bashrc").write_text("alias l=ls\n")
        (self.home / "fgst").symlink_to(ROOT)
        self.settings = {"SHARED": self.shared, "HEAD_CORES": "all", "WORKER_CORES": "all", "VENV": sys.prefix}

    def install(self, head: str | None = None, **settings: Any) -> subprocess.CompletedProcess[str]:
        """Run the setup script as on the head; with the address of a head, as on one of its workers."""
        lines = [f"FGST_{name}={value}\n" for name, value in (self.settings | settings).items()]
        (self.home / ".fgst_settings").write_text("".join(lines))
        environment = {"HOME": str(self.home), "PATH": os.environ["PATH"], "SSH_CONNECTION": "10.0.0.1 999 10.0.0.2 22"}
        return subprocess.run(
            ["bash", ROOT / "cluster" / "local.sh", "install"],
            env=environment | ({"RAY_HEAD_IP": head} if head else {}),
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    def environment(self, shell: str) -> dict[str, str]:
        """Return the environment of a command that a shell runs; ``shell`` is its command line."""
        result = subprocess.run(
            [*shell.split(), 'source ~/.bashrc; env'], env={"HOME": str(self.home), "PATH": "/usr/bin:/bin"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return dict(line.split("=", 1) for line in result.stdout.splitlines() if "=" in line)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_install_configures_machine_offline(machine: Machine) -> None:
    pytest.importorskip("aiohttp_cors", reason="install the extra: pip install -e '.[cluster]'")
    for _ in range(2):
        result = machine.install(HEAD_CORES=3)
        assert (result.returncode, result.stdout) == (0, ""), result.stderr
    assert (machine.home / ".bashrc").read_text().count("fgst_env") == 1
    assert (machine.home / ".ray/auth_token").stat().st_mode & 0o077 == 0
    assert (machine.home / ".mlflow/credentials").stat().st_mode & 0o077 == 0
    variables = machine.environment("bash --login -c -i")  # the shell in which Ray runs commands
    assert variables["RAY_AUTH_MODE"] == "token"
    assert variables["PATH"].startswith(f"{sys.prefix}/bin:")
    assert variables["MLFLOW_TRACKING_URI"] == "http://10.0.0.2:5000"
    assert "--num-cpus=3" in variables["FGST_RAY"]
    assert "--node-ip-address=10.0.0.2" in variables["FGST_RAY"]
    result = machine.install(head="10.0.0.7")
    assert result.returncode == 2
    (machine.shared / ".fgst-head").write_text("10.0.0.7\n")
    assert machine.install(head="10.0.0.7").returncode == 0
    variables = machine.environment("bash --login -c -i")
    assert variables["MLFLOW_TRACKING_URI"] == "http://10.0.0.7:5000"
    assert "--num-cpus" not in variables["FGST_RAY"]


def test_invalid_settings_are_reported_in_one_line(machine: Machine) -> None:
    result = machine.install(SHARED="/CHANGE/ME")
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "set shared, at its top" in result.stderr
    result = machine.install(SHARED=machine.shared / "none")
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert f"{machine.shared}/none: does not exist" in result.stderr
    result = machine.install(head="10.0.0.7")  # the marker file that the head writes is missing
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "is not the folder that the head shares" in result.stderr
    result = machine.install(HEAD_CORES="many")
    assert result.returncode == 2
    assert "cores must be all, none or a number, not 'many'" in result.stderr


def test_missing_programs_are_reported_with_package_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(hosts.shutil, "which", lambda name, path: None if name in ("sshd", "rsync") else f"/bin/{name}")
    assert hosts.missing() == "hosts in namespaces need: apt-get install openssh-server rsync"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert hosts.missing() == "hosts in namespaces need Linux and root"
