"""Tables of labels as spreadsheets and people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fgst.data.label_table import natural_order, read_label_table
from fgst.data.splits import Benchmark
from fgst.errors import InputError


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "labels.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_separators_and_encodings(tmp_path: Path, separator: str, encoding: str, end: str) -> None:
    lines = ["clip_id,label,subject", "a,grüßen,1", "b,sit,2"]
    text = (end.join(lines) + end).replace(",", separator)
    if encoding == "utf-16-le":
        text = "\ufeff" + text
    table = read_label_table(write(tmp_path, text, encoding), ["x-sub:subject=1"])
    assert table.classes == ("grüßen", "sit")
    assert [(row.label, row.subject) for row in table.rows.values()] == [(0, 1), (1, 2)]


def test_decimal_commas_are_no_separators(tmp_path: Path) -> None:
    table = read_label_table(write(tmp_path, 'clip_id;label;note\na;"walk; run";1,5\nb;sit;2,5\n'))
    assert table.classes == ("sit", "walk; run")


def test_legacy_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not UTF-8 text.*save the file as UTF-8"):
        read_label_table(write(tmp_path, "clip_id,label\na,grüßen\n", "latin-1"))


def test_whole_numbers_sort_as_numbers(tmp_path: Path) -> None:
    lines = "".join(f"c{i},{i}\n" for i in (10, 2, 1, 0, 11))
    table = read_label_table(write(tmp_path, "clip_id,label\n" + lines))
    assert table.classes == ("0", "1", "2", "10", "11")
    assert table.rows["c2"].label == 2
    assert natural_order({"P10", "P2", "p1", "A"}) == ["A", "P2", "P10", "p1"]


@pytest.mark.parametrize(("first", "labels"), [(0, "0 1 2"), (1, "1 2 3")])
def test_numbers_are_labels_of_class_names(tmp_path: Path, first: int, labels: str) -> None:
    (tmp_path / "classes.txt").write_text("wave\nsit\n\nstand up\n")
    lines = "".join(f"c{label},{label}\n" for label in labels.split())
    table = read_label_table(write(tmp_path, "clip_id,label\n" + lines), classes=tmp_path / "classes.txt")
    assert table.classes == ("wave", "sit", "stand up")
    assert table.rows[f"c{first}"].label == 0
    assert f"labels count from {first}: {first} is wave" in table.notes


def test_class_names_give_the_order(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("wave\nsit\n")
    table = read_label_table(write(tmp_path, "clip_id,label\na,sit\nb,wave\n"), classes=tmp_path / "classes.txt")
    assert (table.rows["a"].label, table.rows["b"].label) == (1, 0)


@pytest.mark.parametrize(
    ("classes", "label", "message"),
    [
        ("wave\nsit\n", "jump", "label jump is not in"),
        ("wave\nsit\n", "7", "labels are 7 to 7, but .* has 2 names"),
        ("wave\nwave\n", "wave", "wave occurs twice"),
        ("", "wave", "is empty"),
    ],
)
def test_labels_that_do_not_fit_the_class_names(tmp_path: Path, classes: str, label: str, message: str) -> None:
    (tmp_path / "classes.txt").write_text(classes)
    with pytest.raises(InputError, match=message):
        read_label_table(write(tmp_path, f"clip_id,label\na,{label}\n"), classes=tmp_path / "classes.txt")


def test_names_of_subjects_are_numbered(tmp_path: Path) -> None:
    path = write(tmp_path, "clip_id,label,subject\na,x,P10\nb,x,P2\nc,y,P01\nd,y,\n")
    table = read_label_table(path, ["x-sub:subject=P01,P10"])
    assert [table.rows[clip].subject for clip in "abcd"] == [3, 2, 1, 0]
    assert table.benchmarks == (Benchmark("x-sub", "subject", train=(1, 3)),)
    assert table.numbers == {"subject": {"P01": 1, "P2": 2, "P10": 3}}
    assert "subject: P01 to P10 are numbered 1 to 3" in table.notes


def test_subject_zero_is_reported(tmp_path: Path) -> None:
    table = read_label_table(write(tmp_path, "clip_id,label,subject\na,x,0\nb,x,1\n"), ["x-sub:subject=0"])
    assert [row.subject for row in table.rows.values()] == [1, 2]
    assert table.benchmarks[0].train == (1,)
    assert "subject: 0 to 1 are numbered 1 to 2 (0 would mean 'not recorded')" in table.notes


def test_split_columns_are_benchmarks(tmp_path: Path) -> None:
    text = "clip_id,label,split,split2\na,x,train,test\nb,x,test,train\nc,y,val,train\n"
    table = read_label_table(write(tmp_path, text))
    assert table.split_lists == ("split", "split2")
    assert table.rows["a"].splits == {"split": "train", "split2": "test"}
    assert table.rows["c"].splits == {"split2": "train"}


def test_benchmarks_by_any_column(tmp_path: Path) -> None:
    text = "clip_id,label,room,split\na,x,lab,train\nb,x,home,val\nc,y,street,test\n"
    path = write(tmp_path, text)
    table = read_label_table(path, ["official:split=train", "strict:split=train,val/test", "rooms:room=lab/street"])
    assert table.rows["b"].splits == {"official": "test", "strict": "train"}
    assert table.rows["a"].splits == {"official": "train", "strict": "train", "rooms": "train"}
    table = read_label_table(write(tmp_path, "clip_id,label,camera\na,x,1\nb,x,2\nc,y,3\n"), ["x-view:camera=1,2/3"])
    assert table.benchmarks == (Benchmark("x-view", "camera", train=(1, 2), test=(3,)),)


def test_official_lists_may_name_subjects_that_are_absent(tmp_path: Path) -> None:
    path = write(tmp_path, "clip_id,label,subject\na,x,1\nb,x,2\n")
    table = read_label_table(path, ["x-sub:subject=1,4,7"])
    assert table.benchmarks[0].train == (1,)
    assert "x-sub: no clip has subject 4, 7" in table.notes


def test_clips_without_a_value_are_said_to_be_for_testing(tmp_path: Path) -> None:
    path = write(tmp_path, "clip_id,label,subject\na,x,1\nb,x,2\nc,y\n")
    assert read_label_table(path, ["x-sub:subject=1"]).notes == ("x-sub: 1 clip has no subject and is for testing",)
    assert read_label_table(path, ["x-sub:subject=1/2"]).notes == ()


@pytest.mark.parametrize(
    ("benchmarks", "message"),
    [
        (["x-sub:subject=3"], "its train split is empty; subject is one of 1, 2"),
        (["x-sub:subject=1,2"], "its test split is empty"),
        (["x-sub:person=1"], "has no column person with values, .* its header is clip_id, label, subject"),
        (["a:subject=1", "a:subject=2"], "occurs twice"),
        (["a:subject=1,2/2"], "both for training and for testing"),
    ],
)
def test_benchmarks_that_do_not_fit(tmp_path: Path, benchmarks: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_label_table(write(tmp_path, "clip_id,label,subject\na,x,1\nb,x,2\n"), benchmarks)


def test_all_faulty_lines_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        read_label_table(write(tmp_path, "clip_id,label\na,x\na,y\n,z\nb,\nc,ok\n"))
    message = str(raised.value)
    assert "line 3: clip a occurs twice; line 4: has no clip_id or no label; line 5: has no clip_id" in message
