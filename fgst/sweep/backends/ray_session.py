"""Connections to Ray: to a running cluster, or to a local one that is shut down after use."""

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
# Environment variables that Ray passes on to the worker processes of a cluster. Those of a local one inherit all
# variables, so that passwords do not appear in Ray's log files.
FORWARDED_VARIABLES = (
    "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "FGST_CACHE_LIMIT", "MLFLOW_DISABLE_TELEMETRY",
    # The tracking server's credentials, certificates and timeouts.
    "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_INSECURE_TLS", "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH", "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
    "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE",
)  # fmt: skip
MAX_RETRIES = 3  # of a task whose worker process died


@contextmanager
def ray_session(address: str | None, **local: Any) -> Iterator[None]:
    """Keep Ray initialized within the context, and shut it down afterwards.

    If Ray is already initialized, it is used unchanged and not shut down. While the context is active, SIGTERM and the
    loss of the terminal have the same effect as Ctrl-C.

    Args:
        address: address of a running cluster ("auto" finds it); ``None`` starts a new local one, even if another one is
            running.
        local: arguments of ``ray.init`` for a new local cluster.

    Raises:
        InputError: if there is no cluster at the address.
    """
    quieten()
    # lazy: ray takes seconds to import
    import ray

    if ray.is_initialized():
        yield
        return
    local_options = {"include_dashboard": False, "object_store_memory": 128 * 1024 * 1024} | local
    variables = {name: os.environ[name] for name in FORWARDED_VARIABLES if address and name in os.environ}
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": variables},
            **({} if address else local_options),
        )
    except (ConnectionError, ValueError) as error:
        raise InputError(
            f"cannot connect to a Ray cluster at --address {address} ({str(error).splitlines()[0]}); "
            "omit --address to run on this machine"
        ) from None
    if threading.current_thread() is threading.main_thread():
        _treat_termination_as_interrupt()
    try:
        yield
    finally:
        ray.shutdown()


def ray_map(
    function: Callable[[Task], Result], tasks: Sequence[Task], *, address: str | None, workers: int
) -> Generator[Result, None, None]:
    """Apply a function to each task on Ray and yield the results as they complete.

    A task whose worker process dies is retried up to :data:`MAX_RETRIES` times.

    Args:
        address: address of a running cluster; ``None`` starts a local one.
        workers: the maximum number of tasks that run at a time, on one core each.

    Raises:
        InputError: if there is no cluster at the address.
    """
    local: dict[str, Any] = {} if address else {"num_cpus": workers}
    with ray_session(address, **local):
        # lazy: ray takes seconds to import
        import ray

        remote = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(function)
        pending = list(reversed(tasks))
        running: list[Any] = []
        try:
            while pending or running:
                while pending and len(running) < workers:
                    running.append(remote.remote(pending.pop()))
                (done, *_), running = ray.wait(running)
                yield ray.get(done)
        finally:
            for reference in running:
                ray.cancel(reference)


def quieten() -> None:
    """Reduce Ray's console output to errors, by its environment variables and loggers. Call before importing Ray."""
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "1",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # a page for each process that dies; the backend prints one line instead
        # Resuming does not read Tune's own state, so rewriting it every ten seconds (20 kB a trial) is wasted work.
        "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
    }.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    # A failure to save Tune's own state is harmless for the same reason.
    logging.getLogger("ray.tune.execution.experiment_state").setLevel(logging.CRITICAL)


def _treat_termination_as_interrupt() -> None:
    """Handle SIGTERM and SIGHUP like Ctrl-C; Ray's own handlers would end this process at once."""
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # nohup ignores it; leave that so
        # Determined now, because after a hangup the descriptors no longer refer to a terminal.
        terminal = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        signal.signal(signal.SIGHUP, lambda number, frame: _on_hangup(terminal))


def _on_hangup(terminal: Sequence[int]) -> None:
    """Interrupt this process after the loss of its terminal, redirecting output that would fail there to /dev/null."""
    null = os.open(os.devnull, os.O_WRONLY)
    for descriptor in terminal:
        os.dup2(null, descriptor)
    signal.raise_signal(signal.SIGINT)
