"""An evaluator that passes what it is asked on to its parent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from autocompress.cluster.parent import ask_parent, has_parent
from autocompress.errors import MeasurementError


def build() -> Callable[[dict[str, Any]], dict[str, Any]]:
    def evaluate(request: dict[str, Any]) -> dict[str, Any]:
        try:
            answers = [ask_parent({"question": q}) for q in request["questions"]]
        except MeasurementError as error:
            return {"refused": str(error), "kind": error.kind}
        return {"answers": answers, "parent": has_parent()}

    return evaluate
