"""File names, action classes and benchmarks of NTU RGB+D 60 and 120."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fgst.data.sources import ClipError
from fgst.data.splits import Benchmark

ACTIONS = (
    "drink water", "eat meal/snack", "brushing teeth", "brushing hair", "drop", "pickup", "throw", "sitting down",
    "standing up", "clapping", "reading", "writing", "tear up paper", "wear jacket", "take off jacket", "wear a shoe",
    "take off a shoe", "wear on glasses", "take off glasses", "put on a hat/cap", "take off a hat/cap", "cheer up",
    "hand waving", "kicking something", "reach into pocket", "hopping (one foot jumping)", "jump up",
    "make a phone call/answer phone", "playing with phone/tablet", "typing on a keyboard",
    "pointing to something with finger", "taking a selfie", "check time (from watch)", "rub two hands together",
    "nod head/bow", "shake head", "wipe face", "salute", "put the palms together", "cross hands in front (say stop)",
    "sneeze/cough", "staggering", "falling", "touch head (headache)", "touch chest (stomachache/heart pain)",
    "touch back (backache)", "touch neck (neckache)", "nausea or vomiting condition",
    "use a fan (with hand or paper)/feeling warm", "punching/slapping other person", "kicking other person",
    "pushing other person", "pat on back of other person", "point finger at the other person",
    "hugging other person", "giving something to other person", "touch other person's pocket", "handshaking",
    "walking towards each other", "walking apart from each other", "put on headphone", "take off headphone",
    "shoot at the basket", "bounce ball", "tennis bat swing", "juggling table tennis balls", "hush (quiet)",
    "flick hair", "thumb up", "thumb down", "make ok sign", "make victory sign", "staple book", "counting money",
    "cutting nails", "cutting paper (using scissors)", "snapping fingers", "open bottle", "sniff (smell)",
    "squat down", "toss a coin", "fold paper", "ball up paper", "play magic cube", "apply cream on face",
    "apply cream on hand back", "put on bag", "take off bag", "put something into a bag",
    "take something out of a bag", "open a box", "move heavy objects", "shake fist", "throw up cap/hat",
    "hands up (both hands)", "cross arms", "arm circles", "arm swings", "running on the spot",
    "butt kicks (kick backward)", "cross toe touch", "side kick", "yawn", "stretch oneself", "blow nose",
    "hit other person with something", "wield knife towards other person", "knock over other person (hit with body)",
    "grab other person's stuff", "shoot at other person with a gun", "step on foot", "high-five", "cheers and drink",
    "carry something with other person", "take a photo of other person", "follow other person",
    "whisper in other person's ear", "exchange things with other person", "support somebody with hand",
    "finger-guessing game (playing rock-paper-scissors)",
)  # fmt: skip

X_SUB_60 = (1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38)
X_SUB_120 = (
    *X_SUB_60, 45, 46, 47, 49, 50, 52, 53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84, 85, 86, 89, 91, 92,
    93, 94, 95, 97, 98, 100, 103,
)  # fmt: skip


@dataclass(frozen=True)
class Edition:
    """An edition of the data set: NTU RGB+D 60, or 120, which includes it.

    Attributes:
        name: name of the Arrow data set.
        actions, setups, subjects: the largest number of each; all are counted from 1.
        benchmarks: the official ones; the first is the default.
    """

    name: str
    actions: int
    setups: int
    subjects: int
    benchmarks: tuple[Benchmark, ...]


EDITIONS = {
    "60": Edition(
        "ntu-60", 60, 17, 40,
        (Benchmark("x-sub", "subject", X_SUB_60), Benchmark("x-view", "camera", train=(2, 3), test=(1,))),
    ),
    "120": Edition(
        "ntu-120", 120, 32, 106,
        (
            Benchmark("x-sub", "subject", X_SUB_120),
            Benchmark("x-set", "setup", train=tuple(range(2, 33, 2)), test=tuple(range(1, 33, 2))),
        ),
    ),
}  # fmt: skip

_NAME = re.compile(r"S([0-9]{3})C([0-9]{3})P([0-9]{3})R([0-9]{3})A([0-9]{3})")


@dataclass(frozen=True)
class ClipName:
    """The numbers in a file name, each from 1; the subject is the performer."""

    setup: int
    camera: int
    subject: int
    replication: int
    action: int


def parse_name(name: str) -> ClipName:
    """Parse a name such as ``S001C002P003R002A013``.

    Raises:
        ClipError: if it is not the name of a clip of either edition.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ClipError("is not named like a clip, e.g. S001C001P001R001A001.skeleton")
    clip = ClipName(*map(int, match.groups()))
    widest = EDITIONS["120"]
    for column, value, highest in (
        ("setup", clip.setup, widest.setups),
        ("camera", clip.camera, 3),
        ("subject", clip.subject, widest.subjects),
        ("replication", clip.replication, 2),
        ("action", clip.action, widest.actions),
    ):
        if not 1 <= value <= highest:
            raise ClipError(f"is named after {column} {value}; valid are 1 to {highest}")
    return clip


def belongs(clip: ClipName, edition: Edition) -> bool:
    """Return whether a clip is part of an edition; NTU-120 adds actions 61 to 120, recorded in setups 18 to 32."""
    return clip.action <= edition.actions and clip.setup <= edition.setups and clip.subject <= edition.subjects
