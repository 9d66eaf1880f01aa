"""The ``fgst`` command: sub-commands, help texts, and sweeps by name."""

from __future__ import annotations

import importlib
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import fgst
from fgst.cli.main import COMMANDS, DATA_COMMANDS, dispatch, find_sweep, first_line_of_docstring, sweep_scripts
from fgst.errors import InputError

ROOT = Path(__file__).parents[2]
MODULES = {name: f"fgst.{name.replace('-', '_')}" for name in COMMANDS}
MODULES |= {f"data {name}": f"data_prep.{name.replace('-', '_')}" for name in DATA_COMMANDS}
SCRIPT = '"""What is printed?"""\n\nimport sys\n\nprint(__name__, *sys.argv)\n'


def help_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the help text of a sub-command."""
    with pytest.raises(SystemExit) as raised:
        dispatch([*arguments, "--help"])
    assert raised.value.code in (0, None)
    return capsys.readouterr().out


def test_help_lists_commands_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    dispatch(["--help"])
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in [*COMMANDS, "data", "sweep"])
    assert "\n  fgst sweep focal_k --dataset datasets/nw-ucla --preset tiny" in text
    dispatch([])
    assert capsys.readouterr().out == text


def test_help_imports_no_command() -> None:
    script = "import sys; from fgst.cli.main import dispatch; dispatch(['--help']); dispatch(['sweep'])\n"
    script += "print([name for name in sys.modules if name.startswith('fgst.cli.')])"
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    assert process.stdout.splitlines()[-1] == "['fgst.cli.command', 'fgst.cli.main']"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    dispatch(["--version"])
    assert capsys.readouterr().out == "fgst 0.1.0\n"


@pytest.mark.parametrize("name", MODULES)
def test_command_help_equals_module_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Only the name of the program differs: ``fgst train`` instead of ``python -m fgst.train``."""
    by_command = help_of(name.split(), capsys)
    module = importlib.import_module("fgst.model.__main__" if name == "model" else MODULES[name])
    with pytest.raises(SystemExit):
        module.main(["--help"])
    by_module = capsys.readouterr().out
    assert by_command.startswith(f"usage: fgst {name}")
    assert by_module.startswith(f"usage: python -m {MODULES[name]}")

    def without_usage(text: str) -> str:
        return text.partition("\n\n")[2]

    assert without_usage(by_command) == without_usage(by_module)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "fgst: unknown command 'trian'; did you mean train"),
        (["xyz"], "fgst: unknown command 'xyz'; choose from train, "),
        (["data", "nwucla"], "fgst data: unknown command 'nwucla'; did you mean nw-ucla"),
        (["sweep", "focal"], "fgst sweep: unknown sweep 'focal'; did you mean focal_k"),
        (["sweep", "missing.py"], r"fgst sweep: missing\.py does not exist; fgst sweep lists"),
        (["sweep", "--dry-run"], "fgst sweep: name the sweep first, e.g. fgst sweep focal_k --dry-run"),
        (["train", "--bad"], "see fgst train --help"),
        (["data", "demo", "--bad"], "see fgst data demo --help"),
        (["sweep", "focal_k", "--bad"], "see fgst sweep focal_k --help"),
    ],
)
def test_wrong_command_is_rejected_with_remedy(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InputError, SystemExit)) as raised:
        dispatch(arguments)
    text = str(raised.value) if isinstance(raised.value, InputError) else capsys.readouterr().err
    assert re.search(message, text)


def test_unknown_command_exits_with_code_2() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "fgst", "trian"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == "error: fgst: unknown command 'trian'; did you mean train?\n"


# Sweeps


def test_sweep_without_name_lists_scripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "own.py").write_text(SCRIPT)
    (tmp_path / "sweeps" / "_shared.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    dispatch(["sweep"])
    lines = capsys.readouterr().out.splitlines()
    assert "  own               What is printed?" in lines
    assert any(line.startswith("  focal_k  ") and "focal joints" in line for line in lines)
    assert not any("_shared" in line for line in lines)


def test_sweep_runs_script_as_main(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "focal_k.py").write_text(SCRIPT)  # takes precedence over the script of the checkout
    monkeypatch.chdir(tmp_path)
    original_argv = list(sys.argv)
    dispatch(["sweep", "focal_k", "--values", "1,2"])
    assert capsys.readouterr().out == "__main__ sweeps/focal_k.py --values 1,2\n"
    dispatch(["sweep", str(tmp_path / "sweeps" / "focal_k.py")])
    assert capsys.readouterr().out == f"__main__ {tmp_path}/sweeps/focal_k.py\n"
    assert sys.argv == original_argv


def test_checkout_sweeps_are_found_from_other_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert set(sweep_scripts()) == {path.stem for path in (ROOT / "sweeps").glob("*.py")}
    assert find_sweep("focal_k") == Path(fgst.__file__).parents[1] / "sweeps" / "focal_k.py"


@pytest.mark.parametrize(("text", "line"), [(SCRIPT, "What is printed?"), ("x = 1", ""), ("not python", "")])
def test_first_line_of_docstring(text: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(text)
    assert first_line_of_docstring(tmp_path / "script.py") == line


@pytest.mark.parametrize("module", ["fgst.training.trainer", "fgst.cli.main", "fgst.errors"])
def test_module_that_is_no_command_says_so(module: str) -> None:
    result = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"error: python -m {module}: is not a command; python -m fgst lists the commands\n"


@pytest.mark.parametrize("module", ["fgst", "fgst.train", "fgst.model", "fgst.cli.spot_watcher", "data_prep.demo"])
def test_commands_run_with_python_m(module: str) -> None:
    result = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "usage: " in result.stdout


def test_port_of_the_user_interface_is_free(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).parents[2] / "tools" / "free_port.py")]
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        taken = subprocess.run([*command, str(port)], capture_output=True, text=True, check=False)
    assert (taken.returncode, taken.stdout) == (1, "")
    assert taken.stderr == f"error: cannot listen on port {port}; choose another with PORT=…\n"
    free = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 5000 <= int(free.stdout) < 5050
