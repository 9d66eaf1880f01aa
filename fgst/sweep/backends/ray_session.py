"""A Ray cluster for as long as it is needed: the one that is there, or one of our own on this machine."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from fgst.errors import InputError

Task = TypeVar("Task")
Result = TypeVar("Result")
PASSED_ON = (
    "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "FGST_CACHE_LIMIT", "MLFLOW_DISABLE_TELEMETRY",
    # A tracking server's credentials and certificates, and how long it is waited for.
    "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_AUTH",
    "MLFLOW_TRACKING_INSECURE_TLS", "MLFLOW_TRACKING_SERVER_CERT_PATH", "MLFLOW_TRACKING_CLIENT_CERT_PATH",
    "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE",
)  # fmt: skip
RESTARTS = 3  # of a piece of work whose process died, before it counts as failed


@contextmanager
def ray_session(address: str | None, **local: Any) -> Iterator[None]:
    """Ray is initialised inside; what was started for it ends with it.

    Args:
        address: of a running cluster ("auto" finds it); ``None`` starts one of our own, never joining somebody else's.
        local: arguments of ``ray.init`` for a cluster of our own.

    Raises:
        InputError: if no cluster answers at the address.
    """
    quieten()
    import ray

    if ray.is_initialized():
        yield
        return
    own = {"include_dashboard": False, "object_store_memory": 128 * 1024 * 1024} | local
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {name: os.environ[name] for name in PASSED_ON if name in os.environ}},
            **({} if address else own),
        )
    except (ConnectionError, ValueError) as error:
        raise InputError(
            f"no Ray cluster answers at --address {address} ({str(error).splitlines()[0]}); "
            "leave --address out to run on this machine"
        ) from None
    if threading.current_thread() is threading.main_thread():
        # Ray would end this process at once; whoever stops a job, or closes the terminal, wants what Ctrl-C does.
        signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
        if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # nohup ignores it, and so do we
            terminal = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]  # of one that is gone none is
            signal.signal(signal.SIGHUP, lambda number, frame: _hung_up(terminal))
    try:
        yield
    finally:
        ray.shutdown()


def _hung_up(terminal: Sequence[int]) -> None:
    """The terminal is gone: end as with Ctrl-C, without writing to it, which would fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in terminal:
        os.dup2(nowhere, descriptor)
    signal.raise_signal(signal.SIGINT)


def ray_map(
    function: Callable[[Task], Result], tasks: Sequence[Task], *, address: str | None, workers: int
) -> Generator[Result, None, None]:
    """Results of a function for each task, in the order in which they end, ``workers`` at a time.

    A task whose worker dies is run again, three times.

    Raises:
        InputError: if no cluster answers at the address.
    """
    local: dict[str, Any] = {} if address else {"num_cpus": workers}
    with ray_session(address, **local):
        import ray

        remote = ray.remote(num_cpus=1, max_retries=RESTARTS)(function)
        waiting = list(reversed(tasks))
        running: list[Any] = []
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    running.append(remote.remote(waiting.pop()))
                (done, *_), running = ray.wait(running)
                yield ray.get(done)
        finally:
            for reference in running:
                ray.cancel(reference)


def quieten() -> None:
    """Ray's notices would bury ours."""
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "1",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # a page for each process that dies: the engine says it in a line
        # Nothing of ours goes on from Tune's own state, 20 kB a trial, which it would write anew every ten seconds.
        "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
    }.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    # Tune's own state, which nothing of ours is read from: that it could not be saved is no news.
    logging.getLogger("ray.tune.execution.experiment_state").setLevel(logging.CRITICAL)
