"""What an evaluator asks of the process that started it.

A candidate's process may be killed at any time, so it holds no connection to Ray and no credentials. What it needs of
the cluster, such as a reading on another node, its parent does for it: one line of JSON up the pipe, one down.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autocompress.errors import AutocompressError, MeasurementError

Ask = Callable[[dict[str, Any]], dict[str, Any]]

_parents: list[Ask] = []


def connect(ask: Ask) -> None:
    """Tell this process how to reach its parent; called once, before the evaluator is built."""
    _parents[:] = [ask]


def has_parent() -> bool:
    """True in a process that `autocompress.cluster.process.KillableWorker` started."""
    return bool(_parents)


def ask_parent(question: dict[str, Any]) -> dict[str, Any]:
    """The parent's answer; the time until it comes is not the candidate's.

    Args:
        question: JSON.

    Raises:
        MeasurementError: the parent could not do what was asked, or there is none.
    """
    if not _parents:
        raise MeasurementError("expected a process that a search started, got one without a parent to ask")
    reply = _parents[0]({"ask": question})
    if "refused" in reply:
        raise _refusal(reply["refused"]["kind"], reply["refused"]["message"])
    return dict(reply["answer"])


def refused(error: AutocompressError) -> dict[str, Any]:
    """The parent's line when it could not do what was asked."""
    return {"refused": {"kind": error.kind, "message": str(error)}}


def _refusal(kind: str, message: str) -> AutocompressError:
    error = MeasurementError(message)
    error.kind = kind
    return error
