"""The documentation: Python blocks run, commands, files and settings exist, and generated pages are up to date."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fgst.cli.options import read_overrides
from fgst.config import PRESETS, TrialConfig
from fgst.data.dataset import ArrowDataset
from fgst.data.skeletons import NTU_25, SKELETONS
from fgst.errors import InputError
from fgst.sweep import SweepDefinition
from fgst.sweep.definition import grid_points
from tests.support import small

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "sweeps" / "README.md", *sorted(ROOT.glob("docs/*.md"))]


def page(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def section(path: str, heading: str) -> str:
    """Return the text below a heading, up to the next heading of the same level."""
    level = heading.split()[0]
    return re.split(rf"^{level} ", page(path).split(f"\n{heading}\n", 1)[1], flags=re.MULTILINE)[0]


def python_blocks(text: str) -> list[str]:
    """Return the content of all Python code blocks."""
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_python_blocks_compile(path: Path) -> None:
    for block in python_blocks(path.read_text(encoding="utf-8")):
        compile(block, str(path), "exec")


def test_skeletons_are_those_of_the_code() -> None:
    rows = re.findall(
        r"^\| \[`(.+?)`\]\(#(.+?)\) \| (\d+) \| .* \| `(.+)` \| (.+) \|$", page("docs/skeletons.md"), re.MULTILINE
    )
    assert rows == [
        (
            name,
            name,
            str(len(skeleton.joints)),
            skeleton.joints[skeleton.centre],
            ", ".join(map(str, skeleton.known_parts)),
        )
        for name, skeleton in SKELETONS.items()
    ]
    for name in SKELETONS:
        assert f"\n## {name}\n" in page("docs/skeletons.md")
        assert f"(pictures/skeleton-{name}.png)" in section("docs/skeletons.md", f"## {name}")
        assert (ROOT / "docs" / "pictures" / f"skeleton-{name}.png").is_file()


@pytest.mark.parametrize("path", ["README.md", "docs/model.md"])
def test_fit_example_trains(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heading = "## From Python" if path == "README.md" else "## In Python"
    (block,) = python_blocks(section(path, heading))
    monkeypatch.chdir(tmp_path)
    dataset = small.write_small(tmp_path / "data")
    settings = {**small.small_config(dataset).flat(), "data.dataset": "datasets/nw-ucla", "train.epochs": 1}
    monkeypatch.setitem(PRESETS, "tiny", TrialConfig.from_flat(settings))
    (tmp_path / "datasets").mkdir()
    (tmp_path / "data").rename(tmp_path / "datasets" / "nw-ucla")
    joints = dataset.skeleton.num_joints
    exec(block.replace('"model.focal_joints": 12', f'"model.focal_joints": {min(12, joints)}'), {})


def test_skeleton_and_attention_map_examples() -> None:
    names: dict[str, Any] = {}
    for heading in ("## Your own skeleton", "## Attention maps"):
        (block,) = python_blocks(section("docs/model.md", heading))
        exec(block, names)
    assert names["model"](torch.randn(2, 3, 64, 11, 3)).shape == (2, 7)
    assert names["maps"].focal_joints.shape == (2, 1, 16, 5)


def test_ablation_table_contains_valid_settings() -> None:
    rows = re.findall(r"^\| Table.*\| (.*) \|$", section("docs/model.md", "## The paper's variants"), re.MULTILINE)
    assert len(rows) == 6
    for cell in rows:
        for settings in re.findall(r"`([^`]*)`", cell):
            TrialConfig().with_values(read_overrides(settings.split()))


@pytest.mark.parametrize(
    ("path", "heading", "field", "values"),
    [
        ("docs/sweeps.md", "## Write a sweep", "model.kernel_size", [3, 5, 7, 9]),
        ("docs/architecture.md", "## Add a sweep", "model.dropout", [0.0, 0.1, 0.2, 0.4]),
    ],
)
def test_sweep_examples_define_trials(path: str, heading: str, field: str, values: list[Any]) -> None:
    (block,) = python_blocks(section(path, heading))
    names: dict[str, Any] = {"__name__": "example"}
    exec(block, names)
    (definition,) = (value for value in names.values() if isinstance(value, SweepDefinition))
    base = PRESETS["paper"]
    points = grid_points(definition.parameters(NTU_25, base))
    configs = [base.with_values(definition.settings(point, base)) for point in points]
    assert [config.flat()[field] for config in configs] == values


def test_reader_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The script of docs/data.md converts files, and names the ones that are not valid."""
    (script,) = python_blocks(section("docs/data.md", "## Other formats"))
    assert len(script.splitlines()) <= 50
    source = tmp_path / "recordings"
    source.mkdir()
    joints = np.random.default_rng(0).normal(size=(9, 60)).astype(np.float32)
    for subject in range(1, 6):
        for name in ("wave", "walk"):
            np.savetxt(source / f"{name}_s{subject:02d}_001.xyz", joints)
    monkeypatch.setattr(sys, "argv", ["xyz", str(source), str(tmp_path / "out")])
    example = load("convert_xyz", script, tmp_path, monkeypatch)
    exec(compile(script, "convert_xyz.py", "exec"), {"__name__": "__main__"})
    assert "10 clips" in capsys.readouterr().out
    dataset = ArrowDataset(tmp_path / "out")
    assert dataset.classes == ("walk", "wave")
    splits = dataset.splits(validation=0)
    assert (len(splits.train), len(splits.test)) == (6, 4)
    centre = dataset.skeleton.centre
    expected = joints.reshape(9, 20, 3) - joints.reshape(9, 20, 3)[0, centre]
    np.testing.assert_allclose(dataset.clip(0)[0], expected, atol=1e-6)

    (source / "walk_s01_002.xyz").write_text("1 2\n")
    with pytest.raises(InputError, match=r"walk_s01_002.*2 numbers per line instead of 60"):
        example.main(source, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def load(name: str, source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import the source of an example as a module of the package."""
    path = folder / f"{name}.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "tools" / "generate_docs.py"), "--check"]
    environment = os.environ | {"COLUMNS": "40", "FGST_STORAGE": "elsewhere"}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_linked_files_exist(path: Path) -> None:
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        target = link.partition("#")[0]
        if target and "://" not in target:
            assert (path.parent / target).exists(), link


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_documented_scripts_and_modules_exist(path: Path) -> None:
    """This excludes the files that readers create in examples: dropout and xyz."""
    text = path.read_text(encoding="utf-8")
    scripts = set(re.findall(r"\bpython (sweeps/\w+\.py)", text)) - {"sweeps/NAME.py", "sweeps/dropout.py"}
    modules = set(re.findall(r"\bpython -m ((?:fgst|data_prep)(?:\.\w+)+)", text)) - {"data_prep.xyz"}
    for script in scripts:
        assert (ROOT / script).is_file(), script
    for module in modules:
        base = ROOT.joinpath(*module.split("."))
        assert base.with_suffix(".py").is_file() or (base / "__main__.py").is_file(), module
