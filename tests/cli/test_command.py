"""Exit codes, error messages and output of commands, called in the test process and run in processes of their own."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fgst.cli.command import CommandParser, configure_logging, format_command, invoked_as, run_command
from fgst.errors import InputError, Interrupted
from tests.support.process import start_python

COMMAND = """
import logging, os, sys, time
from fgst.cli.command import CommandParser, run_command
from fgst.errors import InputError

def main():
    {body}

run_command(main)
"""
TABLE = """
    from rich.console import Console
    from rich.table import Table
    table = Table('K', 'top-1 %')
    for k in range({rows}):
        table.add_row(str(k), '89.5 ± 0.2')
    Console().print(table)
"""
needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


def raising(error: BaseException) -> Callable[[], None]:
    """Return a main function that prints a line and raises the error."""

    def main() -> None:
        print("a result")
        raise error

    return main


def run(body: str, stdout: int | None = None, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command with this body in a process and return its output as bytes."""
    script = COMMAND.format(body=body.strip()).encode("ascii", "backslashreplace").decode()  # for an ASCII locale
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONIOENCODING", "PYTHONUTF8", "LC_ALL")}
    return subprocess.run(
        [sys.executable, "-c", script],
        env=variables | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | environment,
        stdout=subprocess.PIPE if stdout is None else stdout,
        stderr=subprocess.PIPE,
        check=False,
    )


# Exit codes


def test_run_command_returns_after_success(capsys: pytest.CaptureFixture[str]) -> None:
    run_command(lambda: print("a result"))
    assert capsys.readouterr() == ("a result\n", "")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("clips.arrow: is missing"), 2, "error: clips.arrow: is missing\n"),
        (InputError("several\n  lines\nbecome one"), 2, "error: several lines become one\n"),
        (KeyboardInterrupt(), 130, "interrupted.\n"),
        (Interrupted("resume with --resume auto"), 130, "interrupted. resume with --resume auto\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_error_sets_exit_code_and_prints_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised_exit:
        run_command(raising(error))
    assert raised_exit.value.code == code
    assert capsys.readouterr() == ("a result\n", line)


@pytest.mark.parametrize("error", [ValueError("a bug"), RuntimeError(), OSError("disk")], ids=repr)
def test_unexpected_error_is_not_caught(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        run_command(raising(error))
    assert raised.value is error


def test_input_error_is_a_value_error() -> None:
    assert issubclass(InputError, ValueError)


@pytest.mark.parametrize("code", [7, 0, None])
def test_exit_code_of_main_is_preserved(code: int | None) -> None:
    with pytest.raises(SystemExit) as raised_exit:
        run_command(raising(SystemExit(code)))
    assert raised_exit.value.code == code


@pytest.mark.parametrize(
    ("body", "code", "out", "error"),
    [
        ("print('a result')", 0, "a result\n", ""),
        ("raise InputError('what, where, what to do')", 2, "", "error: what, where, what to do\n"),
        ("raise KeyboardInterrupt", 130, "", "interrupted.\n"),
    ],
)
def test_process_exit_codes(body: str, code: int, out: str, error: str) -> None:
    process = run(body)
    assert (process.returncode, process.stdout.decode(), process.stderr.decode()) == (code, out, error)


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_ctrl_c_ends_process_without_traceback() -> None:
    process = start_python(COMMAND.format(body="print('busy', flush=True); time.sleep(60)"))
    assert process.stdout is not None
    assert process.stdout.readline() == "busy\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert (process.returncode, error) == (130, "interrupted.\n")


def test_warnings_of_libraries_are_no_errors_under_w_error(tmp_path: Path) -> None:
    script = COMMAND.format(body="import json, library; library.old(); print('done')")
    (tmp_path / "library.py").write_text("import warnings\n\ndef old():\n    warnings.warn('old', UserWarning)\n")
    changes = {"PYTHONWARNINGS": "error", "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    result = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **changes}, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr


# Output that cannot be written


@pytest.mark.parametrize(
    "body",
    [
        "for _ in range(1): print('a result')",
        "for _ in range(20_000): print('a result')",
        TABLE.format(rows=2),
        TABLE.format(rows=1_000),
        "print('a result'); sys.exit(0)",
        "CommandParser('a command', 'help ' * 20_000).parse_args(['--help'])",
    ],
    ids=["less than a buffer", "more than a buffer", "small table", "large table", "explicit exit", "help"],
)
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_closed_pipe_exits_without_message(body: str, unbuffered: str) -> None:
    script = COMMAND.format(body=f"sys.stdin.read()\n    {body.strip()}")
    process = start_python(script, stdin=subprocess.PIPE, env_changes={"PYTHONUNBUFFERED": unbuffered})
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stdin.close()  # the command writes only after the end of its input
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 141
    assert error == ""


def test_closed_pipe_does_not_hide_an_error() -> None:
    script = COMMAND.format(body="sys.stdin.read(); print('a result'); raise InputError('what is wrong')")
    process = start_python(script, stdin=subprocess.PIPE, env_changes={"PYTHONUNBUFFERED": ""})
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stdin.close()
    error = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), error) == (2, "error: what is wrong\n")


@needs_dev_full
@pytest.mark.parametrize(
    "body",
    [
        "print('a result')",
        "for _ in range(20_000): print('a result')",
        TABLE.format(rows=3),
        "print('a result'); sys.exit(0)",
        "CommandParser('a command', 'help ' * 20_000).parse_args(['--help'])",
    ],
    ids=["less than a buffer", "more than a buffer", "table", "explicit exit", "help"],
)
def test_full_disk_on_standard_output_is_reported_in_one_line(body: str) -> None:
    with open("/dev/full", "wb") as full:
        process = run(body, stdout=full.fileno(), PYTHONUNBUFFERED="")
    assert process.stderr.decode() == "error: cannot write to standard output (No space left on device)\n"
    assert process.returncode == 1


@needs_dev_full
def test_full_disk_on_other_file_shows_traceback() -> None:
    process = run("open('/dev/full', 'w', buffering=1).write('x\\n')")
    assert "Traceback" in process.stderr.decode()
    assert "OSError" in process.stderr.decode()
    assert process.returncode == 1


def test_closed_standard_output_is_accepted() -> None:
    command = f"exec {shlex.join([sys.executable, '-c', COMMAND.format(body='print(1)')])} >&-"
    process = subprocess.run(["sh", "-c", command], env=os.environ, stderr=subprocess.PIPE, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")


# Encodings


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}],
    ids=["PYTHONIOENCODING", "locale"],
)
def test_characters_are_substituted_on_ascii_terminal(environment: dict[str, str]) -> None:
    process = run("print('K=15 … 89.5 ± 0.2 → Σ'); print('3 × 2', file=sys.stderr)", None, **environment)
    assert process.stdout == b"K=15 ... 89.5 +/- 0.2 -> ?\n"
    assert process.stderr == b"3 x 2\n"
    assert process.returncode == 0


def test_table_is_substituted_on_ascii_terminal() -> None:
    process = run(TABLE.format(rows=1), PYTHONIOENCODING="ascii")
    assert process.stderr == b""
    assert b"89.5 +/- 0.2" in process.stdout
    assert process.stdout.isascii()
    assert process.returncode == 0


def test_characters_are_unchanged_on_utf8_terminal() -> None:
    process = run("print('89.5 ± 0.2')", PYTHONIOENCODING="utf-8")
    assert process.stdout.decode() == "89.5 ± 0.2\n"


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_undecodable_bytes_of_file_names_are_printed_unchanged(encoding: str) -> None:
    process = run("print(os.fsdecode(b'clip-\\xe9.npy'))", PYTHONIOENCODING=encoding)
    assert process.stdout == b"clip-\xe9.npy\n"


# Log messages


def test_log_messages_go_to_standard_error_without_prefix(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    configure_logging()  # a second call must not duplicate messages
    logging.getLogger("fgst.sweep").info("trial %d of %d", 1, 2)
    logging.getLogger("fgst.sweep").debug("not printed")
    logging.getLogger("other").info("not printed")
    assert capsys.readouterr() == ("", "trial 1 of 2\n")


def test_command_prints_log_messages() -> None:
    process = run("logging.getLogger('fgst.data').info('89.5 ± 0.2'); print('a result')", PYTHONIOENCODING="ascii")
    assert (process.stdout, process.stderr) == (b"a result\n", b"89.5 +/- 0.2\n")


# Parsers and commands


def test_parser_error_refers_to_help() -> None:
    parser = CommandParser("python -m fgst.train", "Train.")
    with pytest.raises(InputError, match=r"unrecognized arguments: --bad; see python -m fgst\.train --help"):
        parser.parse_args(["--bad"])


def test_parser_rejects_abbreviations() -> None:
    parser = CommandParser("python -m fgst.train", "Train.")
    parser.add_argument("--dataset")
    with pytest.raises(InputError, match="--data"):
        parser.parse_args(["--data", "x"])


def test_parser_uses_invoked_name() -> None:
    with invoked_as("fgst runs"):
        parser = CommandParser("python -m fgst.runs", "Runs.")
        child = parser.add_subparsers().add_parser("list", doc="List.")
    assert (parser.prog, child.prog) == ("fgst runs", "fgst runs list")
    assert CommandParser("python -m fgst.runs", "Runs.").prog == "python -m fgst.runs"


@pytest.mark.parametrize("arguments", [["a b", "c"], ["it's", "$HOME", "*"], ["sqlite:////tmp/my runs/mlflow.db", 3]])
def test_formatted_command_can_be_parsed_by_shell(arguments: list[object]) -> None:
    assert shlex.split(format_command(arguments)) == list(map(str, arguments))
