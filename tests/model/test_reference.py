"""The whole network, compared with a loop-based implementation of Eq. 1-5 that shares only the parameters with it.

The reference loops over clips, persons, frames, joints, heads and taps. A feature is a NumPy vector of C channels, and
all products are of a matrix and a vector or of two vectors.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from fgst.config import ModelConfig
from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import NTU_25, NW_UCLA_20
from fgst.model import FGSTFormer
from tests.support.numerics import assert_close

NORM_EPSILON = 1e-5
NEGATIVE_SLOPE = 0.01  # of the leaky_relu ReLU
NUM_CLASSES = 5

# The ten parts, with joints numbered from 1 as in the literature. The partition into five parts merges the parts of the
# trunk, of each arm and of each leg.
TEN_PARTS = {
    "nw-ucla-20": [[3, 4], [1, 2], [5, 6], [7, 8], [9, 10], [11, 12], [13, 14], [15, 16], [17, 18], [19, 20]],
    "ntu-25": [
        [3, 4], [1, 2, 21], [5, 6], [7, 8, 22, 23], [9, 10], [11, 12, 24, 25], [13, 14], [15, 16], [17, 18], [19, 20],
    ],
}  # fmt: skip


def partition_of(config: ModelConfig, skeleton: Skeleton) -> list[list[int]]:
    """Return the parts as lists of joints, numbered from 0, in the order of their concatenated features."""
    ten = [[joint - 1 for joint in part] for part in TEN_PARTS[skeleton.name]]
    if config.parts == 10:
        return ten
    if config.parts == 5:
        head, torso, *limbs = ten
        return [torso + head] + [limbs[i] + limbs[i + 1] for i in range(0, 8, 2)]
    if config.parts == 1:
        head, torso, *limbs = ten
        return [[joint for part in (torso, head, *limbs) for joint in part]]
    if config.parts == skeleton.num_joints:
        return [[joint] for joint in range(skeleton.num_joints)]
    assert not isinstance(config.parts, int)
    return [[skeleton.joints.index(name) for name in part] for part in config.parts]


def leaky_relu(x: np.ndarray) -> np.ndarray:
    return np.array([value if value > 0 else NEGATIVE_SLOPE * value for value in x])


def total(vectors: Iterable[np.ndarray]) -> np.ndarray:
    """Add vectors, of which there must be at least one."""
    return functools.reduce(operator.add, vectors)


def softmax(logits: list[float]) -> list[float]:
    highest = max(logits)
    powers = [math.exp(logit - highest) for logit in logits]
    return [power / sum(powers) for power in powers]


def sine_cosine(position: int, channels: int) -> np.ndarray:
    """PE(pos, 2i) = sin(pos / 10000^(2i / C)), PE(pos, 2i + 1) = cos(pos / 10000^(2i / C))."""
    code = np.zeros(channels)
    for channel in range(channels):
        angle = position / 10_000 ** (2 * (channel // 2) / channels)
        code[channel] = math.sin(angle) if channel % 2 == 0 else math.cos(angle)
    return code


@dataclass
class Reference:
    """Reference implementation of the network; ``weights`` contains the arrays of its ``state_dict``."""

    weights: dict[str, np.ndarray]
    config: ModelConfig
    skeleton: Skeleton

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        y = self.weights[f"{name}.weight"] @ x
        return y + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else y

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        if f"{name}.running_mean" in self.weights:
            mean, variance = self.weights[f"{name}.running_mean"], self.weights[f"{name}.running_var"]
        else:
            mean, variance = sum(x) / len(x), sum((x - sum(x) / len(x)) ** 2) / len(x)
        scaled = (x - mean) / np.sqrt(variance + NORM_EPSILON)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def qkv(self, name: str, x: np.ndarray, heads: int) -> list[list[np.ndarray]]:
        """Return queries, keys and values of one token, ``[piece][head]``; the weights' rows are in that order."""
        rows = self.linear(name, x)
        width = len(rows) // (3 * heads)
        return [
            [rows[(piece * heads + head) * width : (piece * heads + head + 1) * width] for head in range(heads)]
            for piece in range(3)
        ]

    def attention(
        self,
        queries: list[np.ndarray],
        keys: list[np.ndarray],
        values: list[np.ndarray],
        global_map: np.ndarray | None = None,
    ) -> list[np.ndarray]:
        """Compute Eq. 1 for one head; the global map, if there is one, is added after the softmax."""
        out = []
        for i, query in enumerate(queries):
            row = softmax([float(query @ key) / math.sqrt(len(query)) for key in keys])
            if global_map is not None:
                row = [weight + float(added) for weight, added in zip(row, global_map[i], strict=True)]
            out.append(total(weight * value for weight, value in zip(row, values, strict=True)))
        return out

    def normed(self, name: str, x: np.ndarray) -> np.ndarray:
        return self.norm(f"{name}.norm", self.linear(f"{name}.linear", x))

    def finish(self, name: str, tokens: list[np.ndarray], heads: list[list[np.ndarray]]) -> list[np.ndarray]:
        """Apply W_O, norm, residual and FFN to the heads, ``[head][token]``."""
        result = []
        for i, token in enumerate(tokens):
            y = token + self.normed(f"{name}.out", np.concatenate([head[i] for head in heads]))
            result.append(y + leaky_relu(self.normed(f"{name}.ffn", y)))
        return result

    def basic_sformer(
        self, name: str, tokens: list[np.ndarray], codes: list[np.ndarray], group: int = 0
    ) -> list[np.ndarray]:
        """Apply Fig. 3a to one frame; ``group`` selects one of the block's global maps."""
        H = self.config.spatial_heads
        prefix, global_maps = f"{name}.projections", self.weights.get(f"{name}.global_maps.{group}", [None] * H)
        projected = [self.qkv(f"{prefix}.qkv", token + code, H) for token, code in zip(tokens, codes, strict=True)]
        heads = []
        for h in range(H):
            queries, keys, values = ([token[piece][h] for token in projected] for piece in range(3))
            heads.append(self.attention(queries, keys, values, global_maps[h]))
        return self.finish(prefix, tokens, heads)

    def cross(
        self,
        name: str,
        joints: list[np.ndarray],
        parts: list[np.ndarray],
        joint_codes: list[np.ndarray],
        part_codes: list[np.ndarray],
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Apply Fig. 3b and Eq. 4 to one frame, in both directions from the same features."""
        H = self.config.spatial_heads
        name_j, name_p = (f"{name}.projections.{0 if self.config.shared_branches else side}" for side in (0, 1))
        projected_joints = [self.qkv(f"{name_j}.qkv", x + c, H) for x, c in zip(joints, joint_codes, strict=True)]
        projected_parts = [self.qkv(f"{name_p}.qkv", x + c, H) for x, c in zip(parts, part_codes, strict=True)]
        to_joints, to_parts = [], []
        for h in range(H):
            q_j, k_j, v_j = ([token[piece][h] for token in projected_joints] for piece in range(3))
            q_p, k_p, v_p = ([token[piece][h] for token in projected_parts] for piece in range(3))
            to_joints.append(self.attention(q_j, k_p, v_p))
            to_parts.append(self.attention(q_p, k_j, v_j))
        return self.finish(name_j, joints, to_joints), self.finish(name_p, parts, to_parts)

    def temporal(self, name: str, track: list[np.ndarray], width: int) -> list[np.ndarray]:
        """Apply Eq. 5 to the frames of one joint or part; ``width`` is the output width."""
        stride = 2 if width > len(track[0]) else 1
        T, heads = len(track), len(self.config.dilations)
        encoded = [x + sine_cosine(t, len(x)) for t, x in enumerate(track)]
        strided = range(0, T, stride)
        d = width // heads
        has_attention, has_convolution = self.config.temporal != "convolution", self.config.temporal != "attention"
        # W_Q of all heads, then W_K, and W_V if the values are not convolutions
        rows = [self.linear(f"{name}.projection", encoded[t]) for t in strided] if has_attention else []
        results = []
        for h, dilation in enumerate(self.config.dilations):
            if has_convolution:
                values = [self.convolve(f"{name}.tcn.{h}", encoded, t, dilation) for t in strided]
            else:
                values = [row[(2 * heads + h) * d : (2 * heads + h + 1) * d] for row in rows]
            if not has_attention:
                results.append(values)
                continue
            queries = [row[h * d : (h + 1) * d] for row in rows]
            keys = [row[(heads + h) * d : (heads + h + 1) * d] for row in rows]
            fused = self.attention(queries, keys, values)
            if has_convolution:
                linear = f"{name}.head_linear.{h}"
                fused = [self.linear(linear, f) + v for f, v in zip(fused, values, strict=True)]
            results.append(fused)
        out = []
        for i, t in enumerate(strided):
            joined = np.concatenate([result[i] for result in results])
            shortcut = track[t] if stride == 1 else self.linear(f"{name}.shortcut", track[t])
            out.append(leaky_relu(self.normed(f"{name}.out", joined)) + shortcut)
        return out

    def convolve(self, name: str, frames: list[np.ndarray], t: int, dilation: int) -> np.ndarray:
        """Compute a dilated convolution over the frames of a joint at frame ``t``, with zeros outside the clip."""
        taps = self.weights[f"{name}.weight"]  # (d, C_in, k_t, 1)
        value = self.weights[f"{name}.bias"].copy()
        for tap in range(self.config.kernel_size):
            source = t + (tap - (self.config.kernel_size - 1) // 2) * dilation
            if 0 <= source < len(frames):
                value += taps[:, :, tap, 0] @ frames[source]
        return value

    def tracks(self, name: str, frames: list[list[np.ndarray]], width: int) -> list[list[np.ndarray]]:
        """Apply :meth:`temporal` to every token of ``frames[t][token]``."""
        tracks = [self.temporal(name, [frame[n] for frame in frames], width) for n in range(len(frames[0]))]
        return [[track[t] for track in tracks] for t in range(len(tracks[0]))]

    def focal(self, joints: list[np.ndarray]) -> tuple[list[np.ndarray], list[int]]:
        """Compute Eq. 2 and 3 for one frame: features and numbers of the selected joints."""
        direction = self.weights["focal.projection"]
        length = math.sqrt(sum(value**2 for value in direction))
        scores = [1 / (1 + math.exp(-float(x @ direction) / length)) for x in joints]
        ranking = sorted(range(len(joints)), key=lambda n: -scores[n])[: self.config.focal_joints]
        if self.config.focal_order == "joint":
            ranking = sorted(ranking)
        return [joints[n] * (scores[n] if self.config.focal_gate else 1) for n in ranking], ranking

    def part_features(self, joints: list[np.ndarray], partition: list[list[int]]) -> list[np.ndarray]:
        largest = max(len(part) for part in partition)
        out = []
        for part in partition:
            slots = [joints[n] for n in part] + [np.zeros_like(joints[0])] * (largest - len(part))
            out.append(self.linear("parts.linear", np.concatenate(slots)))
        return out

    def person(self, coordinates: np.ndarray) -> tuple[np.ndarray, list[list[int]]]:
        """Return the concatenated averages of both branches for ``(T, N, 3)``, and the focal joints of each frame."""
        config, N = self.config, self.skeleton.num_joints
        frames = []
        for frame in coordinates:
            normed = self.norm("input_norm", frame.reshape(-1))  # channel n·3 + c
            frames.append([self.linear("embedding", normed[3 * n : 3 * n + 3]) for n in range(N)])
        for layer, width in enumerate(config.channels[: config.stage1_layers]):
            all_codes = [sine_cosine(n, len(frames[0][0])) for n in range(N)]
            frames = [self.basic_sformer(f"stage1.{layer}.spatial", features, all_codes) for features in frames]
            frames = self.tracks(f"stage1.{layer}.temporal", frames, width)

        all_joints = list(range(N))
        selected = [self.focal(frame) if config.focal_selection else (frame, all_joints) for frame in frames]
        joints, focal = [features for features, _ in selected], [ranking for _, ranking in selected]
        partition = partition_of(config, self.skeleton) if config.part_branch else []
        parts = [self.part_features(frame, partition) for frame in frames] if partition else []
        indices, branches = focal, [joints, parts] if partition else [joints]  # indices[t]: joints of frame t
        for layer, width in enumerate(config.channels[config.stage1_layers :]):
            name, width_in = f"stage2.{layer}", len(joints[0][0])
            block = [0, 0] if config.shared_branches else [0, 1]  # index of the block of each branch
            part_codes = [sine_cosine(p, width_in) for p in range(len(partition))]
            for t in range(len(joints)):
                # The position of a focal joint is the index of the joint in the skeleton.
                codes = [[sine_cosine(n, width_in) for n in indices[t]], part_codes]
                outputs = [
                    self.basic_sformer(f"{name}.spatial.{block[i]}", branch[t], codes[i], i - block[i])
                    for i, branch in enumerate(branches)
                ]
                if config.cross_attention:
                    outputs = list(self.cross(f"{name}.cross", *outputs, *codes))
                for branch, output in zip(branches, outputs, strict=True):
                    branch[t] = output
            if width > width_in:
                indices = indices[::2]
            branches = [self.tracks(f"{name}.temporal.{block[i]}", branch, width) for i, branch in enumerate(branches)]
            joints = branches[0]

        def average(branch: list[list[np.ndarray]], number: int) -> np.ndarray:
            rows = [x for features in branch for x in features]
            if config.final_norm:
                rows = [self.norm(f"final_norm.{0 if config.shared_branches else number}.norm", row) for row in rows]
            return total(rows) / len(rows)

        return np.concatenate([average(branch, number) for number, branch in enumerate(branches)]), focal

    def scores(self, clips: np.ndarray) -> np.ndarray:
        """Return the scores of clips, ``(B, M, T, N, 3)`` → ``(B, num_classes)``."""
        rows = []
        for clip in clips:
            persons = [self.person(person)[0] for person in clip if np.any(person != 0)]
            pooled = total(persons) / len(persons)
            rows.append(self.linear("head.3", leaky_relu(self.linear("head.0", pooled))))
        return np.stack(rows)


def randomize(model: FGSTFormer, seed: int) -> None:
    """Set every parameter and running statistic to a random value of realistic magnitude."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(0.5 + noise.abs())
        elif name.endswith("running_mean"):
            tensor.copy_(0.5 * noise)
        elif name.endswith("num_batches_tracked"):
            continue
        elif name == "focal.projection":
            tensor.copy_(3 * noise)  # far from unit length, so that the division by its norm matters
        elif name.endswith("weight") and tensor.dim() > 1:
            tensor.copy_(noise / math.sqrt(tensor[0].numel()))
        else:
            tensor.copy_(0.4 * noise + (1 if "norm" in name and name.endswith("weight") else 0))


def make_clips(B: int, M: int, T: int, N: int, seed: int) -> np.ndarray:
    """Return clips of moving persons; of two persons, the second is present in the first clip only."""
    rng = np.random.default_rng(seed)
    clips = rng.normal(size=(B, M, 1, N, 3)) + 0.7 * rng.normal(size=(B, M, T, N, 3))
    if M == 2:
        clips[1:, 1] = 0
    return clips


UNEVEN = (
    ("head", "shoulder_centre", "spine", "hip_centre", "left_shoulder"),
    ("right_hand", "left_hand"),
    ("left_elbow", "left_wrist", "right_shoulder", "right_elbow", "right_wrist"),
    ("left_hip",),
    ("right_foot", "right_hip", "right_knee", "right_ankle", "left_knee", "left_ankle", "left_foot"),
)

# (skeleton, persons, frames, changes to a configuration of eight channels).
CASES: dict[str, tuple[Skeleton, int, int, dict[str, Any]]] = {
    "ucla": (NW_UCLA_20, 1, 6, {}),
    "ntu two persons": (NTU_25, 2, 5, {}),
    "widths double once": (NTU_25, 1, 7, {"channels": (8, 16, 16), "stage1_layers": 2}),
    "widths double twice": (NW_UCLA_20, 2, 9, {"channels": (8, 16, 32), "stage1_layers": 2}),
    "even number of frames halved": (NW_UCLA_20, 1, 8, {"channels": (8, 16, 32), "stage1_layers": 2}),
    "doubles inside stage 2": (NW_UCLA_20, 1, 7, {"channels": (8, 8, 16, 16), "stage2_layers": 3}),
    "doubles twice inside stage 2": (
        NTU_25, 1, 9, {"channels": (8, 16, 32, 32), "stage2_layers": 3, "focal_order": "score", "focal_joints": 4},
    ),
    "one dilation": (NW_UCLA_20, 1, 7, {"dilations": (1,), "kernel_size": 3}),
    "three dilations": (
        NTU_25, 1, 9, {"dilations": (1, 2, 3), "channels": (12, 24), "kernel_size": 5, "focal_joints": 6},
    ),
    "odd width": (NW_UCLA_20, 1, 7, {"dilations": (3, 1, 2), "channels": (9, 9), "kernel_size": 3}),
    "one frame": (NW_UCLA_20, 2, 1, {"channels": (8, 16)}),
    "one focal joint": (NTU_25, 1, 5, {"focal_joints": 1}),
    "all joints focal": (NTU_25, 1, 4, {"focal_joints": 25, "parts": 5}),
    "order by score": (NTU_25, 2, 5, {"focal_order": "score", "parts": 25}),
    "no gate": (NW_UCLA_20, 1, 6, {"focal_gate": False, "parts": 1}),
    "no gate, order by score": (NW_UCLA_20, 1, 6, {"focal_gate": False, "focal_order": "score", "parts": 20}),
    "custom parts": (NW_UCLA_20, 1, 5, {"parts": UNEVEN, "channels": (8, 8, 8), "stage2_layers": 2}),
    "layer norm": (NW_UCLA_20, 2, 7, {"norm": "layer", "channels": (8, 16, 16), "stage1_layers": 2, "parts": 5}),
    "explicit head width": (NTU_25, 1, 5, {"head_width": 3, "spatial_heads": 1}),
    "one wide spatial head": (NW_UCLA_20, 1, 5, {"head_width": 7, "spatial_heads": 3, "norm": "layer"}),
    "Basic-SFormer throughout": (
        NTU_25, 2, 5, {"focal_selection": False, "part_branch": False, "cross_attention": False, "focal_joints": 99},
    ),
    "focal joints only": (NW_UCLA_20, 1, 6, {"part_branch": False, "cross_attention": False}),
    "two branches, no cross-attention": (
        NW_UCLA_20, 2, 5, {"cross_attention": False, "stage2_layers": 2, "channels": (8, 8, 16)},
    ),
    "all joints and parts": (NTU_25, 1, 5, {"focal_selection": False}),
    "shared branches": (
        NW_UCLA_20, 1, 7,
        {"shared_branches": True, "channels": (8, 8, 16, 16), "stage2_layers": 3, "focal_order": "score"},
    ),
    "shared branches, no cross-attention": (NTU_25, 2, 5, {"shared_branches": True, "cross_attention": False}),
    "Basic-TFormer": (NW_UCLA_20, 1, 7, {"temporal": "attention", "channels": (8, 8, 16), "stage2_layers": 2}),
    "TCN only": (NTU_25, 1, 9, {"temporal": "convolution", "channels": (8, 16, 16), "stage2_layers": 2}),
    "no final norm": (NW_UCLA_20, 2, 5, {"final_norm": False, "channels": (8, 16)}),
    "final layer norm of shared branches": (NTU_25, 1, 5, {"norm": "layer", "shared_branches": True}),
    "more layers in stage 2": (NW_UCLA_20, 2, 5, {"channels": (8, 8, 8, 8), "stage2_layers": 3}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_network_matches_reference(case: str) -> None:
    skeleton, M, T, changes = CASES[case]
    defaults: dict[str, Any] = {"channels": (8, 8), "stage1_layers": 1, "stage2_layers": 1, "focal_joints": 7}
    config = ModelConfig(**(defaults | changes))
    seed = list(CASES).index(case)
    model = FGSTFormer(config, skeleton, NUM_CLASSES, frames=T).eval()
    randomize(model, seed)
    clips = make_clips(2, M, T, skeleton.num_joints, seed)
    reference = Reference({name: value.numpy() for name, value in model.state_dict().items()}, config, skeleton)

    expected = reference.scores(clips)
    with torch.no_grad():
        actual = model(torch.from_numpy(clips)).numpy()

    assert np.abs(expected[0] - expected[1]).max() > 0.01  # the scores depend on the clips
    # Sums have up to 2^8 terms. Random weights produce attention logits of up to 2^6, by whose magnitude the softmax
    # amplifies the errors of earlier layers.
    assert_close(actual, expected, terms=2**14)


def test_reference_selects_different_joints_in_frames() -> None:
    """The comparison includes selections that change from frame to frame."""
    config = ModelConfig(channels=(8, 8), stage1_layers=1, stage2_layers=1, focal_joints=7)
    model = FGSTFormer(config, NW_UCLA_20, NUM_CLASSES, frames=6).eval()
    randomize(model, 0)
    reference = Reference({name: value.numpy() for name, value in model.state_dict().items()}, config, NW_UCLA_20)
    clip = make_clips(1, 1, 6, 20, 0)[0, 0]
    _, focal = reference.person(clip)
    assert len({tuple(ranking) for ranking in focal}) > 1

    selections = []
    model.focal.register_forward_hook(lambda _module, _inputs, output: selections.append(output[1]))
    with torch.no_grad():
        model(torch.from_numpy(clip)[None, None])
    assert selections[0][0].tolist() == focal
