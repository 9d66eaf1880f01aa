"""The parsers of ``.skeleton`` files: any input gives a correct recording or a precise error."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgst.data.cleaning import Recording
from fgst.data.formats.ntu_skeleton import parse_fast, parse_strict, read_skeleton
from fgst.data.sources import ClipError
from tests.support.ntu_corpus import FIRST_ID, Track, one, person, text

RNG = np.random.default_rng(0)
PLAIN = text(3, one(RNG, 3))
PAIR = text(4, [Track(FIRST_ID, [0, 1, 3], person(RNG, 3)), Track(FIRST_ID + 1, [1, 2], person(RNG, 2))])
steady = settings(derandomize=True, deadline=None, max_examples=400)


def assert_equal(first: Recording, second: Recording) -> None:
    assert first.num_frames == second.num_frames
    assert [body.body_id for body in first.bodies] == [body.body_id for body in second.bodies]
    for a, b in zip(first.bodies, second.bodies, strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)
        np.testing.assert_array_equal(a.joints, b.joints)


def test_body_ids_are_not_rounded_to_float() -> None:
    recording = read_skeleton(PAIR)
    assert [body.body_id for body in recording.bodies] == [FIRST_ID, FIRST_ID + 1]
    assert float(FIRST_ID) == float(FIRST_ID + 1)
    assert [body.frames.tolist() for body in recording.bodies] == [[0, 1, 3], [1, 2]]


@steady
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=75, max_size=75),
    st.sampled_from(["{!r}", "{:.7g}", "{:.3e}", "{:.9f}"]),
)
def test_numbers_are_parsed_as_by_python(values: list[float], form: str) -> None:
    joints = np.array(values).reshape(1, 25, 3)
    written = text(1, [Track(7, [0], joints)], number=lambda value: form.format(float(value)))
    tokens = [line.split()[:3] for line in written.splitlines() if len(line.split()) == 12]
    expected = np.array([[float(token) for token in line] for line in tokens])
    if np.abs(expected).max() <= np.finfo(np.float32).max:
        np.testing.assert_array_equal(read_skeleton(written).bodies[0].joints[0], expected)


def mutations(content: bytes) -> st.SearchStrategy[bytes]:
    """Generate random bytes, and the content with a piece cut or replaced or with lines removed, repeated or moved."""
    lines = content.splitlines(keepends=True)
    position, length = st.integers(0, len(content)), st.integers(0, 60)
    replacement = st.sampled_from(
        [b"", b"0", b"1", b"-1", b"25", b"24", b"nan", b"-inf", b"1e999", b"1_0", b"0x1", b"\0", b"\r", b"\n", b"  ",
         b"\t", b"\xff\xfe", b"99999999999999999999999", b"1 2", b"\x1a", "٣".encode()]
    )  # fmt: skip
    cut = st.builds(lambda p, n, t: content[:p] + t + content[p + n :], position, length, replacement)
    row = st.integers(0, len(lines) - 1)
    moved = st.builds(lambda a, b, c: b"".join(lines[:a] + lines[a + 1 : b] + [lines[c]] + lines[b:]), row, row, row)
    return st.one_of(cut, moved, st.builds(lambda p: content[:p], position), st.binary(max_size=200))


@pytest.mark.parametrize("content", [PLAIN, PAIR], ids=["one body", "two bodies"])
def test_any_input_gives_recording_or_printable_error(content: bytes) -> None:
    """If the fast parser returns a recording, the strict parser returns the same one."""
    outcomes = set()

    @steady
    @given(mutations(content))
    def check(mutated: bytes) -> None:
        fast = parse_fast(mutated)
        try:
            strict = parse_strict(mutated)
        except ClipError as error:
            strict, fault = None, str(error)
        outcomes.add("fault" if strict is None else "recording")
        if strict is None:
            assert fast is None
            assert fault
            assert fault.isprintable()
            return
        assert_equal(read_skeleton(mutated), strict)
        for body in strict.bodies:
            assert body.joints.shape == (len(body.frames), 25, 3)
            assert np.isfinite(body.joints).all()
            assert 0 <= body.frames.min() <= body.frames.max() < strict.num_frames

    check()
    assert outcomes == {"fault", "recording"}


@pytest.mark.parametrize("end", range(0, len(PLAIN) - 1, 97))
def test_truncated_file_is_rejected(end: int) -> None:
    with pytest.raises(ClipError):
        read_skeleton(PLAIN[:end])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \r\n\n", "is empty"),
        (PLAIN + PLAIN, "has more lines after its 3 frames"),
        (PLAIN.replace(b"\n25\n", b"\n26\n", 1), "has 26 joints instead of 25 for body 1 in frame 1 of 3 (line 4)"),
        (PLAIN.replace(b"\n1\n", b"\n2\n", 1), "fields"),
        (PAIR.replace(str(FIRST_ID + 1).encode(), str(FIRST_ID).encode()), f"body {FIRST_ID} twice in frame 2 of 4"),
        (b"\x1f\x8b\x08" + PLAIN, "gzip"),
        (b"PK\x03\x04" + PLAIN, "is a zip"),
        (PLAIN.decode().encode("utf-16"), "has"),
        (b"\xef\xbb\xbf" + PLAIN, "on line 1 instead of the number of frames"),
        (b"3.0\n", "'3.0' on line 1"),
    ],
)  # fmt: skip
def test_errors_name_line(content: bytes, message: str) -> None:
    with pytest.raises(ClipError) as error:
        read_skeleton(content)
    assert message in str(error.value)


@pytest.mark.parametrize("number", [b"4000000000", b"99999999999999999999"])
@pytest.mark.parametrize("field", ["frames", "bodies", "joints"])
def test_memory_does_not_depend_on_counts_in_file(field: str, number: bytes) -> None:
    lines = PLAIN.split(b"\n")
    lines[{"frames": 0, "bodies": 1, "joints": 3}[field]] = number
    tracemalloc.start()
    try:
        with pytest.raises(ClipError):
            read_skeleton(b"\n".join(lines))
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
