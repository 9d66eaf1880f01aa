"""Layer-by-layer summary of a network: output shapes, parameters, FLOPs and receptive field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fgst.config import ModelConfig
from fgst.model.fgstformer import FGSTFormer
from fgst.model.shapes import InputShape
from fgst.model.spatial import BasicSFormer, JointPartCrossAttention
from fgst.model.temporal import FGTFormer

_TEMPORAL_NAMES = {"fg": "FG-TFormer", "attention": "Basic-TFormer", "convolution": "TCN only"}
_TOP_LEVEL = ("embedding", "focal", "parts", "final_norm.0", "final_norm.1", "head")


@dataclass(frozen=True)
class LayerSummary:
    """One block of a network.

    Attributes:
        name: module name, as in ``state_dict``.
        block: the paper's name of the block, or the module's class.
        outputs: shapes of its outputs for one person, ``(T, N, C)``; the head's is ``(num_classes,)``.
        parameters: number of trained values, submodules included.
        flops: floating-point operations for one person (a multiply-add counts as two), submodules included.
        receptive_field: number of clip frames that reach one output frame through the convolutions up to this block.
            Attention over frames always covers the whole clip.
    """

    name: str
    block: str
    outputs: tuple[tuple[int, ...], ...]
    parameters: int
    flops: int
    receptive_field: int


@dataclass(frozen=True)
class ModelSummary:
    """All blocks of a network in the order of the forward pass, and its totals.

    Attributes:
        layers: the blocks.
        parameters: number of trained values of the whole network.
        flops: floating-point operations for one person: matrix products and convolutions, no elementwise operations.
    """

    layers: tuple[LayerSummary, ...]
    parameters: int
    flops: int


def summarize(config: ModelConfig, shape: InputShape) -> ModelSummary:
    """Run a network on one random clip of one person and summarize its blocks.

    Raises:
        InputError: if ``config`` does not fit the skeleton; the message names the field.
    """
    model = FGSTFormer(config, shape.skeleton, shape.num_classes, frames=shape.frames).eval()
    names = [name for name, module in model.named_modules() if _is_summarized(name, module)]
    outputs: dict[str, tuple[tuple[int, ...], ...]] = {}
    for name in names:
        model.get_submodule(name).register_forward_hook(_record_shapes(name, outputs))
    # Gradients stay enabled: FlopCounterMode assigns operations to modules by gradient hooks.
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 1, shape.frames, shape.skeleton.num_joints, 3))
    flops = counter.get_flop_counts()
    receptive_fields = _receptive_fields(model, names)
    layers = tuple(
        LayerSummary(
            name,
            _block_name(model.get_submodule(name), config),
            outputs[name],
            _count_parameters(model.get_submodule(name)),
            sum(flops.get(f"FGSTFormer.{name}", {}).values()),
            receptive_fields[name],
        )
        for name in names
    )
    return ModelSummary(layers, _count_parameters(model), counter.get_total_flops())


def _is_summarized(name: str, module: nn.Module) -> bool:
    return name in _TOP_LEVEL or isinstance(module, BasicSFormer | JointPartCrossAttention | FGTFormer)


def _record_shapes(name: str, outputs: dict[str, tuple[tuple[int, ...], ...]]) -> Any:
    """Return a forward hook that stores the shapes of a block's output features, without the batch axis."""

    def hook(module: nn.Module, args: Any, result: Any) -> None:
        del module, args
        tensors = [result] if isinstance(result, Tensor) else list(result)
        # The focal selection also returns indices and scores.
        tensors = [t for t in tensors if t.is_floating_point() and (t.dim() == 4 or name == "head")]
        outputs[name] = tuple(tuple(t.shape[1:]) for t in tensors)

    return hook


def _receptive_fields(model: FGSTFormer, names: list[str]) -> dict[str, int]:
    """Return the receptive field of each block in clip frames.

    A temporal convolution with kernel k_t and dilation d_t adds (k_t − 1)·d_t frames at its input's stride. The
    branches of stage 2 run in parallel, so the second one adds nothing.
    """
    config = model.config
    frames, stride, fields = 1, 1, {}
    for name in names:
        module = model.get_submodule(name)
        if isinstance(module, FGTFormer) and not name.endswith("temporal.1"):
            if config.temporal != "attention":
                frames += (config.kernel_size - 1) * max(config.dilations) * stride
            stride *= module.stride
        fields[name] = frames
    return fields


def _block_name(module: nn.Module, config: ModelConfig) -> str:
    if isinstance(module, FGTFormer):
        return _TEMPORAL_NAMES[config.temporal]
    names = {BasicSFormer: "Basic-SFormer", JointPartCrossAttention: "JP-CA"}
    return names.get(type(module), type(module).__name__)


def _count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
