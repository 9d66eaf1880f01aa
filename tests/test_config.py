"""Configurations: parsing, validation with field names in error messages, flat form, and digests."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from fgst.config import PRESETS, DataConfig, ModelConfig, TrainConfig, TrialConfig
from fgst.data.skeletons import NTU_25, NW_UCLA_20
from fgst.errors import InputError
from tests.support.process import start_python
from tests.support.small import SKELETON

PARTS_BY_NAME = (("hip", "spine", "head"), ("left_hand", "right_hand"), ("foot",))

# A valid value other than the default for every field. A test fails if a new field is missing here.
NON_DEFAULT: dict[str, Any] = {
    "model.channels": (64, 64, 64, 64, 128, 128, 256, 256),
    "model.stage1_layers": 5,
    "model.stage2_layers": 3,
    "model.focal_selection": False,
    "model.focal_joints": 9,
    "model.part_branch": False,
    "model.cross_attention": False,
    "model.shared_branches": True,
    "model.temporal": "attention",
    "model.parts": 5,
    "model.dilations": (1, 2, 3, 4),
    "model.kernel_size": 9,
    "model.spatial_heads": 4,
    "model.head_width": 16,
    "model.focal_gate": False,
    "model.final_norm": False,
    "model.focal_order": "score",
    "model.norm": "layer",
    "model.global_map": False,
    "model.dropout": 0.1,
    "data.dataset": "elsewhere",
    "data.benchmark": "x-view",
    "data.protocol": "paper",
    "data.modality": "bone",
    "data.recipe": "ntu",
    "data.frames": 64,
    "data.validation": 0.3,
    "data.validation_seed": 1,
    "data.validation_by": "clip",
    "data.folds": 4,
    "data.fold": 3,
    "train.epochs": 79,
    "train.repeat": 2,
    "train.batch_size": 64,
    "train.lr": 0.02,
    "train.momentum": 0.8,
    "train.weight_decay": 1e-4,
    "train.warmup": 0.1,
    "train.schedule": "cosine",
    "train.decay_at": (0.5,),
    "train.decay_factor": 0.2,
    "train.clip_norm": 2.0,
    "train.optimizer": "muon",
    "train.rotation_ramp": 0.5,
    "train.label_smoothing": 0.1,
    "train.ema": 0.99,
    "train.precision": "bfloat16",
    "train.seed": 1,
}
# Fields that must change together: the sum of layers is the number of channels; cross-attention needs two branches.
DEPENDENT: dict[str, dict[str, Any]] = {
    "data.fold": {"data.folds": 4, "data.fold": 3},
    "model.stage1_layers": {"model.stage1_layers": 5, "model.stage2_layers": 3},
    "model.stage2_layers": {"model.stage2_layers": 3, "model.stage1_layers": 5},
    "model.part_branch": {"model.part_branch": False, "model.cross_attention": False},
}


def field_of(config: TrialConfig, name: str) -> Any:
    """Return the value of a field by its full name."""
    section, attribute = name.split(".")
    return getattr(getattr(config, section), attribute)


# Defaults and presets


def test_defaults_match_paper() -> None:
    """Section 4.2 of the paper."""
    config = TrialConfig()
    model, data, train = config.model, config.data, config.train
    assert model.channels == (64, 64, 128, 128, 256, 256, 256, 256)
    assert (model.stage1_layers, model.stage2_layers) == (6, 2)
    assert (model.focal_joints, model.parts) == (15, 10)
    assert (model.dilations, model.kernel_size, model.spatial_heads) == ((1, 2), 7, 3)
    assert train.epochs == 80
    assert train.batch_size == 32
    assert train.lr == 0.01
    assert (train.momentum, train.weight_decay) == (0.9, 5e-4)
    assert train.warmup * 80 == 5
    assert train.schedule == "step"
    assert [share * 80 for share in train.decay_at] == [50, 70]
    assert train.decay_factor == 0.1
    assert train.label_smoothing == 0
    assert train.clip_norm == 0
    assert (data.modality, data.protocol) == ("joint", "validation")
    assert config == PRESETS["paper"]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("skeleton", [NTU_25, NW_UCLA_20], ids=lambda skeleton: skeleton.name)
def test_presets_fit_public_skeletons(preset: str, skeleton: Any) -> None:
    PRESETS[preset].model.check_skeleton(skeleton)


def test_configurations_are_frozen_and_hashable() -> None:
    config = TrialConfig()
    assert hash(config) == hash(TrialConfig())
    for part, field in ((config, "model"), (config.model, "norm"), (config.data, "frames"), (config.train, "lr")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, field, None)


# Flat form

# shared_branches requires both branches.
ALL_SET = NON_DEFAULT | {"model.part_branch": True}


VARIANTS = {
    **PRESETS,
    "parts by name": TrialConfig(model=ModelConfig(parts=PARTS_BY_NAME)),
    "all set": TrialConfig().with_values(ALL_SET),
    "one dilation": TrialConfig(model=ModelConfig(dilations=(3,)), train=TrainConfig(decay_at=())),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_flat_round_trip(variant: str) -> None:
    config = VARIANTS[variant]
    flat = config.flat()
    assert TrialConfig.from_flat(flat) == config
    assert hash(TrialConfig.from_flat(flat)) == hash(config)
    assert TrialConfig.from_flat(json.loads(json.dumps(flat))) == config
    assert TrialConfig.from_flat(flat).flat() == flat


def test_flat_contains_every_field_as_json_value() -> None:
    assert set(TrialConfig().flat()) == set(NON_DEFAULT)
    flat = TrialConfig().with_values(ALL_SET).flat()
    for name, value in ALL_SET.items():
        assert flat[name] == (list(value) if isinstance(value, tuple) else value)
    assert TrialConfig(model=ModelConfig(parts=PARTS_BY_NAME)).flat()["model.parts"] == [
        list(part) for part in PARTS_BY_NAME
    ]


def test_missing_fields_are_those_of_versions_without_them() -> None:
    """A missing field means a version without it: without final norm, with validation by subject."""
    before, data = ModelConfig(final_norm=False), DataConfig(validation_by="subject")
    assert TrialConfig.from_flat({}) == TrialConfig(before, data)
    assert TrialConfig.from_flat({"train.seed": 3}) == TrialConfig(before, data, TrainConfig(seed=3))


@pytest.mark.parametrize("variant", VARIANTS)
def test_values_round_trip_as_text(variant: str) -> None:
    """Tracking servers store all parameters as text."""
    config = VARIANTS[variant]
    for write in (json.dumps, lambda value: value if isinstance(value, str) else json.dumps(value)):
        texts = {name: write(value) for name, value in config.flat().items() if not isinstance(value, str)}
        strings = {name: value for name, value in config.flat().items() if isinstance(value, str)}
        assert TrialConfig.from_flat(texts | strings) == config


# Parsing


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("model.focal_joints", "12", 12),
        ("model.focal_joints", " 12 ", 12),
        ("model.dilations", "1,2", (1, 2)),
        ("model.dilations", "1, 2, 3, 4", (1, 2, 3, 4)),
        ("model.dilations", "[1, 2]", (1, 2)),
        ("model.dilations", "2", (2,)),
        ("model.dilations", "3", (3,)),
        ("model.head_width", "none", None),
        ("model.head_width", "None", None),
        ("model.head_width", "8", 8),
        ("model.focal_gate", "true", True),
        ("model.focal_gate", "True", True),
        ("model.focal_gate", "false", False),
        ("model.parts", "5", 5),
        ("model.parts", '[["hip", "spine"], ["head"]]', (("hip", "spine"), ("head",))),
        ("model.norm", "layer", "layer"),
        ("train.lr", "0.1", 0.1),
        ("train.lr", "1", 1.0),
        ("train.lr", "5e-3", 0.005),
        ("train.lr", "1E-3", 0.001),
        ("train.decay_at", "0.5", (0.5,)),
        ("train.decay_at", "0.5,0.75", (0.5, 0.75)),
        ("train.decay_at", "[]", ()),
        ("train.schedule", "cosine", "cosine"),
        ("train.repeat", "none", None),
        ("train.repeat", "3", 3),
        ("data.frames", "none", None),
        ("data.benchmark", "x-view", "x-view"),
        ("data.benchmark", "none", None),
        ("data.benchmark", "2018", "2018"),
        ("data.dataset", "12", "12"),
        ("data.dataset", "none", "none"),
        ("data.dataset", "sets/a,b", "sets/a,b"),
        ("data.recipe", "ntu", "ntu"),
    ],
)
def test_text_is_parsed_as_type_of_field(name: str, text: str, value: Any) -> None:
    start = TrialConfig(train=TrainConfig(repeat=7), data=DataConfig(frames=7, benchmark="b"))
    parsed = field_of(start.with_values({name: text}), name)
    assert parsed == value
    assert type(parsed) is type(value)
    if isinstance(value, tuple):
        assert [type(item) for item in parsed] == [type(item) for item in value]


def test_json_values_are_accepted() -> None:
    config = TrialConfig().with_values({"model.dilations": [1, 4], "train.lr": 1, "model.parts": [["a"], ["b"]]})
    assert config.model.dilations == (1, 4)
    assert config.model.parts == (("a",), ("b",))
    assert type(config.train.lr) is float


def test_values_are_validated_together() -> None:
    both = {"model.stage1_layers": "5", "model.stage2_layers": "3"}
    assert TrialConfig().with_values(both).model.stage2_layers == 3
    with pytest.raises(InputError, match=r"model\.stage1_layers \+ model\.stage2_layers is 5 \+ 2 = 7"):
        TrialConfig().with_values({"model.stage1_layers": "5"})


def test_with_values_copies_and_changes_given_fields_only() -> None:
    start = TrialConfig().with_values(ALL_SET)
    changed = start.with_values({"train.seed": 9})
    assert start == TrialConfig().with_values(ALL_SET)
    assert {name for name in NON_DEFAULT if field_of(start, name) != field_of(changed, name)} == {"train.seed"}
    assert start.with_values({}) == start


# Validation


def wrongly_typed_values() -> list[tuple[str, Any]]:
    """Return pairs of a field and a value of the wrong type."""
    text, number, flag = "some text", 1.5, True
    invalid: dict[type, list[Any]] = {
        bool: ["1", 1, "yes", None, [True]],
        int: [text, number, "1.5", flag, "true", [1], "1,2", "nan", {}],
        float: [text, flag, "true", [0.1], "0.1,0.2", "nan", "inf", "-Infinity", float("nan"), float("inf"), {}],
        str: [3, number, flag, ["joint"], {}],
        tuple: [text, "1,a", flag, "true", None, "none", [[1]], {}, "1,,2"],
    }
    # Too large for a float.
    invalid[float].append("1" + "0" * 400)
    cases = []
    for name, valid in TrialConfig().with_values(ALL_SET).flat().items():
        kind = tuple if isinstance(valid, list) else type(valid)
        cases += [(name, value) for value in invalid[kind]]
        if name not in ("model.head_width", "data.benchmark", "data.recipe", "data.frames", "train.repeat"):
            cases.append((name, None))
    return cases


@pytest.mark.parametrize(("name", "value"), wrongly_typed_values(), ids=lambda value: str(value)[:30])
def test_wrong_type_is_rejected_with_field_name(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^{re.escape(name)} "):
        TrialConfig().with_values({name: value})


INVALID: list[tuple[dict[str, Any], str]] = [
    ({"model.channels": []}, "model.channels is empty"),
    ({"model.stage1_layers": 0}, "model.stage1_layers is 0"),
    ({"model.stage2_layers": 0}, "model.stage2_layers is 0"),
    ({"model.stage1_layers": 7}, "model.channels has 8 entries"),
    ({"model.dilations": []}, "model.dilations is empty"),
    ({"model.dilations": [1, 0]}, "model.dilations is"),
    ({"model.dilations": [1, 2, 3]}, "model.channels contains 64, which is not divisible by the 3 temporal heads"),
    ({"model.channels": [2] * 8}, "model.channels contains 2"),
    ({"model.channels": [64] * 7 + [96]}, "model.channels goes from 64 to 96"),
    ({"model.channels": [64] * 7 + [32]}, "model.channels goes from 64 to 32"),
    ({"model.kernel_size": 4}, "model.kernel_size is 4"),
    ({"model.kernel_size": -1}, "model.kernel_size is -1"),
    ({"model.spatial_heads": 0}, "model.spatial_heads is 0"),
    ({"model.head_width": 0}, "model.head_width is 0"),
    ({"model.focal_joints": 0}, "model.focal_joints is 0"),
    ({"model.parts": 0}, "model.parts is 0"),
    ({"model.focal_order": "random"}, "model.focal_order is 'random'; it must be one of joint, score"),
    ({"model.temporal": "tcn"}, "model.temporal is 'tcn'; it must be one of fg, attention, convolution"),
    ({"model.part_branch": False}, "model.cross_attention is on, but it needs two branches and model.part_branch is"),
    (
        {"model.shared_branches": True, "model.cross_attention": False, "model.part_branch": False},
        "model.shared_branches is on",
    ),
    ({"model.norm": "group"}, "model.norm is 'group'; it must be one of batch, layer"),
    ({"model.dropout": 1}, "model.dropout is 1"),
    ({"model.dropout": -0.1}, "model.dropout is -0.1"),
    ({"data.protocol": "test"}, "data.protocol is 'test'; it must be one of validation, paper"),
    ({"data.modality": "bones"}, "data.modality is 'bones'; it must be one of joint, bone"),
    ({"data.recipe": "kinetics"}, "data.recipe is 'kinetics'; it must be one of nw-ucla, ntu"),
    ({"data.frames": 1}, "data.frames is 1"),
    ({"data.validation": 0}, "data.validation is 0"),
    ({"data.validation": 1}, "data.validation is 1"),
    ({"data.validation_seed": -1}, "data.validation_seed is -1"),
    ({"data.validation_by": "clips"}, "data.validation_by is 'clips'; it must be one of auto, subject, camera, setup,"),
    ({"data.folds": 1}, "data.folds is 1; it must be 0 (no folds) or at least 2"),
    ({"data.folds": -5}, "data.folds is -5"),
    ({"data.fold": 1}, "data.fold is 1; it must be at least 0 and less than data.folds, which is 0"),
    ({"data.folds": 3, "data.fold": 3}, "data.fold is 3"),
    ({"data.folds": 3, "data.fold": -1}, "data.fold is -1"),
    ({"train.epochs": 0}, "train.epochs is 0"),
    ({"train.repeat": 0}, "train.repeat is 0"),
    ({"train.batch_size": 1}, "train.batch_size is 1"),
    ({"train.lr": 0}, "train.lr is 0"),
    ({"train.lr": -0.1}, "train.lr is -0.1"),
    ({"train.momentum": 1}, "train.momentum is 1"),
    ({"train.momentum": -0.1}, "train.momentum is -0.1"),
    ({"train.weight_decay": -1}, "train.weight_decay is -1"),
    ({"train.warmup": 1}, "train.warmup is 1"),
    ({"train.warmup": -0.1}, "train.warmup is -0.1"),
    ({"train.schedule": "linear"}, "train.schedule is 'linear'; it must be one of step, cosine"),
    ({"train.decay_at": [50, 70]}, "train.decay_at is"),
    ({"train.decay_at": [0]}, "train.decay_at is"),
    ({"train.decay_factor": -1}, "train.decay_factor is -1"),
    ({"train.decay_factor": 0}, "train.decay_factor is 0"),
    ({"train.clip_norm": -1}, "train.clip_norm is -1"),
    ({"train.optimizer": "lamb"}, "train.optimizer is 'lamb'; it must be one of sgd, adamw, muon"),
    ({"train.rotation_ramp": 1.1}, "train.rotation_ramp is 1.1"),
    ({"train.rotation_ramp": -0.1}, "train.rotation_ramp is -0.1"),
    ({"train.ema": 1}, "train.ema is 1"),
    ({"train.precision": "half"}, "train.precision is 'half'; it must be one of float32, bfloat16"),
    ({"train.label_smoothing": 1}, "train.label_smoothing is 1"),
    ({"train.seed": -1}, "train.seed is -1"),
    ({"train.seed": 2**31}, "train.seed is 2147483648"),
]


@pytest.mark.parametrize(("values", "message"), INVALID, ids=[message for _, message in INVALID])
def test_invalid_value_is_rejected_with_field_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        TrialConfig().with_values(values)


def test_all_limits_and_choices_are_tested() -> None:
    flags = {"model.focal_gate", "model.focal_selection", "model.final_norm", "model.global_map"}
    unlimited = flags | {"data.dataset", "data.benchmark"}
    assert {name for values, _ in INVALID for name in values} == set(NON_DEFAULT) - unlimited


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("model.focal_joint", "did you mean model.focal_joints?"),
        ("model.focaljoints", "did you mean model.focal_joints?"),
        ("train.epoch", "did you mean train.epochs?"),
        ("lr", "did you mean train.lr?"),
        ("seed", "did you mean train.seed?"),
        ("data.lr", "did you mean train.lr?"),
        ("focal_joints", "did you mean model.focal_joints?"),
        ("", "the settings are model.channels, "),
        ("entirely different", "the settings are model.channels, "),
    ],
)
def test_unknown_field_is_rejected_with_suggestion(name: str, suggestion: str) -> None:
    with pytest.raises(InputError, match=rf"^unknown setting '{re.escape(name)}'.*{re.escape(suggestion)}"):
        TrialConfig().with_values({name: 1})


def test_mismatch_with_skeleton_is_rejected_with_field_name() -> None:
    config = ModelConfig(focal_joints=6, parts=PARTS_BY_NAME)
    config.check_skeleton(SKELETON)
    with pytest.raises(InputError, match=r"model\.focal_joints is 7, but skeleton stick-6 has 6 joints"):
        dataclasses.replace(config, focal_joints=7).check_skeleton(SKELETON)
    with pytest.raises(InputError, match=r"model\.parts: no partition of skeleton stick-6 into 4 parts; .*1, 3, 6"):
        dataclasses.replace(config, parts=4).check_skeleton(SKELETON)
    with pytest.raises(InputError, match=r"model\.parts: .*no joint 'tail'"):
        dataclasses.replace(config, parts=(("tail",),)).check_skeleton(SKELETON)
    for parts in (PARTS_BY_NAME[:2], (), (*PARTS_BY_NAME, ("foot",)), (*PARTS_BY_NAME, ())):
        with pytest.raises(InputError, match=r"model\.parts: .*once"):
            dataclasses.replace(config, parts=parts).check_skeleton(SKELETON)


def test_head_width_defaults_to_quarter_of_block_width() -> None:
    assert ModelConfig().spatial_head_width(64) == 16
    assert ModelConfig(head_width=10).spatial_head_width(64) == 10


# Digest


@pytest.mark.parametrize("name", sorted(NON_DEFAULT))
def test_digest_depends_on_every_field(name: str) -> None:
    start = TrialConfig()
    changed = start.with_values(DEPENDENT.get(name, {name: NON_DEFAULT[name]}))
    assert field_of(changed, name) == NON_DEFAULT[name] != field_of(start, name)
    assert changed.digest() != start.digest()
    excluded = tuple(DEPENDENT.get(name, {name: None}))
    assert changed.digest(without=excluded) == start.digest(without=excluded)
    assert changed.with_values({n: field_of(start, n) for n in excluded}).digest() == start.digest()


def test_equal_configurations_have_equal_digests() -> None:
    with_integers = TrialConfig(train=TrainConfig(lr=1, weight_decay=0))
    with_floats = TrialConfig(train=TrainConfig(lr=1.0, weight_decay=0.0))
    assert with_integers == with_floats
    assert with_integers.digest() == with_floats.digest()
    assert TrialConfig.from_flat(with_integers.flat()).digest() == with_integers.digest()


def test_digest_is_equal_in_other_process() -> None:
    script = """
import json, sys
from fgst.config import TrialConfig
print(TrialConfig.from_flat(json.loads(sys.argv[1])).digest())
"""
    config = TrialConfig().with_values(ALL_SET | {"model.parts": PARTS_BY_NAME})
    values = config.flat()
    shuffled = {name: values[name] for name in sorted(values, reverse=True)}
    out, error = start_python(script, json.dumps(shuffled)).communicate()
    assert out.strip() == config.digest(), error
    assert len(config.digest()) == 64
