"""How a command ends: an exit code that scripts can read, and one line that a person can."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from fgst.cli.command import run_command
from fgst.errors import InputError, Interrupted
from tests.support.small import start_python


def raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        print("a result")
        raise error

    return main


def test_a_command_that_is_done_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    run_command(lambda: print("a result"))
    assert capsys.readouterr() == ("a result\n", "")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("clips.arrow: is missing"), 2, "error: clips.arrow: is missing\n"),
        (InputError("several\n  lines\nbecome one"), 2, "error: several lines become one\n"),
        (KeyboardInterrupt(), 130, "interrupted.\n"),
        (Interrupted("go on with --resume auto"), 130, "interrupted. go on with --resume auto\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_becomes_a_code_and_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run_command(raising(error))
    assert exit_.value.code == code
    assert capsys.readouterr() == ("a result\n", line)


@pytest.mark.parametrize("error", [ValueError("a fault of ours"), RuntimeError(), OSError("disk")], ids=repr)
def test_a_fault_of_ours_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        run_command(raising(error))
    assert raised.value is error


def test_bad_input_is_a_value_error() -> None:
    assert issubclass(InputError, ValueError)


def test_an_exit_of_its_own_is_left_alone() -> None:
    with pytest.raises(SystemExit) as exit_:
        run_command(raising(SystemExit(7)))
    assert exit_.value.code == 7


COMMAND = """
import sys
from fgst.cli.command import run_command
from fgst.errors import InputError

def main():
    {body}

run_command(main)
"""


@pytest.mark.parametrize(
    ("body", "code", "out", "error"),
    [
        ("print('a result')", 0, "a result\n", ""),
        ("raise InputError('what, where, what to do')", 2, "", "error: what, where, what to do\n"),
        ("raise KeyboardInterrupt", 130, "", "interrupted.\n"),
    ],
)
def test_a_process_ends_like_that(body: str, code: int, out: str, error: str) -> None:
    process = start_python(COMMAND.format(body=body))
    assert process.communicate() == (out, error)
    assert process.returncode == code


@pytest.mark.parametrize("lines", [1, 20_000], ids=["within a buffer", "beyond a buffer"])
def test_a_reader_that_went_away_is_no_fault(lines: int) -> None:
    script = COMMAND.format(body=f"sys.stdin.read(); [print('a result') for _ in range({lines})]")
    process = start_python(script, stdin=subprocess.PIPE, env_changes={"PYTHONUNBUFFERED": ""})
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stdin.close()  # now it may write
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 141
    assert error == ""


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
def test_ctrl_c_ends_a_process_without_a_traceback() -> None:
    import signal

    process = start_python(COMMAND.format(body="print('busy', flush=True); import time; time.sleep(60)"))
    assert process.stdout is not None
    assert process.stdout.readline() == "busy\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert (process.returncode, error) == (130, "interrupted.\n")
