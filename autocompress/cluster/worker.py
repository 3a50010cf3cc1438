"""The process that evaluates candidates, and that may be killed: ``python -m autocompress.cluster.worker``.

Started by `autocompress.cluster.process.KillableWorker` only. It answers one JSON line with one JSON line over two
pipes of its own, so that whatever the user's code prints goes to the log instead. In between it may ask its parent,
see `autocompress.cluster.parent`.

Before anything is imported it forks a guard, a few megabytes that wait for the end of file on a third pipe, which the
parent holds open: when the parent dies, however it dies, the guard kills the whole process group, also one that is
stuck in native code or has children of its own.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autocompress.cluster.parent import connect
from autocompress.errors import AutocompressError
from autocompress.references import load_object

Evaluate = Callable[[dict[str, Any]], dict[str, Any]]

#: Words in the message of a library that could not allocate, torch's CPU allocator among them.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "Cannot allocate memory")


def main(arguments: list[str]) -> None:
    """Serve requests until the parent closes its end."""
    requests_fd, replies_fd, alive_fd = (int(a) for a in arguments[:3])
    _fork_guard(requests_fd, replies_fd, alive_fd)
    for descriptor in (requests_fd, replies_fd):
        os.set_inheritable(descriptor, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the driver, which decides what dies
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # works in native code as well: asked for before a kill
    _be_first_to_die()

    evaluate: Evaluate | None = None
    with os.fdopen(requests_fd, "rb") as requests, os.fdopen(replies_fd, "wb") as replies:

        def send(message: dict[str, Any]) -> None:
            sys.stdout.flush()
            sys.stderr.flush()
            replies.write(json.dumps(message).encode() + b"\n")
            replies.flush()

        def ask(question: dict[str, Any]) -> dict[str, Any]:
            send(question)
            return dict(json.loads(requests.readline()))

        connect(ask)
        while line := requests.readline():
            message = json.loads(line)
            if "factory" in message:
                evaluate, reply = _build(message["factory"], message["arguments"])
            else:
                reply = _answer(evaluate, message["request"])
            send(reply)


def _fork_guard(requests_fd: int, replies_fd: int, alive_fd: int) -> None:
    """Fork the process that kills this group at the parent's death. Nothing else runs yet, so forking is safe."""
    child = os.fork()
    if child != 0:
        os.waitpid(child, 0)
        os.close(alive_fd)
        return
    if os.fork() != 0:  # the guard is nobody's child, so that user code that waits for its children does not meet it
        os._exit(0)
    os.close(requests_fd)
    os.close(replies_fd)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(alive_fd, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def _be_first_to_die() -> None:
    """If the machine runs out of memory, let the kernel take this process and not the search."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _build(factory: str, arguments: dict[str, Any]) -> tuple[Evaluate | None, dict[str, Any]]:
    try:
        evaluate = load_object(factory)(**arguments)
        if not callable(evaluate):
            raise TypeError(f"{factory}: expected it to return a function, got {type(evaluate).__name__}")
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it is sent to the parent
        return None, _failure(error)
    return evaluate, {"ok": {}}


def _answer(evaluate: Evaluate | None, request: dict[str, Any]) -> dict[str, Any]:
    try:
        if evaluate is None:
            raise RuntimeError("asked before an evaluator was built")
        reply = evaluate(request)
        if not isinstance(reply, dict):
            raise TypeError(f"expected the evaluator to return a dict, got {type(reply).__name__}: {reply!r:.100}")
        json.dumps(reply)  # what is not JSON is this candidate's failure, not the process's end
    except (Exception, SystemExit) as error:  # noqa: BLE001 - it is sent to the parent
        return _failure(error)
    return {"ok": reply}


def _failure(error: BaseException) -> dict[str, Any]:
    traceback.print_exception(error)
    message = str(error)
    if isinstance(error, AutocompressError):
        kind = error.kind
    elif isinstance(error, MemoryError) or any(words in message for words in _OUT_OF_MEMORY):
        kind = "oom"
    elif isinstance(error, SystemExit):
        kind, message = "exit", f"the code called sys.exit({error.code!r})"
    else:
        kind = type(error).__name__
    return {"error": {"kind": kind, "message": message or type(error).__name__}}


if __name__ == "__main__":
    main(sys.argv[1:])
