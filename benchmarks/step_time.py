"""Time the forward pass and the training step of the network against references: ``python -m benchmarks.step_time``.

At each shape, four contenders are timed alternately in several rounds, so that other load affects all of them equally:

* the network (``fgst.model``) in float32 and with bfloat16 autocast;
* a literal implementation of the same equations (``benchmarks.literal``);
* CTR-GCN (``benchmarks.ctr_gcn``), the public network on which most later work is based;
* the ceiling: every matrix product and convolution of the network's step, with the same shapes and types, timed
  separately on prepared operands. It is a lower bound for implementations of these equations with library products.

A step consists of forward pass, cross-entropy and backward pass, without the optimizer. The fastest round counts,
because other load can only make a measurement longer.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.ctr_gcn import CTRGCN
from benchmarks.literal import LiteralFGSTFormer
from fgst.config import PRESETS, ModelConfig
from fgst.data.skeleton import Skeleton
from fgst.data.skeletons import NTU_25, NW_UCLA_20
from fgst.model import FGSTFormer

CLASSES = 60


@dataclass(frozen=True)
class Shape:
    """B clips of M persons, T frames and the skeleton's N joints."""

    name: str
    B: int
    T: int
    M: int
    skeleton: Skeleton

    def clips(self, device: torch.device) -> Tensor:
        """Return random clips ``(B, M, T, N, 3)``."""
        return torch.randn(self.B, self.M, self.T, self.skeleton.num_joints, 3, device=device)


CPU_SHAPES = (
    Shape("NW-UCLA", 16, 64, 1, NW_UCLA_20),
    Shape("NTU T=64", 4, 64, 2, NTU_25),
    Shape("NTU T=128", 4, 128, 2, NTU_25),
)
GPU_SHAPES = (
    Shape("NW-UCLA", 32, 52, 1, NW_UCLA_20),
    Shape("NTU T=128", 32, 128, 2, NTU_25),
)

PRODUCTS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
    torch.ops.aten.bmm.out,
    torch.ops.aten.baddbmm.out,
    torch.ops.aten.convolution.default,
    torch.ops.aten.convolution_backward.default,
}


class Recorder(TorchDispatchMode):
    """Records the matrix products and convolutions that run in its context: operator, operand shapes and types."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[Any] = Counter()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        if op in PRODUCTS:
            described = tuple(_describe(a) for a in args)
            options = tuple(sorted((k, v) for k, v in (kwargs or {}).items() if k != "out"))
            self.calls[(op, described, options)] += 1
        return result


def _describe(value: Any) -> Any:
    """Describe a tensor by shape, type and memory layout; convert lists to tuples; return other values unchanged."""
    if isinstance(value, Tensor):
        layout = ""
        if value.dim() == 4 and not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last):
            layout = "channels last"
        elif value.dim() in (2, 3) and value.stride(-1) != 1:
            layout = "transposed"
        return ("tensor", tuple(value.shape), value.dtype, layout)
    return tuple(value) if isinstance(value, list) else value


def make_operand(described: Any, device: torch.device) -> Any:
    """Create a random operand from its description."""
    if not (isinstance(described, tuple) and described and described[0] == "tensor"):
        return list(described) if isinstance(described, tuple) else described
    _, shape, dtype, layout = described
    if layout == "transposed":
        return torch.randn(*shape[:-2], shape[-1], shape[-2], device=device).to(dtype).transpose(-1, -2)
    value = torch.randn(shape, device=device).to(dtype)
    return value.contiguous(memory_format=torch.channels_last) if layout == "channels last" else value


def products_of(step: Callable[[], object]) -> Counter[Any]:
    """Count the matrix products and convolutions that ``step`` calls."""
    with Recorder() as recorder:
        step()
    return recorder.calls


def time_products(calls: Counter[Any], device: torch.device, repeats: int) -> float:
    """Return the seconds of all calls.

    Each distinct call is repeated, and the fastest repetition is multiplied by the number of its occurrences.
    """
    total = 0.0
    for (op, described, options), count in calls.items():
        # Time the allocating variant in place of an out= variant: the product is the same.
        functional = {torch.ops.aten.bmm.out: torch.ops.aten.bmm.default,
                      torch.ops.aten.baddbmm.out: torch.ops.aten.baddbmm.default}.get(op, op)  # fmt: skip
        operands, keywords = [make_operand(d, device) for d in described], dict(options)
        call = functools.partial(functional, *operands, **keywords)
        call()  # warm up
        total += count * min(_seconds(call, device) for _ in range(repeats))
    return total


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Contender:
    """A network at a shape: forward pass and training step as callables, and their fastest times in seconds."""

    name: str
    forward: Callable[[], object]
    step: Callable[[], object]
    parameters: int
    gflops: float
    seconds: tuple[float, float] = (float("inf"), float("inf"))

    def measure(self, device: torch.device) -> None:
        """Run one round and update the fastest times."""
        forward, step = _seconds(self.forward, device), _seconds(self.step, device)
        self.seconds = min(self.seconds[0], forward), min(self.seconds[1], step)


def contender(name: str, model: nn.Module, shape: Shape, device: torch.device, dtype: torch.dtype) -> Contender:
    """Prepare a network for timing and count its parameters and FLOPs."""
    model = model.to(device)
    clips = shape.clips(device)
    labels = torch.arange(shape.B, device=device) % CLASSES

    def scores() -> Tensor:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return model(clips)

    def forward() -> Tensor:
        with torch.no_grad():
            return scores()

    def step() -> None:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(scores().float(), labels).backward()

    with FlopCounterMode(display=False) as counter:
        scores()
    parameters = sum(p.numel() for p in model.parameters())
    return Contender(name, forward, step, parameters, counter.get_total_flops() / shape.B / 1e9)


def contenders(shape: Shape, config: ModelConfig, device: torch.device, compiled: bool) -> list[Contender]:
    """Return the network in each precision, the literal network, and CTR-GCN as the last one."""
    rows = []
    for dtype, precision in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
        for prefix in ("fgst", "fgst, compiled") if compiled else ("fgst",):
            torch.manual_seed(0)
            model = FGSTFormer(config, shape.skeleton, CLASSES, frames=shape.T)
            rows.append(contender(f"{prefix} {precision}", model, shape, device, dtype))
            if "compiled" in prefix:  # after its FLOPs have been counted
                model.compile()
    literal = LiteralFGSTFormer(config, shape.skeleton, CLASSES)
    rows.append(contender("literal float32", literal, shape, device, torch.float32))
    reference = CTRGCN(shape.skeleton, CLASSES, persons=shape.M)
    rows.append(contender("CTR-GCN float32", reference, shape, device, torch.float32))
    return rows


def measure(shape: Shape, config: ModelConfig, device: torch.device, rounds: int, *, compiled: bool = False) -> None:
    """Time all contenders at one shape and print a table."""
    rows = contenders(shape, config, device, compiled)
    products = {
        precision: (products_of(row.forward), products_of(row.step))
        for precision in ("float32", "bfloat16")
        for row in rows
        if row.name == f"fgst {precision}"
    }
    ceilings = dict.fromkeys(products, (float("inf"), float("inf")))
    for row in rows:
        row.step()  # warm up
    for _ in range(rounds):
        for row in rows:
            row.measure(device)
        for precision, calls in products.items():
            forward, step = (time_products(counts, device, repeats=2) for counts in calls)
            ceilings[precision] = min(ceilings[precision][0], forward), min(ceilings[precision][1], step)

    reference = rows[-1].seconds[1]
    print(f"\n{shape.name}: B {shape.B}, T {shape.T}, N {shape.skeleton.num_joints}, M {shape.M}")
    print(f"{'':26}{'params':>8}{'GFLOPs':>9}{'forward':>10}{'step':>8}{'step over':>11}{'ceiling':>10}{'GFLOP/s':>9}")
    print(f"{'':26}{'M':>8}{'per clip':>9}{'ms':>10}{'ms':>8}{'CTR-GCN':>11}{'over step':>10}{'in step':>9}")

    def line(name: str, cost: str, seconds: tuple[float, float], share: str, gflops: float) -> None:
        forward, step = seconds
        rate = 3 * gflops * shape.B / step  # a backward pass costs as much as two forward passes
        times = f"{forward * 1e3:10.0f}{step * 1e3:8.0f}{step / reference:11.2f}"
        print(f"{name:26}{cost:17}{times}{share:>10}{rate:9.0f}")

    for row in rows:
        precision = row.name.split()[-1]
        share = "" if row is rows[-1] else f"{ceilings[precision][1] / row.seconds[1]:.0%}"
        line(row.name, f"{row.parameters / 1e6:8.2f}{row.gflops:9.2f}", row.seconds, share, row.gflops)
    for precision, seconds in ceilings.items():
        line(f"ceiling {precision}", "", seconds, "", rows[0].gflops)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="paper", choices=sorted(PRESETS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="number of CPU threads; default: all cores")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds; default: %(default)s")
    parser.add_argument(
        "--compile", action="store_true", help="also time the network with torch.compile (minutes on a CPU)"
    )
    parser.add_argument("--shape", help="time only the shapes whose name starts with this, e.g. NTU")
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"preset {options.preset}, {name}, PyTorch {torch.__version__}; best of {options.rounds} rounds")
    for shape in GPU_SHAPES if device.type == "cuda" else CPU_SHAPES:
        if shape.name.startswith(options.shape or ""):
            measure(shape, PRESETS[options.preset].model, device, options.rounds, compiled=options.compile)


if __name__ == "__main__":
    main()
