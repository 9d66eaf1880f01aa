"""Connections to Ray: to a running cluster, or to a local one that is shut down after use."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psutil

from fgst import termination
from fgst.errors import InputError
from fgst.sweep.backends._ray_private import has_dead_daemon

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
CONNECT_SECONDS = 2.0  # time limit for a connection to the control service
CHECK_SECONDS = 1.0  # interval between checks of the cluster
PATIENCE = 30.0  # seconds without a response after which a cluster counts as dead; after 60 Ray would end this process
STOP_SECONDS = 20.0  # time limit for stopping the trials of an interrupted sweep


@contextmanager
def ray_session(address: str | None, **local: Any) -> Iterator[None]:
    """Keep Ray initialized within the context, and shut it down afterwards.

    If Ray is already initialized, it is used unchanged and not shut down. If Ray's daemons have died in the meantime,
    as after a signal to all processes of a job, the context ends without the shutdown, which would wait for them.

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
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": variables},
            **({} if address else local_options),
        )
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if address is None:
            raise InputError(
                f"Ray cannot start on this machine ({reason}); set RAY_TMPDIR to a folder with a short path "
                "that you can write to, or add --local"
            ) from None
        raise InputError(
            f"cannot connect to a Ray cluster at --address {address} ({reason}); omit --address to run on this machine"
        ) from None
    except SystemExit:  # Ray's own handler of SIGTERM
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        if is_alive():
            ray.shutdown()
        else:
            if address is None:
                _kill_daemons()
            termination.skip_cleanup_at_exit()


def _kill_daemons() -> None:
    """Kill what is left of a local cluster; some of its processes would wait for those that died for minutes."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def is_alive() -> bool:
    """Return whether the connected cluster responds: its control service, and the daemons that this process started."""
    # lazy: ray takes seconds to import
    import ray

    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS):
            return not has_dead_daemon()
    except OSError:
        return False


def call_interruptibly(function: Callable[[], object], stop: Callable[[], None]) -> bool:
    """Call a function that uses Ray in a thread, so that this thread reacts to signals and to the death of the cluster.

    A call to a cluster that has died blocks for a minute without handling signals, and then ends the process.

    Args:
        function: uses Ray; its exceptions are raised here.
        stop: makes ``function`` return soon; called after Ctrl-C.

    Returns:
        True if ``function`` has returned; False if the cluster has died or not responded for :data:`PATIENCE` seconds.

    Raises:
        KeyboardInterrupt: after Ctrl-C. ``function`` has returned, unless the cluster has died.
    """
    error: list[BaseException] = []

    def call() -> None:
        try:
            function()
        except BaseException as raised:
            error.append(raised)

    thread = threading.Thread(target=call, name="ray", daemon=True)
    thread.start()
    try:
        responded = time.monotonic()
        while thread.is_alive():
            thread.join(CHECK_SECONDS)
            if is_alive():
                responded = time.monotonic()
            elif time.monotonic() - responded > PATIENCE or has_dead_daemon():
                stop()
                return False
    except KeyboardInterrupt:
        stop()
        end = time.monotonic() + STOP_SECONDS
        while thread.is_alive() and is_alive() and time.monotonic() < end:
            thread.join(0.2)
        raise
    if error:
        raise error[0]
    return True


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
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # by default, SIGTERM during the start takes effect after 30 s
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
