"""CSV files of joints: MediaPipe, Kinect, and columns that the user describes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fgst.data.clip_source import SourceOptions
from fgst.data.conversion import write_source
from fgst.data.dataset import ArrowDataset
from fgst.data.formats import SOURCE_FORMATS, find_format, read_clip
from fgst.data.formats.joint_columns import canonical, parse_description
from fgst.data.formats.joint_csv import FORMAT, read_joints
from fgst.data.normalization import Normalization, RawClip
from fgst.data.skeletons import AZURE_KINECT_32, MEDIAPIPE_33, NTU_25, NW_UCLA_20, SKELETONS
from fgst.data.sources import ClipError
from fgst.errors import InputError
from tests.support.joint_csv_files import AZURE, KINECT_V1, KINECT_V2, MEDIAPIPE, blocks, long, rounded, wide
from tests.support.recordings import body, zip_folder

# MediaPipe's image landmarks: y down, joint 5 is not seen in frame 2, and no joint in frame 3.
LANDMARKS = body(MEDIAPIPE_33, 8, 0) * (0.2, -0.2, 0.2)
LANDMARKS[0, 2, 5] = 0
LANDMARKS[0, 3] = 0
POSE = body(NTU_25, 8, 1)
POSE[0, 2, 5] = 0


def check(content: bytes, joints: np.ndarray, name: str, columns: str = "") -> None:
    """Assert that the content is read as these joints, a zero joint with score 0."""
    raw = read_joints(content, SKELETONS[name], columns)
    expected = rounded(joints)
    frames = joints.any(axis=(0, 2, 3))
    if raw.joints.shape[1] == frames.sum():  # frames without any line are not in the file
        expected = expected[:, frames]
    seen = expected.any(axis=-1)
    assert raw.scores is not None
    np.testing.assert_array_equal(raw.scores > 0, seen)
    np.testing.assert_array_equal(raw.joints[seen], expected[seen][:, : raw.joints.shape[-1]])


WIDE = {
    "x0,y0,z0,v0": lambda i, axis: f"{axis}{i}",
    "x1,y1,z1,v1": lambda i, axis: f"{axis}{i + 1}",
    "x_0": lambda i, axis: f"{axis}_{i}",
    "landmark_0_x": lambda i, axis: f"landmark_{i}_{'visibility' if axis == 'v' else axis}",
    "lm_0_vis": lambda i, axis: f"lm_{i}_{'vis' if axis == 'v' else axis}",
    "Pose_0_x": lambda i, axis: f"Pose_{i}_{axis}",
    "NOSE_x": lambda i, axis: f"{MEDIAPIPE[i]}_{'visibility' if axis == 'v' else axis}",
    "nose.X": lambda i, axis: f"{MEDIAPIPE[i].lower()}.{axis.upper()}",
    "NoseX": lambda i, axis: MEDIAPIPE[i].title().replace("_", "") + axis.upper() if axis != "v" else f"v_{i}_unused",
    "x_nose": lambda i, axis: f"{axis}_{MEDIAPIPE[i].lower()}",
    "PoseLandmark.NOSE x": lambda i, axis: f"{MEDIAPIPE[i]} {axis}",
}


@pytest.mark.parametrize("layout", WIDE)
@pytest.mark.parametrize("unseen", ["", "nan"])
def test_wide_mediapipe(layout: str, unseen: str) -> None:
    content = wide(LANDMARKS, WIDE[layout], unseen=unseen)
    # Cells at the end of a line without visible joints are empty, so the frame is left out.
    joints = LANDMARKS if unseen else np.delete(LANDMARKS, 3, axis=1)
    check(content, joints, "mediapipe-33")


@pytest.mark.parametrize("leading", [(), ("timestamp",), ("file_name", "frame_number"), ("label", "time (ms)")])
def test_other_columns_are_left_out(leading: tuple[str, ...]) -> None:
    check(wide(POSE, lambda i, axis: f"{KINECT_V2[i]}_{axis}", axes="xyz", leading=leading), POSE, "ntu-25")


def test_visibility_zero_means_not_seen() -> None:
    content = wide(LANDMARKS, WIDE["NOSE_x"], unseen="0")
    check(content, LANDMARKS, "mediapipe-33")


@pytest.mark.parametrize("names", [MEDIAPIPE, [str(i) for i in range(33)], [str(i + 1) for i in range(33)]])
def test_long_mediapipe(names: list[str]) -> None:
    check(long(LANDMARKS, names, first_frame=95), LANDMARKS, "mediapipe-33")  # frames 95 to 102: not sorted as text


def test_long_table_with_persons_and_shuffled_lines() -> None:
    joints = body(NTU_25, 12, 3, persons=2)
    joints[1, :4] = 0
    lines = long(joints, KINECT_V2, header="frame,body_id,joint,x,y,z,confidence", person=True).splitlines()
    shuffled = [lines[1], *np.random.default_rng(0).permutation(lines[2:]).tolist()]
    check(b"\n".join([lines[0], *shuffled]), joints, "ntu-25")


def test_more_than_two_persons_keep_those_seen_most() -> None:
    joints = body(NTU_25, 12, 3, persons=4)
    joints[1, 3:] = 0
    joints[2, :8] = 0
    content = long(joints, KINECT_V2, header="frame,body_id,joint,x,y,z,confidence", person=True)
    kept = joints[[0, 3]]
    check(content, kept, "ntu-25")


KINECT = {
    "with a header": {},
    "without a header": {"header": ""},
    "a header for each frame": {"repeated": True},
    "blank lines": {"between": lambda t: ""},
    "frame numbers": {"between": lambda t: str(t)},
    "frame numbers without a header": {"between": lambda t: f"Frame {t}", "header": ""},
    "states by name": {"states": ("NotTracked", "Inferred", "Tracked")},
    "states by name without a header": {"states": ("NotTracked", "Inferred", "Tracked"), "header": ""},
    "semicolons and decimal commas": {"delimiter": ";", "decimal": ","},
    "tabs": {"delimiter": "\t"},
    "upper case": {"header": "JointType,Position.X,Position.Y,Position.Z,TrackingState"},
}


@pytest.mark.parametrize("layout", KINECT)
def test_blocks_of_kinect_joints(layout: str) -> None:
    check(blocks(POSE, KINECT_V2, **KINECT[layout]), POSE, "ntu-25")  # type: ignore[arg-type]


@pytest.mark.parametrize("spelling", [str.upper, str.lower, "JointType_{}".format])
def test_spellings_of_kinect_joints(spelling: Callable[[str], str]) -> None:
    check(blocks(POSE, [spelling(name) for name in KINECT_V2]), POSE, "ntu-25")


def test_kinect_v1_and_azure_names() -> None:
    first = body(NW_UCLA_20, 5, 0)
    check(blocks(first, KINECT_V1), first, "kinect-20")
    azure = body(AZURE_KINECT_32, 5, 0) * 1000
    for names in (AZURE, [f"K4ABT_JOINT_{name}" for name in AZURE], [str(i) for i in range(32)]):
        check(blocks(azure, names), azure, "azure-kinect-32")


def test_dump_of_kinect_joint_numbers() -> None:
    """Timestamp, JointID, Position.X …, Orientation.X …, State: orientations are not positions."""
    lines = [
        "Timestamp, JointID, Position.X, Position.Y, Position.Z, Orientation.X, Orientation.Y, Orientation.Z, State"
    ]
    for t, frame in enumerate(POSE[0]):
        for i, joint in enumerate(frame):
            position = ", ".join(f"{value:.7g}" for value in joint)
            lines.append(f"{33.3 * t:.1f}, {i}, {position}, 0.5, 0.5, 0.5, {2 if joint.any() else 0}")
    check("\n".join(lines).encode(), POSE, "ntu-25")


def test_utf_16_and_byte_order_mark() -> None:
    content = blocks(POSE, KINECT_V2)
    for encoding in ("utf-16", "utf-8-sig"):
        check(content.decode().encode(encoding), POSE, "ntu-25")


DESCRIBED = {
    "frame=t,joint=bone,x=px,y=py,z=pz,score=conf": long(POSE, KINECT_V2, header="t,bone,px,py,pz,conf"),
    "x=pos[{joint}]0,y=pos[{joint}]1,z=pos[{joint}]2": wide(
        POSE, lambda i, axis: f"pos[{KINECT_V2[i]}]{'xyz'.index(axis)}", axes="xyz", leading=("nr",)
    ),
    "x={joint}.X (mm),y={joint}.Y (mm),z={joint}.Z (mm)": wide(
        POSE, lambda i, axis: f"{KINECT_V2[i]}.{axis.upper()} (mm)", axes="xyz"
    ),
    "frame=nr,x=a{joint},y=b{joint},z=c{joint},score=d{joint}": wide(
        POSE, lambda i, axis: f"{'abcd'['xyzv'.index(axis)]}{i}", leading=("nr",)
    ),
}


@pytest.mark.parametrize("columns", DESCRIBED)
def test_described_columns(columns: str, tmp_path: Path) -> None:
    content = DESCRIBED[columns]
    check(content, POSE, "ntu-25", columns)
    for name in ("train/wave/a", "test/wave/b"):
        (tmp_path / "raw" / name).parent.mkdir(parents=True)
        (tmp_path / "raw" / f"{name}.csv").write_bytes(content)
    with pytest.raises(InputError, match="the skeleton is unknown"):
        convert(tmp_path / "raw", tmp_path / "out")
    dataset, _ = convert(tmp_path / "raw", tmp_path / "out", columns=columns)
    assert dataset.preparation == f"joint-csv:{columns}"
    clip = read_clip(content, dataset.preparation, dataset.skeleton, dataset.normalization)
    np.testing.assert_array_equal(clip, dataset.clip(0))
    # The example request of a served model has these columns, too.
    raw_format = find_format(dataset.preparation)
    joints = body(NTU_25, 4, 9)[0]
    encoded = raw_format.read(raw_format.encode(joints, NTU_25), NTU_25)
    assert isinstance(encoded, RawClip)
    np.testing.assert_allclose(encoded.joints[0], joints, rtol=1e-6)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("x=a", "x and y are missing"),
        ("x=a,y=b", "name the column joint, or write {joint} in each of x, y"),
        ("joint=j,x={joint}a,y=b", "has no {joint} in other columns"),
        ("x={joint}a,y=b{joint}{joint}", "once"),
        ("frame={joint},x={joint}a,y={joint}b", "may be once in x, y, z and score"),
        ("w=a,x=a,y=b", "is not of the form ROLE=COLUMN"),
        ("x=a,x=b,y=c", "each ROLE once"),
        ("x", "is not of the form"),
    ],
)
def test_description_that_is_not_valid(columns: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        parse_description(columns)
    with pytest.raises(InputError, match="--columns .*" + message):
        convert(tmp_path, tmp_path / "out", columns=columns)


def convert(path: Path, out: Path, *, skip_bad: bool = False, **options: object) -> tuple[ArrowDataset, list[str]]:
    with FORMAT.open(path, SourceOptions(**options)) as source:  # type: ignore[arg-type]
        dataset, report = write_source(source, out, skip_bad=skip_bad)
    return dataset, report.notes


def write_source_folder(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        path = folder / f"{name}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


NAMES = ("train/wave/a", "train/walk/b", "test/wave/c", "test/walk/d")


def clips(skeleton: str, *, scale: float = 1.0, down: bool = False) -> dict[str, np.ndarray]:
    """Return a clip by name, all with joints at the origin of the image or the camera's axes."""
    signs = np.array([1, -1, -1] if down else [1, 1, 1])
    return {name: body(SKELETONS[skeleton], 8 + i, i) * signs * scale for i, name in enumerate(NAMES)}


@pytest.mark.parametrize("as_zip", [False, True])
def test_kinect_data_set(tmp_path: Path, *, as_zip: bool) -> None:
    known = clips("ntu-25", scale=1000)  # millimetres
    path = write_source_folder(tmp_path / "raw", {name: blocks(joints, KINECT_V2) for name, joints in known.items()})
    if as_zip:
        path = zip_folder(path, tmp_path / "raw.zip")
    dataset, notes = convert(path, tmp_path / "out")
    assert dataset.skeleton == NTU_25
    assert dataset.classes == ("walk", "wave")
    assert dataset.clip_ids.tolist() == sorted(NAMES)
    for row, name in enumerate(dataset.clip_ids):
        raw = RawClip(rounded(known[name]))
        np.testing.assert_array_equal(dataset.clip(row), Normalization(scale=0.001).apply(raw, NTU_25)[0])
        assert dataset.classes[dataset.columns["label"][row]] == name.split("/")[1]
    assert any("taken for millimetres" in note for note in notes)


@pytest.mark.parametrize("landmarks", ["world", "image", "pixels", "y up"])
def test_mediapipe_data_set(tmp_path: Path, landmarks: str) -> None:
    known = clips("mediapipe-33", scale={"image": 0.2, "pixels": 150.0}.get(landmarks, 1.0), down=landmarks != "y up")
    if landmarks == "world":  # the origin is between the hips in each frame
        known = {name: joints - joints[:, :, 23:25].mean(axis=2, keepdims=True) for name, joints in known.items()}
    content = {name: wide(joints, WIDE["NOSE_x"]) for name, joints in known.items()}
    dataset, notes = convert(write_source_folder(tmp_path / "raw", content), tmp_path / "out")
    assert dataset.normalization is not None
    assert dataset.normalization.scaling == ("constant" if landmarks == "world" else "torso")
    assert dataset.normalization.up == ("y" if landmarks == "y up" else "-y")
    for row in range(len(dataset)):
        clip = dataset.clip(row)
        shoulders, hips = clip[..., 11:13, 1].mean(), clip[..., 23:25, 1].mean()
        assert shoulders - hips == pytest.approx(0.5, abs=0.1)  # upright, with a torso of half a metre
    assert any(("world" if landmarks == "world" else "image") + " landmarks" in note for note in notes)


def test_azure_kinect_is_turned_upright(tmp_path: Path) -> None:
    content = {name: blocks(j, AZURE) for name, j in clips("azure-kinect-32", scale=1000, down=True).items()}
    dataset, _ = convert(write_source_folder(tmp_path / "raw", content), tmp_path / "out")
    assert dataset.normalization is not None
    assert (dataset.normalization.scale, dataset.normalization.up) == (0.001, "-y")


def test_table_of_labels_may_be_in_the_folder(tmp_path: Path) -> None:
    content = {name.replace("/", "_"): blocks(joints, KINECT_V2) for name, joints in clips("ntu-25").items()}
    path = write_source_folder(tmp_path / "raw", content)
    rows = [f"{name}{'.csv' * (i % 2)},{name.split('_')[1]},{i}" for i, name in enumerate(content, 1)]
    (path / "labels.csv").write_text("\n".join(["clip_id,label,subject", *rows]))
    assert [one.name for one in SOURCE_FORMATS if one.recognizes(path)] == ["joint-csv"]
    dataset, notes = convert(path, tmp_path / "out", labels=path / "labels.csv", benchmarks=("x-sub:subject=1,2",))
    assert len(dataset) == 4
    assert not any("not in the table" in note for note in notes)


GOOD = blocks(POSE, KINECT_V2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a table"),
        (b"a;b\n1;2\n", "is not a table"),
        (b"clip_id,label,subject\na,b,1\n", "no columns of joints that are recognized"),
        (GOOD.replace(b"Tracked", b"").replace(b",2\n", b",maybe\n", 1), "has 'maybe' on line 3"),
        (GOOD.replace(b"0.", b"x.", 1), "instead of a number"),
        (GOOD.replace(b"Head,0.", b"Head,1e99,0.", 1), "instead of a number"),
        (GOOD.replace(b"Head,", b"Head,,", 1), "lacks some coordinates of a joint on line 5"),
        (GOOD.replace(b"Head,", b"Neck,"), ""),  # a joint that repeats begins another frame
        (GOOD.replace(b"\n", b'\n"', 1), "EOF|line|no line of joints|field"),
        (b"\xff" + GOOD, "is not UTF-8 text"),
        (blocks(POSE, KINECT_V2)[: len(b"Joint,x,y,z,state\n")], "has no line of joints"),
        (blocks(body(NW_UCLA_20, 4, 0), [str(i) for i in range(20, 40)]), "but not 25 of skeleton ntu-25"),
        (wide(POSE[:, :, :20], lambda i, axis: f"{axis}{i}"), "but not 5 of skeleton ntu-25"),
        (wide(LANDMARKS, lambda i, axis: f"{axis}{i}"), "but not 25 of skeleton ntu-25"),
        (GOOD.replace(b"Joint,x,y,z,state", b"a,b,c"), "no columns of joints"),
        (b"1,2,3,4,5,6,7\n" * 3, "has no header, and 7 cells"),
        (long(POSE, KINECT_V2).replace(b"Head", b"Neck"), "has joint Neck twice in frame 0"),
        (("x,y," * 40_000).encode() + b"\n1,2\n", "no columns of joints|field larger"),
        (b"joint,x,y\n" + b"".join(b"%d,1,1\n" % i for i in range(20_000)), "20,000 different joints"),
    ],
)
def test_damaged_file_is_refused_in_one_line(content: bytes, message: str) -> None:
    if not message:
        assert read_joints(content, NTU_25).joints.shape[1] > POSE.shape[1]
        return
    with pytest.raises(InputError, match=message) as error:
        read_clip(content, "joint-csv", NTU_25, Normalization())
    assert "\n" not in str(error.value)


def test_many_frames_are_refused_before_memory_is_used() -> None:
    content = b"joint,x,y,z\n" + b"Head,1,1,1\n" * 60_000
    with pytest.raises(ClipError, match="but not 24 of skeleton"):
        read_joints(content, NTU_25)
    rows = b"".join(b"%d,Head,1,1,1\n" % t for t in range(60_000))
    names = b"".join(b"0,%s,1,1,1\n" % name.encode() for name in KINECT_V2 if name != "Head")
    with pytest.raises(ClipError, match="has more than 50,000 frames"):
        read_joints(b"frame,joint,x,y,z\n" + names + rows, NTU_25)


def test_spellings_of_a_joint() -> None:
    for spelling in ("ShoulderLeft", "Shoulder_Left", "shoulderleft", "LEFT_SHOULDER", "left shoulder", "LShoulder"):
        assert canonical(spelling) == canonical("left_shoulder")
    assert canonical("K4ABT_JOINT_HANDTIP_RIGHT") == canonical("right_hand_tip")
    assert canonical("SpineShoulder") == canonical("spine_at_shoulders")
    for skeleton in SKELETONS.values():
        assert len({canonical(joint) for joint in skeleton.joints}) == skeleton.num_joints


def test_recognition(tmp_path: Path) -> None:
    path = write_source_folder(tmp_path / "raw", {"a": wide(LANDMARKS, WIDE["NOSE_x"])})
    assert [one.name for one in SOURCE_FORMATS if one.recognizes(path)] == ["joint-csv"]
    long_clip = blocks(body(NTU_25, 100, 0), KINECT_V2, between=lambda t: "ä")  # longer than what is looked at
    for content in (long_clip, long_clip.decode().encode("utf-16")):
        (path / "a.csv").write_bytes(content)
        assert [one.name for one in SOURCE_FORMATS if one.recognizes(path)] == ["joint-csv"]
    (path / "a.csv").write_text("clip_id,label,subject\na,wave,1\n")
    assert not any(one.recognizes(path) for one in SOURCE_FORMATS)
    (path / "a.csv").write_bytes(b"\x00" * 100)
    assert not any(one.recognizes(path) for one in SOURCE_FORMATS)
