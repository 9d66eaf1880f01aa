"""How many trainings share a GPU best: measured, for ``--gpus-per-trial auto``."""

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

FILL = 0.9  # of a GPU's memory that trials may take together
GAIN = 1.1  # that twice as many trials must bring in throughput
WARM_UP = 2  # steps
# What a CUDA context takes before anything is asked for; no process can measure its own.
CONTEXT_GIB = 0.5


def choose_share(memory_gib: float, total_gib: float, throughput: Callable[[int], float], most: int = 8) -> float:
    """The share of a GPU for each trial: 1 / n, for as many as fit and still get more done together.

    Args:
        memory_gib: what one trial takes at its peak.
        total_gib: what the GPU has.
        throughput: clips per second of n trainings side by side, all together; 0 if they do not fit. Asked for 1, 2,
            4, …, as long as twice as many bring a tenth more.
        most: n at most.
    """
    count, rate = 1, throughput(1)
    while rate > 0 and 2 * count <= most and 2 * count * memory_gib <= FILL * total_gib:
        doubled = throughput(2 * count)
        if doubled < GAIN * rate:
            break
        count, rate = 2 * count, doubled
    return 1 / count


def probe(config: TrialConfig, dataset_location: str, device: str, n: int, steps: int = 10) -> tuple[float, float]:
    """Train ``n`` times at once for some steps, each in a process of its own.

    Returns:
        Clips per second of all together, and GiB of memory of the one that took most: on a GPU, of the GPU's.
        ``(0, 0)`` if one of them dies or runs out of memory: so many do not fit.

    Raises:
        InputError: if the configuration does not fit the data set, or the device is not there.
    """
    context = multiprocessing.get_context("spawn")  # a CUDA context does not survive a fork
    threads = max(1, available_cores() // n)
    pipes = [context.Pipe() for _ in range(n)]
    trainers = [
        context.Process(
            target=_train, args=(config, dataset_location, device, threads, steps, n == 1, theirs), daemon=True
        )
        for _, theirs in pipes
    ]
    try:
        for trainer, (_, theirs) in zip(trainers, pipes, strict=True):
            trainer.start()
            theirs.close()  # so that the pipe ends with the process
        for ours, _ in pipes:
            _answer(ours)
        for ours, _ in pipes:
            ours.send("go")
        answers = [_answer(ours) for ours, _ in pipes]
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return 0.0, 0.0
    finally:
        for trainer in trainers:
            if trainer.pid is not None:
                trainer.kill()
                trainer.join()
        for ours, _ in pipes:
            ours.close()
    # The slowest one's time: by then the others are through, and its last steps went faster than n at once do.
    seconds, gib = (max(column) for column in zip(*answers, strict=True))
    return n * steps * config.train.batch_size / seconds, gib


def _answer(pipe: Connection) -> Any:
    answer = pipe.recv()
    if isinstance(answer, InputError):
        raise answer
    return answer


def _train(
    config: TrialConfig, location: str, device: str, threads: int, steps: int, alone: bool, pipe: Connection
) -> None:
    """In a process of its own: warm up, say so, wait, train, and tell seconds and GiB."""
    torch.set_num_threads(threads)
    began = 0.0

    def more(done: int) -> bool:
        nonlocal began
        if done == WARM_UP:
            synchronize(where)
            pipe.send("ready")
            pipe.recv()
            began = time.perf_counter()
        return True

    try:
        where = choose_device(device)
        free = _free(where)
        training_steps(config, ArrowDataset(location, verify=False), device, most=WARM_UP + steps, more=more)
        synchronize(where)
        seconds = time.perf_counter() - began
        if where.type == "cuda":
            gib = torch.cuda.max_memory_reserved(where) / 2**30 + CONTEXT_GIB
            if alone:  # then what else has gone is this process's too: kernels, handles of libraries
                gib += max(0.0, free - _free(where) - torch.cuda.memory_reserved(where) / 2**30)
        else:
            gib = _peak_rss()
        pipe.send((seconds, gib))
    except InputError as error:
        pipe.send(error)
    except (RuntimeError, MemoryError):  # out of memory, in any library's words: the end of the pipe says it
        os._exit(1)


def _free(where: torch.device) -> float:
    """GiB of a GPU that nobody has; the call makes this process's CUDA context, if it has none yet."""
    return torch.cuda.mem_get_info(where)[0] / 2**30 if where.type == "cuda" else 0.0


def _peak_rss() -> float:
    """GiB of this process. Not getrusage's: that peak is handed down by the process that started this one."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**20
