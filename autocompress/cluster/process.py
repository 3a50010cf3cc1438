"""A candidate's process, which may hang, crash or eat all memory without taking the search with it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from autocompress.cluster.parent import Ask, refused
from autocompress.errors import AutocompressError, MeasurementError, WorkerError
from autocompress.records import EvaluatorReference

#: Seconds that imports and the factory may take, before the candidate's own time begins.
STARTUP_S = 180.0
_POLL_S = 0.1
#: Every so many polls the memory of the whole process tree is summed; its root is looked at in each.
_TREE_POLLS = 10
_GIB = 2**30
_names = itertools.count()


def _no_answer(question: dict[str, Any]) -> dict[str, Any]:
    raise MeasurementError("expected a parent that answers its evaluator's questions, got one that takes none")


class KillableWorker:
    """A persistent child process that evaluates one request after another; started at the first, anew after a death.

    Args:
        evaluator: how the child builds ``evaluate(request) -> reply``.
        logs: folder for what the child prints, one file per process; stack dumps of killed ones are there too.
        memory_gb: cap on the memory of the child and its descendants, in GiB.
        cancelled: looked at ten times a second during a call; true ends the call and the child.
        answer: what the child asks by `autocompress.cluster.parent.ask_parent` is answered by this; an
            `AutocompressError` that it raises is raised in the child.
    """

    def __init__(
        self,
        evaluator: EvaluatorReference,
        logs: Path,
        memory_gb: float,
        cancelled: Callable[[], bool] = lambda: False,
        answer: Ask = _no_answer,
    ) -> None:
        self._evaluator = evaluator
        self._logs = logs
        self._memory_gb = memory_gb
        self._cancelled = cancelled
        self._answer = answer
        self._child: _Child | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id, which is also its group's; None while there is no child."""
        return self._child.process.pid if self._child else None

    def call(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Let the child answer one request.

        Args:
            request: JSON.
            timeout_s: wall time for the answer, in seconds; neither starting the child nor answering what it asks is
                counted.

        Returns:
            The evaluator's reply, JSON.

        Raises:
            WorkerError: ``"kind: message"``, with the kind in its `kind`: ``timeout``, ``oom``, ``died``,
                ``cancelled``, or the kind or type name of what the evaluator raised. After the first four the child
                is gone.
        """
        if self._child is None:
            self._child = _Child(self._logs)
            start = {"factory": self._evaluator.factory, "arguments": self._evaluator.arguments}
            try:
                self._exchange(start, STARTUP_S)
            except WorkerError:
                self.close()
                raise
        return self._exchange({"request": request}, timeout_s)

    def close(self) -> None:
        """Kill the child with all its descendants; harmless if there is none."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _exchange(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        child = self._child
        if child is None:  # pragma: no cover - call() has just made it
            raise failure("died", "there is no process")
        deadline = time.monotonic() + timeout_s
        child.send(message)
        for poll in itertools.count():
            line = child.receive(min(_POLL_S, max(0.0, deadline - time.monotonic())))
            if line is not None:
                reply: dict[str, Any] = json.loads(line)
                if "ask" in reply:
                    asked = time.monotonic()
                    child.send(self._answered(reply["ask"]))
                    deadline += time.monotonic() - asked
                    continue
                if "error" in reply:
                    raise failure(reply["error"]["kind"], reply["error"]["message"])
                return dict(reply["ok"])
            if child.process.poll() is not None:
                raise self._ended(*child.epitaph())
            if self._cancelled():
                raise self._ended("cancelled", "the search was stopped")
            used = child.memory(tree=poll % _TREE_POLLS == 0, cap=self._memory_gb * _GIB)
            if used > self._memory_gb * _GIB:
                raise self._ended("oom", f"used {used / _GIB:.2f} GiB, allowed are {self._memory_gb:g} GiB")
            if time.monotonic() > deadline:
                child.dump_stack()
                raise self._ended("timeout", f"no answer within {timeout_s:g} s; its stack is in {child.log}")
        raise failure("died", "unreachable")  # pragma: no cover - the loop only ends by return or raise

    def _answered(self, question: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"answer": self._answer(question)}
        except AutocompressError as error:
            return refused(error)

    def _ended(self, kind: str, message: str) -> WorkerError:
        self.close()
        return failure(kind, message)


def failure(kind: str, message: str) -> WorkerError:
    """A `WorkerError` that reads ``"kind: message"`` and carries the kind."""
    error = WorkerError(f"{kind}: {message}")
    error.kind = kind
    return error


class _Child:
    """One process, its three pipes and its log."""

    def __init__(self, logs: Path) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.log = logs / f"worker-{os.getpid()}-{next(_names)}.log"
        requests, self._requests = os.pipe()
        self._replies, replies = os.pipe()
        alive, self._alive = os.pipe()
        self._oom_kills = _kernel_oom_kills()
        self._buffer = b""
        try:
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "autocompress.cluster.worker", *map(str, (requests, replies, alive))],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(requests, replies, alive),
                    start_new_session=True,  # its own group, to be killed whole; and out of reach of Ctrl-C
                    env={**os.environ, "PYTHONPATH": _import_path(), "PYTHONUNBUFFERED": "1"},
                )
        finally:
            for descriptor in (requests, replies, alive):
                os.close(descriptor)
        os.set_blocking(self._requests, False)

    def send(self, message: dict[str, Any]) -> None:
        """Write one line. A child that is dead or reads nothing is met by `receive` and its limits."""
        data = json.dumps(message).encode() + b"\n"
        deadline = time.monotonic() + 5.0
        with contextlib.suppress(BrokenPipeError):
            while data and time.monotonic() < deadline and self.process.poll() is None:
                if select.select([], [self._requests], [], _POLL_S)[1]:
                    with contextlib.suppress(BlockingIOError):
                        data = data[os.write(self._requests, data) :]

    def receive(self, timeout_s: float) -> bytes | None:
        """The next line, or None if there is none within the time."""
        if self.process.poll() is not None:
            timeout_s = 0.0  # what it wrote before it ended is read, then no more
        while b"\n" not in self._buffer:
            if not select.select([self._replies], [], [], timeout_s)[0]:
                return None
            data = os.read(self._replies, 1 << 16)
            if not data:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(_POLL_S)  # the pipe closes a moment before the process has ended
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def memory(self, *, tree: bool, cap: float) -> float:
        """Memory in use, in bytes: resident of the root, or proportional of the tree once that may exceed `cap`."""
        try:
            root = psutil.Process(self.process.pid)
            processes = [root, *root.children(recursive=True)] if tree else [root]
            resident = sum(_resident(p) for p in processes)
            # Forked loaders share their pages with the root: a plain sum would count these several times.
            return resident if resident <= cap else sum(_proportional(p) for p in processes)
        except psutil.NoSuchProcess:
            return 0.0

    def dump_stack(self) -> None:
        """Have the stacks of all threads written to the log."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGUSR1)
            time.sleep(0.3)

    def epitaph(self) -> tuple[str, str]:
        """Kind and message for a child that ended by itself."""
        code = self.process.wait()
        if code == -signal.SIGKILL and _kernel_oom_kills() > self._oom_kills:
            return "oom", f"killed by the kernel, which ran out of memory; log: {self.log}"
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return "died", f"{how}; log: {self.log}"

    def kill(self) -> None:
        """SIGKILL to the group and to descendants that left it; returns when the child is gone."""
        descendants: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            descendants = psutil.Process(self.process.pid).children(recursive=True)
        # Until it is waited for, or its guard is gone, the number cannot belong to another group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        for process in descendants:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the kernel; it dies when that returns
            self.process.wait(5.0)
        for descriptor in (self._requests, self._replies, self._alive):
            os.close(descriptor)


def _import_path() -> str:
    """The parent's import path, so that the child finds what the parent finds."""
    return os.pathsep.join(dict.fromkeys(str(Path(p).resolve()) for p in sys.path if Path(p).is_dir()))


def _resident(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0.0


def _proportional(process: psutil.Process) -> float:
    try:
        full = process.memory_full_info()
        return float(getattr(full, "pss", full.uss))
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0.0


def _kernel_oom_kills() -> int:
    """How many processes the kernel has killed for want of memory since it started; 0 where it does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
