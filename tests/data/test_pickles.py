"""Pickles: data of all protocols and versions are read, and nothing else is built from them."""

from __future__ import annotations

import collections
import copyreg
import fractions
import io
import os
import pickle
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgst.data.pickles import PickleError, StoredArray, open_pickle, parse_pickle, write_pickle
from tests.support.field_files import python2_pickle
from tests.support.mutation import read_mutations

DATA: dict[str, Any] = {
    "none": None, "flags": [True, False], "numbers": (0, 1, -1, 255, 256, 65536, -(2**31), 2**70, 1.5, -0.0),
    "texts": ["", "a", "é", "日本", "a" * 300, "line\nand 'quotes'"], "nested": {"a": [{"b": ()}], 3: "key"},
    "scalars": [np.int64(7), np.float32(0.5), np.bool_(True), np.str_("x")],
    "float16": np.arange(6, dtype=np.float16).reshape(1, 2, 3), 
    "long": np.arange(5000, dtype=np.float64).reshape(50, 100),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "big-endian": np.arange(300, dtype=">i4"),
    "names": np.array(["a", "bcd"]), "bytes": np.array([b"a", b"bcd"]), "empty": np.zeros((0, 3)), "one": np.array(3),
}  # fmt: skip


def plain(value: Any) -> Any:
    """Replace stored arrays by arrays, and subclasses of texts by texts."""
    if isinstance(value, StoredArray):
        return value.read()
    if isinstance(value, str):
        return str(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return type(value)(map(plain, value)) if isinstance(value, (list, tuple)) else value


def read(content: bytes) -> Any:
    return plain(parse_pickle(io.BytesIO(content)))


def check_equal(actual: Any, expected: Any) -> None:
    """Compare values, including the types of arrays."""
    np.testing.assert_equal(actual, expected)
    for key, value in expected.items():
        if isinstance(value, np.ndarray):
            assert actual[key].dtype == value.dtype
            assert actual[key].shape == value.shape


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_data_of_every_protocol(protocol: int) -> None:
    content = pickle.dumps(DATA, protocol)
    check_equal(read(content), DATA)
    check_equal(read(content.replace(b"numpy._core.", b"numpy.core.")) if protocol < 4 else DATA, DATA)
    values = {
        "set": {1, "a"},
        "frozen": frozenset([2]),
        "bytes": [b"", b"a\xff", b"a" * 100],
        "array": bytearray(b"\xff"),
    }
    assert read(pickle.dumps(values, protocol)) == values


def test_data_of_python_2(tmp_path: Path) -> None:
    with open_pickle(python2_pickle(tmp_path / "old.pkl", DATA)) as value:
        check_equal(plain(value), DATA)
    assert read(b"(S'caf\\xe9'\nS'\\xc3\\xa9'\nI01\nL5L\nF1.5\nV\\u00e9\nlp0\n.") == ["café", "é", True, 5, 1.5, "é"]


def test_keys_that_are_bytes_become_texts() -> None:
    assert read(pickle.dumps({b"annotations": [], b"\xe9": 1})) == {"annotations": [], "é": 1}


def test_shared_objects_are_shared() -> None:
    shared = ["a"]
    value = read(pickle.dumps([shared, shared, "name", "name"]))
    assert value == [["a"], ["a"], "name", "name"]


# What is written


@pytest.mark.filterwarnings("ignore:numpy.core")  # the old name, which all versions of NumPy know
@pytest.mark.parametrize("read_back", [read, pickle.loads])
def test_written_pickle_is_read_back(read_back: Callable[[bytes], Any]) -> None:
    # NumPy converts big-endian numbers.
    kept = {key: value for key, value in DATA.items() if key not in ("scalars", "names", "bytes", "big-endian")}
    file = io.BytesIO()
    write_pickle(file, kept | {"iterable": iter(range(2500)), "raw": b"\xff"})
    value = read_back(file.getvalue())
    assert value.pop("iterable") == list(range(2500))
    assert value.pop("raw") == b"\xff"
    check_equal(value, kept)
    assert b"numpy._core" not in file.getvalue()


@pytest.mark.parametrize("value", [object(), {"a": np.array([object()])}, [1j], np.array(["a"])])
def test_other_objects_are_not_written(value: Any) -> None:
    with pytest.raises(TypeError, match="cannot be written"):
        write_pickle(io.BytesIO(), value)


# What is refused


class Call:
    """Unpickling it calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.result = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.result


class Marker:
    """A class with a state."""

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("it was built")


def persistent() -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return "id" if isinstance(value, Marker) else None

    file = io.BytesIO()
    Pickler(file, 2).dump([Marker()])
    return file.getvalue()


def registered() -> bytes:
    copyreg.add_extension("posix", "system", 240)
    try:
        return b"\x80\x02\x82\xf0U\x04true\x85R."
    finally:
        copyreg.remove_extension("posix", "system", 240)


def text(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


MINUS_ONE = b"J\xff\xff\xff\xff"


def dtype(code: bytes = b"f4", order: bytes = b"<", fields: bytes = b"NNN") -> bytes:
    """The instructions that describe the type of an array's elements, after the name of the function."""
    state = b"(K\x03U\x01" + order + fields + MINUS_ONE + MINUS_ONE + b"K\x00tb"
    return b"U" + bytes([len(code)]) + code + b"K\x00K\x01\x87R" + state


def array(
    shape: bytes = b"K\x02\x85",
    dtype: bytes = dtype(),
    data: bytes = b"U\x08" + bytes(8),
    count: bytes = b"K\x00\x85",
) -> bytes:
    """A pickle of an array, of whose parts some are replaced."""
    start = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + count + b"U\x01b\x87R(K\x01"
    return start + shape + b"cnumpy\ndtype\n" + dtype + b"\x89" + data + b"tb."


ATTACKS: dict[str, bytes] = {
    "os.system": b"cos\nsystem\n(S'touch executed'\ntR.",
    "posix.system": b"\x80\x04" + text("posix") + text("system") + b"\x93" + text("touch executed") + b"\x85R.",
    "eval": pickle.dumps(Call(eval, "1 + 1")),
    "exec of Python 2": b"c__builtin__\nexec\n(S'1'\ntR.",
    "subprocess": pickle.dumps(Call(subprocess.call, ["touch", "executed"])),
    "getattr": b"c__builtin__\ngetattr\n(cos\n__dict__\ntR.",
    "nested name": b"\x80\x04" + text("numpy") + text("ndarray.tofile") + b"\x93.",
    "name with a line break": b"\x80\x04" + text("numpy\nos") + text("dtype") + b"\x93.",
    "dotted module": b"\x80\x04" + text("numpy") + text("core.multiarray._reconstruct") + b"\x93.",
    "names that are no texts": b"\x80\x04K\x01K\x02\x93.",
    "numpy.load": pickle.dumps(Call(np.load, "x.npy")),
    "numpy.memmap": b"cnumpy\nmemmap\n(S'executed'\nS'u1'\nS'w+'\ntR.",
    "numpy.fromfile": pickle.dumps(Call(np.fromfile, "x")),
    "numpy.save": pickle.dumps(Call(np.save, "executed", 1)),
    "numpy.f2py": b"cnumpy.f2py\ncompile\n(S'x'\ntR.",
    "instance": b"(S'1'\nios\nsystem\n.",
    "object": b"(cos\nsystem\nS'true'\no.",
    "new object": pickle.dumps(Marker(), 2),
    "new object with keywords": b"\x80\x04cfractions\nFraction\n)}\x92.",
    "class": pickle.dumps(fractions.Fraction),
    "ordered dictionary": pickle.dumps(collections.OrderedDict(a=1)),
    "reconstructor": pickle.dumps(Marker(), 0),
    "copyreg": b"ccopyreg\n_reconstructor\n(cos\nstat_result\nc__builtin__\nobject\nNtR.",
    "persistent id": persistent(),
    "persistent id as text": b"Pid\n.",
    "registered class": registered(),
    "registered class, 4 bytes": b"\x80\x02\x84\xf0\x00\x00\x00.",
    "buffer outside": pickle.dumps(pickle.PickleBuffer(b"a"), 5, buffer_callback=lambda buffer: False),
    "read-only buffer": b"\x80\x05C\x01a\x98.",
    "state of a dictionary": b"}}b.",
    "state of a list": b"]}b.",
    "state of a function": b"cnumpy\nndarray\n}b.",
    "function as the result": b"cnumpy\nndarray\n.",
    "dtype as the result": b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR.",
    "call of a text": b"S'a'\n)R.",
    "call of an array": array()[:-1] + b")R.",
    "call without a tuple": b"cnumpy\ndtype\n]R.",
    "array subclass": array().replace(b"ndarray", b"matrix"),
    "array of objects": pickle.dumps(np.array([{}, None])),
    "array of objects with a call": pickle.dumps(np.array([Call(os.mkdir, "executed")])),
    "array of structures": pickle.dumps(np.zeros(2, [("a", "i4")])),
    "array of times": pickle.dumps(np.zeros(2, "M8[s]")),
    "array of complex numbers": pickle.dumps(np.zeros(2, complex)),
    "array set twice": array()[:-1] + array()[array().index(b"(K\x01") :],
    "array of a list": array(data=b"]"),
    "array of objects in a list": array(dtype=dtype(b"O8", b"|"), data=b"]"),
    "array beyond the file": array(shape=b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"),
    "array of many axes": array(shape=b"(" + b"K\x01" * 9 + b"t"),
    "negative shape": array(shape=b"J\xfe\xff\xff\xffJ\xff\xff\xff\xff\x86"),
    "shape of a huge number": array(shape=b"\x8a\x10" + b"\xff" * 15 + b"\x7f\x85"),
    "shape of texts": array(shape=b"U\x01a\x85"),
    "shape of a flag": array(shape=b"\x88\x85"),
    "huge dtype": array(dtype=dtype(b"S999999999")),
    "dtype of text": array(dtype=dtype(b"f4,(9,9)f8")),
    "dtype with fields": array(dtype=dtype(fields=b"N}}")),
    "dtype of unknown order": array(dtype=dtype(order=b"x")),
    "reconstructed with memory": array(count=b"J\xff\xff\xff\x7f\x85"),
    "encode with another codec": b"c_codecs\nencode\n(X\x01\x00\x00\x00aU\x06pickletR.",
    "bytes of a length": b"c__builtin__\nbytes\n(J\xff\xff\xff\x7ftR.",
    "bytearray of a length": b"c__builtin__\nbytearray\n(J\xff\xff\xff\x7ftR.",
    "set of lists": b"\x80\x04\x8f(]\x90.",
    "key that is a tuple": b"}()Ns.",
    "huge number": b"\x80\x02\x8b\xff\xff\xff\x7f" + b"\xff" * 100,
    "negative length of a number": b"\x80\x02\x8b\xff\xff\xff\xff.",
    "number of many digits": b"I" + b"9" * 4000 + b"\n.",
    "text beyond the file": b"X\xff\xff\xff\xffabc.",
    "bytes beyond the file": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.",
    "bytearray beyond the file": b"\x80\x05\x96" + struct.pack("<Q", 2**63) + b"abc.",
    "unknown protocol": b"\x80\x06N.",
    "unknown instruction": b"\xff.",
    "empty stack": b"0.",
    "object below the mark": b"N(0.".replace(b"0", b"a"),
    "memo without an entry": b"\x80\x02h\x05.",
    "memo of nothing": b"\x80\x02q\x05.",
    "two results": b"NN.",
    "open mark": b"N(.",
    "marks": b"(" * 1000 + b".",
    "invalid text": b"X\x01\x00\x00\x00\xff.",
    "nothing": b"",
    "text file": b"hello",
    "gzip": b"\x1f\x8b\x08\x00",
    "end missing": pickle.dumps(DATA)[:-1],
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_builds_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    with pytest.raises(PickleError) as fault:
        read(ATTACKS[name])
    assert str(fault.value).isprintable()
    assert len(str(fault.value)) < 300
    assert not list(tmp_path.iterdir())
    assert set(sys.modules) == before


def test_undamaged_parts_of_the_attacks_are_read() -> None:
    np.testing.assert_array_equal(read(array()), np.zeros(2, np.float32))


def small_process(content: bytes, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Read a pickle in a process that may use 2 GiB more than it has after its imports."""
    (tmp_path / "bomb.pkl").write_bytes(content)
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from fgst.data.pickles import PickleError, open_pickle\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    with open_pickle(Path(sys.argv[1])) as value:\n"
        "        print('read')\n"
        "    del value\n"
        "except PickleError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "bomb.pkl")]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_AS"), reason="needs a limit of memory")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x04](" + b"\x8f" * 5_000_000 + b"e.", "takes more than 1 GiB"),
        (b"\x80\x04)" + b"\x85" * 1_000_000 + b".", "read"),
        (b"\x80\x04]" + b"".join(b"\x94(" + b"h\x00" * 9 + b"e" for _ in range(200)) + b".", "read|damaged"),
        (b"\x80\x04]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(99)) + b".", "damaged"),
    ],
    ids=["sets", "tower of tuples", "list of itself", "exponential lists"],
)  # fmt: skip
def test_bomb_takes_bounded_memory(content: bytes, message: str, tmp_path: Path) -> None:
    result = small_process(content, tmp_path)
    assert result.returncode == 0, result.stderr
    assert any(part in result.stdout for part in message.split("|")), result.stdout


def read_damaged(content: bytes) -> None:
    """Read everything; the reader of damaged files in another process."""
    read(content)


def test_damaged_pickles_are_read_or_refused() -> None:
    samples = {f"protocol {protocol}": pickle.dumps(DATA, protocol) for protocol in (0, 2, 4, 5)}
    read_mutations(read_damaged, samples, 400, refusals=(PickleError,)).check(400)


def test_array_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    size = 300 * 2**20
    start, end = array(shape=b"J" + struct.pack("<i", size) + b"\x85", dtype=dtype(b"i1"), data=b"T?").split(b"T?")
    with (tmp_path / "a.pkl").open("wb") as file:
        file.write(start + b"T" + struct.pack("<i", size))
        file.seek(size, os.SEEK_CUR)  # a hole, which takes no space
        file.write(end)
    with open_pickle(tmp_path / "a.pkl") as value:
        assert value.shape == (size,)
        with pytest.raises(PickleError, match="the limit is 256 MiB"):
            value.read()


def test_file_that_became_shorter(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([np.arange(5000)]))
    with open_pickle(tmp_path / "a.pkl") as value:
        os.truncate(tmp_path / "a.pkl", 1000)
        with pytest.raises(PickleError, match="it became shorter"):
            value[0].read()


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: os.mkfifo(path), lambda path: None])
def test_path_that_is_no_file(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "a.pkl")
    with pytest.raises(PickleError, match=r"is not a regular file|cannot be read"), open_pickle(tmp_path / "a.pkl"):
        pass


def test_zip_is_named() -> None:
    content = io.BytesIO()
    np.savez(content, x=np.zeros(2))
    with pytest.raises(PickleError, match="is a zip, not a pickle"):
        parse_pickle(content)
