"""AutoML for compression: joint search of sparsity, bits and width for the front of accuracy and measured latency.

Examples:
    A study in Python is the same as one in a file::

        from autocompress import Study, Task, run

        outcome = run(Study.from_packaged("digits"))
        for member in outcome.front.rows:
            print(member.uri, member.values["accuracy"].value, member.values["latency_ms"].value)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autocompress.config import Study
    from autocompress.flows.compress import run
    from autocompress.task import Recipe, Task

__all__ = ["Recipe", "Study", "Task", "run"]

_HOMES = {
    "Recipe": "autocompress.task",
    "Study": "autocompress.config",
    "Task": "autocompress.task",
    "run": "autocompress.flows.compress",
}


def __getattr__(name: str) -> Any:
    # Lazy: the command line checks a study file without waiting for torch, Ray and Prefect to load.
    if name not in _HOMES:
        raise AttributeError(f"module 'autocompress' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
