"""Measurement of how many trials should share a GPU, for ``--gpus-per-trial auto``."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from fgst.config import TrialConfig
from fgst.data.dataset import ArrowDataset
from fgst.data.loader import choose_device
from fgst.errors import InputError
from fgst.sweep.backends.resources import available_cores
from fgst.sweep.planning.cost import synchronize, training_steps

MAX_MEMORY_SHARE = 0.9  # of a GPU's memory, for all trials on it
MIN_GAIN = 1.1  # minimum factor by which doubling the number of trials must increase throughput
WARM_UP_STEPS = 2
CONTEXT_GIB = 0.5  # of a CUDA context before any allocation; a process cannot measure its own


def choose_share(memory_gib: float, total_gib: float, throughput: Callable[[int], float], max_trials: int = 8) -> float:
    """Choose the share of a GPU per trial: 1 / n, doubling n while the trials fit and total throughput grows.

    Args:
        memory_gib: peak memory of one trial.
        total_gib: memory of the GPU.
        throughput: clips per second of n concurrent trials in total; 0 if they do not fit. Called with 1, 2, 4, …, as
            long as doubling increases the throughput by at least a tenth.
        max_trials: upper limit of n.
    """
    count, rate = 1, throughput(1)
    while rate > 0 and 2 * count <= max_trials and 2 * count * memory_gib <= MAX_MEMORY_SHARE * total_gib:
        doubled_rate = throughput(2 * count)
        if doubled_rate < MIN_GAIN * rate:
            break
        count, rate = 2 * count, doubled_rate
    return 1 / count


def measure_throughput(
    config: TrialConfig, dataset_location: str, device: str, n: int, steps: int = 10
) -> tuple[float, float]:
    """Train ``n`` networks at once for some steps, each in its own process.

    Args:
        config: settings of each training.
        dataset_location: folder or URI of the data set.
        device: device of each training: cpu, cuda …
        n: number of processes.
        steps: timed training steps of each process, after the warm-up.

    Returns:
        Clips per second of all processes together, and the peak memory of the largest process in GiB (GPU memory if
        the device is a GPU). ``(0, 0)`` if a process dies or runs out of memory: ``n`` trainings do not fit.

    Raises:
        InputError: if the configuration does not fit the data set, or the device is not available.
    """
    context = multiprocessing.get_context("spawn")  # a CUDA context does not survive a fork
    threads = max(1, available_cores() // n)
    pipes = [context.Pipe() for _ in range(n)]
    trainers = [
        context.Process(
            target=_train, args=(config, dataset_location, device, threads, steps, n == 1, child_end), daemon=True
        )
        for _, child_end in pipes
    ]
    try:
        for trainer, (_, child_end) in zip(trainers, pipes, strict=True):
            trainer.start()
            child_end.close()  # so that receiving fails as soon as the process is dead
        for parent_end, _ in pipes:
            _receive(parent_end)
        for parent_end, _ in pipes:
            parent_end.send("go")
        measurements = [_receive(parent_end) for parent_end, _ in pipes]
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return 0.0, 0.0
    finally:
        for trainer in trainers:
            if trainer.pid is not None:
                trainer.kill()
                trainer.join()
        for parent_end, _ in pipes:
            parent_end.close()
    # The slowest process counts: the faster ones have finished by then, and its last steps ran with less competition.
    seconds, gib = (max(column) for column in zip(*measurements, strict=True))
    return n * steps * config.train.batch_size / seconds, gib


def _receive(pipe: Connection) -> Any:
    message = pipe.recv()
    if isinstance(message, InputError):
        raise message
    return message


def _train(
    config: TrialConfig, location: str, device: str, threads: int, steps: int, is_alone: bool, pipe: Connection
) -> None:
    """Run in a child process: warm up, report readiness, wait for the start, train, and send seconds and GiB."""
    torch.set_num_threads(threads)
    start = 0.0

    def synchronize_start(done: int) -> bool:
        nonlocal start
        if done == WARM_UP_STEPS:
            synchronize(torch_device)
            pipe.send("ready")
            pipe.recv()
            start = time.perf_counter()
        return True

    try:
        torch_device = choose_device(device)
        free_before = _free_gib(torch_device)
        dataset = ArrowDataset(location, verify=False)
        training_steps(
            config, dataset, device, max_steps=WARM_UP_STEPS + steps, should_continue=synchronize_start
        )  # fmt: skip
        synchronize(torch_device)
        seconds = time.perf_counter() - start
        if torch_device.type == "cuda":
            gib = torch.cuda.max_memory_reserved(torch_device) / 2**30 + CONTEXT_GIB
            if is_alone:  # all other memory that was allocated also belongs to this process: kernels, library handles
                taken = free_before - _free_gib(torch_device)
                gib += max(0.0, taken - torch.cuda.memory_reserved(torch_device) / 2**30)
        else:
            gib = _peak_rss_gib()
        pipe.send((seconds, gib))
    except InputError as error:
        pipe.send(error)
    except (RuntimeError, MemoryError):
        os._exit(1)  # out of memory, reported by different exceptions; the parent notices the closed pipe


def _free_gib(device: torch.device) -> float:
    """Return the free memory of a GPU, 0 for a CPU. The call creates this process's CUDA context if needed."""
    return torch.cuda.mem_get_info(device)[0] / 2**30 if device.type == "cuda" else 0.0


def _peak_rss_gib() -> float:
    """Return this process's peak resident memory.

    ``getrusage`` is not used, because its peak is inherited from the parent process.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**20
