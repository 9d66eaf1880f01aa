"""Columns of tables of joints: which of them is a frame, a person, a joint, a coordinate or a confidence.

A table is *long*, with a line per joint and a column that names it, or *wide*, with a line per frame and columns for
each joint, such as ``left_hip_x`` or ``x23``. The usual headers are recognized; a description names the columns of any
other: ``frame=t,joint=bone,x=px,y=py,z=pz,score=conf`` of a long table, ``x={joint}_px,y={joint}_py`` of a wide one.
Joints are given by name, in the spelling of a skeleton or of a camera's software, or by number, from 0 or 1.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import SKELETONS
from fgst.parsing import shorten

JOINT = "{joint}"  # stands for the joint's name or number in a description of a wide table
ROLES = ("frame", "person", "joint", "x", "y", "z", "score")
_FRAME = {"frame", "framenumber", "framenum", "frameno", "frameindex", "frameid", "frameidx"}
_TIME = {"timestamp", "timestampms", "time", "timems", "timesec", "times"}
_PERSON = {"person", "personid", "body", "bodyid", "bodyindex", "trackingid", "trackid", "user", "userid", "skeletonid"}
_NAME = {
    "joint", "jointid", "jointname", "jointtype", "jointindex", "landmark", "landmarkid", "landmarkname",
    "landmarkindex", "keypoint", "keypointid", "keypointname", "keypointindex", "bodypart",
}  # fmt: skip
_SCORE = {
    "v", "vis", "visibility", "c", "conf", "confidence", "confidencelevel", "score", "likelihood", "state",
    "trackingstate", "jointstate", "status",
}  # fmt: skip
_COORDINATE = re.compile(r"(?:position|pos|world|camera|coord|coordinate)?([xyz])")
_ROLE = "x|y|z|v|vis|visibility|c|conf|confidence|score|likelihood|state"
_WIDE = (
    re.compile(rf"(?P<role>{_ROLE})[ _.\-\[]*(?P<joint>[0-9]+)\]?", re.IGNORECASE),  # x0, x_0, v[0]
    re.compile(rf"(?P<joint>.+?)[ _.\-:/]+(?P<role>{_ROLE})", re.IGNORECASE),  # left_hip_x, landmark_0_visibility
    re.compile(r"(?P<joint>.*[a-z0-9])(?P<role>[XYZ])"),  # HipLeftX
    re.compile(rf"(?P<role>{_ROLE})[ _.\-:/](?P<joint>.+)", re.IGNORECASE),  # x_left_hip
)
# Words before a number that say no more than that it is a joint's.
_NUMBERED = re.compile(
    r"(?:pose|body)?[ _.\-]?(?:world)?[ _.\-]?(?:landmarks?|lm|joint|keypoint|kp|point|p|j)?[ _.\-\[]*([0-9]{1,5})\]?",
    re.IGNORECASE,
)
MAX_CELL = 100  # characters of a header's cell that is searched for a joint
_ALIASES = {
    "spinebase": "baseofspine", "spinemid": "midspine", "spineshoulder": "spineatshoulders", "spinenaval": "spinenavel",
}  # fmt: skip
_MIN_JOINTS = 5  # of a wide table, to be taken for one of joints
_PLANE_ONLY = ("body-25", "openpose-18", "coco-17")  # skeletons of estimators that have no z


@dataclass(frozen=True)
class Point:
    """Indices of the columns with a joint's coordinates and confidence."""

    x: int
    y: int
    z: int | None = None
    score: int | None = None


@dataclass(frozen=True)
class Columns:
    """Indices of columns.

    Attributes:
        frame: the number or the time of the frame; without it, frames are in the order of the lines.
        person: the person's id; without it, there is one person.
        joint: the joint's name or number in a long table; ``None`` in a wide one.
        points: the coordinates, by joint in a wide table; only "" in a long one.
    """

    frame: int | None = None
    person: int | None = None
    joint: int | None = None
    points: Mapping[str, Point] = field(default_factory=dict)

    @property
    def has_depth(self) -> bool:
        return all(point.z is not None for point in self.points.values())


def parse_description(text: str) -> dict[str, str]:
    """Parse a description of columns; "" describes none.

    Returns:
        Names of columns by role.

    Raises:
        ValueError: if it is not valid; the message says why.
    """
    names: dict[str, str] = {}
    for part in text.split(",") if text else []:
        role, equals, name = part.partition("=")
        role, name = role.strip(), name.strip()
        if not equals or not name or role not in ROLES or role in names:
            raise ValueError(f"{part!r} is not of the form ROLE=COLUMN with each ROLE once, one of {', '.join(ROLES)}")
        names[role] = name
    if not names:
        return names
    if not names.keys() >= {"x", "y"}:
        raise ValueError("x and y are missing")
    wide = {role for role, name in names.items() if JOINT in name}
    if wide & {"frame", "person", "joint"} or any(name.count(JOINT) > 1 for name in names.values()):
        raise ValueError(f"{JOINT} may be once in x, y, z and score")
    coordinates = names.keys() & {"x", "y", "z", "score"}
    if "joint" in names and wide:
        raise ValueError(f"a table with a column joint has no {JOINT} in other columns")
    if "joint" not in names and wide != coordinates:
        raise ValueError(f"name the column joint, or write {JOINT} in each of {', '.join(sorted(coordinates))}")
    return names


def find_columns(header: Sequence[str], description: Mapping[str, str]) -> Columns:
    """Find the columns of a table of joints by its header.

    Raises:
        ValueError: if it is not one, or lacks a column of the description.
    """
    return _described(header, description) if description else _recognized(header)


def _described(header: Sequence[str], description: Mapping[str, str]) -> Columns:
    index = {name: i for i, name in enumerate(header)}

    def find(role: str) -> int | None:
        if role not in description:
            return None
        if description[role] not in index:
            raise ValueError(
                f"has no column {description[role]!r} ({role}); its header is {shorten(', '.join(header), 120)}"
            )
        return index[description[role]]

    frame, person = find("frame"), find("person")
    if "joint" in description:
        x, y = find("x"), find("y")
        assert x is not None
        assert y is not None
        return Columns(frame, person, find("joint"), {"": Point(x, y, find("z"), find("score"))})
    cells: dict[str, dict[str, int]] = {}
    for role in ("x", "y", "z", "score"):
        if role in description:
            before, after = description[role].split(JOINT)
            for name, i in index.items():
                if name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after):
                    cells.setdefault(name[len(before) : len(name) - len(after)], {})[role] = i
    return Columns(frame, person, None, _points(cells, required=description.keys() & {"x", "y", "z"}))


def _recognized(header: Sequence[str]) -> Columns:
    plain = [re.sub(r"[^a-z0-9]", "", cell.lower()) for cell in header]

    def first(names: Collection[str]) -> int | None:
        return next((i for i, name in enumerate(plain) if name in names), None)

    frame = first(_FRAME)
    frame = first(_TIME) if frame is None else frame
    person, joint = first(_PERSON), first(_NAME)
    axes: dict[str, int] = {}
    for i, name in enumerate(plain):
        if match := _COORDINATE.fullmatch(name):
            axes.setdefault(match[1], i)
    if joint is not None and axes.keys() >= {"x", "y"}:
        return Columns(frame, person, joint, {"": Point(axes["x"], axes["y"], axes.get("z"), first(_SCORE))})
    cells: dict[str, dict[str, int]] = {}
    for i, cell in enumerate(header):
        if len(cell) > MAX_CELL or i in (frame, person):
            continue
        match = next((match for pattern in _WIDE if (match := pattern.fullmatch(cell))), None)
        if match is None:
            continue
        role = match["role"].lower()
        role = role if role in "xyz" else "score"
        key = _joint_key(match["joint"])
        if role in cells.setdefault(key, {}) and role != "score":
            raise ValueError(f"has several columns for {role} of joint {shorten(key, 40)}")
        cells[key].setdefault(role, i)
    points = _points(cells, required={"x", "y"})
    if len(points) < _MIN_JOINTS:
        raise ValueError(
            f"has no columns of joints that are recognized; its header is {shorten(', '.join(header), 120)}"
        )
    if not all(point.z is not None for point in points.values()):  # z of some joints only would be of no use
        points = {joint: Point(point.x, point.y, None, point.score) for joint, point in points.items()}
    return Columns(frame, person, None, points)


def _points(cells: Mapping[str, Mapping[str, int]], required: Iterable[str]) -> dict[str, Point]:
    needed = set(required)
    return {
        joint: Point(found["x"], found["y"], found.get("z"), found.get("score"))
        for joint, found in cells.items()
        if needed <= found.keys()
    }


def _joint_key(text: str) -> str:
    """Return a joint's number, or its name."""
    match = _NUMBERED.fullmatch(text)
    return str(int(match[1])) if match else text


def canonical(name: str) -> str:
    """Return the spelling of a joint's name that all spellings of it have in common.

    ``ShoulderLeft``, ``left_shoulder``, ``LShoulder`` and ``K4ABT_JOINT_SHOULDER_LEFT`` are the same.
    """
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", re.sub(r"([A-Z])([A-Z][a-z])", r"\1 \2", name))
    words = [word for word in re.split(r"[^a-z0-9]+", spaced.lower()) if word not in ("", "k4abt", "joint", "type")]
    sides = {"l": "left", "r": "right", "left": "left", "right": "right"}
    side = next((sides[word] for word in words if word in sides), "")
    rest = "".join(word for word in words if word not in sides).replace("center", "centre")
    if not side:
        for one in ("left", "right"):
            if rest != one and (rest.startswith(one) or rest.endswith(one)):
                side, rest = one, rest.removeprefix(one) if rest.startswith(one) else rest.removesuffix(one)
                break
    return f"{side} {_ALIASES.get(rest, rest)}"


def resolve(joints: Collection[str], skeleton: Skeleton) -> dict[str, int]:
    """Return the index in a skeleton of each joint's name or number; names of no joint are missing.

    Numbers count from 0, or from 1 if 0 does not occur and N does. If a number is too large, the joints are those of
    another skeleton, and none is found.
    """
    N = skeleton.num_joints
    numbers = {joint: int(joint) for joint in joints if re.fullmatch(r"[0-9]{1,5}", joint)}
    if numbers:
        start = 1 if 0 not in numbers.values() and N in numbers.values() else 0
        fits = max(numbers.values()) - start < N
        return {joint: number - start for joint, number in numbers.items()} if fits else {}
    index = {canonical(name): i for i, name in enumerate(skeleton.joints)}
    found: dict[str, int] = {}
    for joint in joints:
        i = index.get(canonical(joint))
        if i is not None and i not in found.values():
            found[joint] = i
    return found


def find_skeleton(joints: Collection[str], *, has_depth: bool) -> Skeleton | None:
    """Return the skeleton that ships and has these joints, by name or by their number; ``None`` if there is none."""
    numbers = {int(joint) for joint in joints if re.fullmatch(r"[0-9]{1,5}", joint)}
    if numbers:
        count = max(numbers) + (0 if 0 not in numbers else 1)
        fitting = [key for key, one in SKELETONS.items() if one.num_joints == count]
        fitting = [key for key in fitting if (key in _PLANE_ONLY) != has_depth] or fitting
        return SKELETONS[fitting[0]] if len(fitting) == 1 else None
    complete = [one for one in SKELETONS.values() if len(resolve(joints, one)) == one.num_joints]
    return max(complete, key=lambda one: one.num_joints, default=None)
