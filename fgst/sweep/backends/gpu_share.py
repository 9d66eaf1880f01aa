"""The share of this machine's GPU for each trial, for ``--gpus-per-trial auto``."""

from __future__ import annotations

import logging

import torch

from fgst.errors import InputError
from fgst.sweep.planning.gpu_sharing import choose_share, measure_throughput
from fgst.sweep.spec import SweepSpec

logger = logging.getLogger(__name__)


def measure_gpu_share(spec: SweepSpec) -> float:
    """Measure how many trials share the GPU best; returns the share of one trial.

    Raises:
        InputError: if PyTorch finds no GPU.
    """
    if not torch.cuda.is_available():
        raise InputError("--gpus-per-trial auto measures on this machine, but PyTorch finds no GPU here; give a number")
    logger.info("measuring how many trials share the GPU best")
    config = spec.trials[0].config if spec.trials else spec.base
    measured: dict[int, tuple[float, float]] = {}

    def throughput(count: int) -> float:
        if count not in measured:
            measured[count] = measure_throughput(config, config.data.dataset, "cuda", count)
        return measured[count][0]

    throughput(1)
    memory = measured[1][1]
    share = choose_share(memory, torch.cuda.get_device_properties(0).total_memory / 2**30, throughput)
    rates = ", ".join(f"{count}: {rate:,.0f} clips/s" for count, (rate, _) in measured.items())
    logger.info("--gpus-per-trial %g (%s; %.1f GiB per trial)", share, rates, memory)
    return share
