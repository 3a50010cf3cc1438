"""The Ray session that trials run in: a quiet one of our own, or the cluster at ``RAY_ADDRESS``."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from autocompress.cluster.reaper import reaping
from autocompress.errors import InterruptedStudyError, SearchError

#: Nothing large passes through Ray here: requests and measurements are a few kilobytes.
_OBJECT_STORE_BYTES = 100 * 2**20

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Tune's own loggers write each trial to three formats; the ledger is the only truth.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_WARN_THRESHOLD_S": "60",
}
#: Only where the session is ours.
_OWN_ENVIRONMENT = {
    # Candidates have caps of their own, and the kernel takes a candidate first. Ray's monitor would kill the small
    # actor beside the large candidate.
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_AUTH_MODE": "token",
    # Named for other systems, it does here what it does there: every socket is bound to loopback. Without it Ray
    # replaces 127.0.0.1 by the machine's address and listens on all interfaces.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


@contextlib.contextmanager
def ray_session(workers: int) -> Iterator[int]:
    """Have Ray running inside the block.

    A session of this process that runs already is used and left running. Otherwise the cluster at ``RAY_ADDRESS`` is
    joined, or, if that is not set, a local session is started: bound to loopback, with Ray's token authentication, and
    ended with the block. Should this process die, the local session dies with it.

    Args:
        workers: how many candidates shall run side by side; each takes one CPU of Ray's count.

    Yields:
        How many can: `workers`, or the cluster's CPUs if it has fewer.

    Raises:
        SearchError: Ray could not be started or reached, or has no CPU to offer.
    """
    # By default Tune starts one actor at a time, which takes minutes for a cluster's workers.
    with _variables({**_ENVIRONMENT, "TUNE_MAX_PENDING_TRIALS_PG": str(workers)}):
        import ray

        if ray.is_initialized():
            yield _capacity(workers)
            return
        with contextlib.ExitStack() as stack:
            address = os.environ.get("RAY_ADDRESS")
            folder = None if address else stack.enter_context(_own_folder())
            try:
                with _sigterm_kept():
                    if folder is None:
                        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
                    else:
                        _start_local(workers, folder)
                stack.callback(ray.shutdown)
            except (KeyboardInterrupt, SystemExit) as error:  # Ray turns SIGTERM into the latter
                ray.shutdown()
                raise InterruptedStudyError("stopped while Ray started; the same command continues") from error
            except Exception as error:
                ray.shutdown()
                where = f"the Ray cluster at {address!r}" if address else "a local Ray session"
                first = str(error).strip().partition("\n")[0]
                raise SearchError(f"cannot use {where}: {type(error).__name__}: {first}") from error
            yield _capacity(workers)


def _start_local(workers: int, folder: Path) -> None:
    import ray
    from ray._private import ray_constants
    from ray._raylet import Config  # type: ignore[attr-defined]  # of a compiled module

    _ensure_token()
    with _variables(_OWN_ENVIRONMENT):
        # Ray reads its variables when it is imported, which may be long ago: these two lines make it read ours.
        Config.initialize("")
        ray_constants.ENABLE_RAY_CLUSTER = False
        ray.init(
            num_cpus=workers,
            num_gpus=0,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=False,
            configure_logging=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(folder),
        )


@contextlib.contextmanager
def _own_folder() -> Iterator[Path]:
    """A temporary folder for one session, and a guard that ends what still uses it at the end."""
    # Ray puts sockets there, whose paths may have 107 letters: not below a long TMPDIR.
    folder = Path(tempfile.mkdtemp(prefix="autocompress-ray-", dir="/tmp"))
    try:
        with reaping(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keep the caller's handler, which ray.init replaces by one that exits; where there is none, Ray's is better."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler != signal.SIG_DFL and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _capacity(workers: int) -> int:
    import ray

    cpus = int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
    if cpus < 1:
        raise SearchError("the Ray cluster offers no CPU; trials would wait for ever. Add a node with num_cpus >= 1")
    return min(workers, cpus)


def _ensure_token() -> None:
    """A token that only this user can read: Ray itself would write the file readable for all."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return
    path = Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        # Written whole under another name, then linked: two processes that start together get one token.
        neighbour = path.with_name(f".auth_token.{os.getpid()}")
        descriptor = os.open(neighbour, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(descriptor, secrets.token_hex(32).encode())
            os.fsync(descriptor)
            path.hardlink_to(neighbour)
        finally:
            os.close(descriptor)
            neighbour.unlink()
    path.chmod(0o600)


@contextlib.contextmanager
def _variables(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables that the user has not set, and take them back at the end."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
