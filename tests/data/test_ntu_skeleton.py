"""The parser of .skeleton files: whatever the bytes, a recording that is right or a fault that is named."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgst.data.formats import ntu_skeleton
from fgst.data.formats.ntu_skeleton import Recording, read_skeleton
from fgst.data.sources import ClipError
from tests.support.ntu_corpus import FIRST_ID, Track, one, person, text

RNG = np.random.default_rng(0)
PLAIN = text(3, one(RNG, 3))
PAIR = text(4, [Track(FIRST_ID, [0, 1, 3], person(RNG, 3)), Track(FIRST_ID + 1, [1, 2], person(RNG, 2))])
steady = settings(derandomize=True, deadline=None, max_examples=400)


def same(one: Recording, other: Recording) -> None:
    assert one.num_frames == other.num_frames
    assert [body.number for body in one.bodies] == [body.number for body in other.bodies]
    for a, b in zip(one.bodies, other.bodies, strict=True):
        np.testing.assert_array_equal(a.frames, b.frames)
        np.testing.assert_array_equal(a.joints, b.joints)


def test_bodies_are_told_apart_by_ids_that_no_float_holds() -> None:
    recording = read_skeleton(PAIR)
    assert [body.number for body in recording.bodies] == [FIRST_ID, FIRST_ID + 1]
    assert float(FIRST_ID) == float(FIRST_ID + 1)
    assert [body.frames.tolist() for body in recording.bodies] == [[0, 1, 3], [1, 2]]


@steady
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=75, max_size=75),
    st.sampled_from(["{!r}", "{:.7g}", "{:.3e}", "{:.9f}"]),
)
def test_numbers_are_read_as_python_reads_them(values: list[float], form: str) -> None:
    joints = np.array(values).reshape(1, 25, 3)
    written = text(1, [Track(7, [0], joints)], number=lambda value: form.format(float(value)))
    tokens = [line.split()[:3] for line in written.splitlines() if len(line.split()) == 12]
    expected = np.array([[float(token) for token in line] for line in tokens])
    if np.abs(expected).max() <= np.finfo(np.float32).max:
        np.testing.assert_array_equal(read_skeleton(written).bodies[0].joints[0], expected)


def mutations(content: bytes) -> st.SearchStrategy[bytes]:
    """The content with a few pieces cut, doubled, replaced, or lines taken away or put elsewhere."""
    lines = content.splitlines(keepends=True)
    place, length = st.integers(0, len(content)), st.integers(0, 60)
    token = st.sampled_from(
        [b"", b"0", b"1", b"-1", b"25", b"24", b"nan", b"-inf", b"1e999", b"1_0", b"0x1", b"\0", b"\r", b"\n", b"  ",
         b"\t", b"\xff\xfe", b"99999999999999999999999", b"1 2", b"\x1a", "٣".encode()]
    )  # fmt: skip
    cut = st.builds(lambda p, n, t: content[:p] + t + content[p + n :], place, length, token)
    row = st.integers(0, len(lines) - 1)
    moved = st.builds(lambda a, b, c: b"".join(lines[:a] + lines[a + 1 : b] + [lines[c]] + lines[b:]), row, row, row)
    return st.one_of(cut, moved, st.builds(lambda p: content[:p], place), st.binary(max_size=200))


@pytest.mark.parametrize("content", [PLAIN, PAIR], ids=["one body", "two bodies"])
def test_any_bytes_give_a_recording_or_a_named_fault(content: bytes) -> None:
    """And wherever the fast reader gives an answer, the slow one gives the same."""
    outcomes = set()

    @steady
    @given(mutations(content))
    def check(mutated: bytes) -> None:
        fast = ntu_skeleton._read_fast(mutated)
        try:
            slow = ntu_skeleton._read_slow(mutated)
        except ClipError as error:
            slow, fault = None, str(error)
        outcomes.add("fault" if slow is None else "recording")
        if slow is None:
            assert fast is None
            assert fault
            assert fault.isprintable()
            return
        same(read_skeleton(mutated), slow)
        for body in slow.bodies:
            assert body.joints.shape == (len(body.frames), 25, 3)
            assert np.isfinite(body.joints).all()
            assert 0 <= body.frames.min() <= body.frames.max() < slow.num_frames

    check()
    assert outcomes == {"fault", "recording"}


@pytest.mark.parametrize("end", range(0, len(PLAIN) - 1, 97))
def test_a_file_that_ends_too_early_is_no_clip(end: int) -> None:
    with pytest.raises(ClipError):
        read_skeleton(PLAIN[:end])


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "is empty"),
        (b" \r\n\n", "is empty"),
        (PLAIN + PLAIN, "goes on after its 3 frames"),
        (PLAIN.replace(b"\n25\n", b"\n26\n", 1), "has 26 joints instead of 25 for body 1 in frame 1 of 3 (line 4)"),
        (PLAIN.replace(b"\n1\n", b"\n2\n", 1), "fields"),
        (PAIR.replace(str(FIRST_ID + 1).encode(), str(FIRST_ID).encode()), f"body {FIRST_ID} twice in frame 2 of 4"),
        (b"\x1f\x8b\x08" + PLAIN, "gzip"),
        (b"PK\x03\x04" + PLAIN, "is a zip"),
        (PLAIN.decode().encode("utf-16"), "has"),
        (b"\xef\xbb\xbf" + PLAIN, "on line 1, where the number of frames must be"),
        (b"3.0\n", "'3.0' on line 1"),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_line(content: bytes, word: str) -> None:
    with pytest.raises(ClipError) as error:
        read_skeleton(content)
    assert word in str(error.value)


@pytest.mark.parametrize("number", [b"4000000000", b"99999999999999999999"])
@pytest.mark.parametrize("where", ["frames", "bodies", "joints"])
def test_memory_does_not_grow_with_a_number_in_the_file(where: str, number: bytes) -> None:
    lines = PLAIN.split(b"\n")
    lines[{"frames": 0, "bodies": 1, "joints": 3}[where]] = number
    tracemalloc.start()
    try:
        with pytest.raises(ClipError):
            read_skeleton(b"\n".join(lines))
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
