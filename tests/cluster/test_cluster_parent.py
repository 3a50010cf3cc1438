"""What a candidate's process asks of its parent, over real pipes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from autocompress.cluster.parent import ask_parent, has_parent
from autocompress.cluster.process import KillableWorker
from autocompress.errors import MeasurementError
from autocompress.records import EvaluatorReference

ASKING = EvaluatorReference(factory=f"{Path(__file__).with_name('asking.py')}:build")


def doubled(question: dict[str, Any]) -> dict[str, Any]:
    if question["question"] == 13:
        raise MeasurementError("13 is not doubled")
    time.sleep(question["question"] / 100)
    return {"answer": 2 * question["question"]}


def test_the_parent_answers_every_question_within_one_evaluation(tmp_path: Path) -> None:
    worker = KillableWorker(ASKING, tmp_path, 1.0, answer=doubled)
    reply = worker.call({"questions": [1, 2, 3]}, 20)
    assert reply == {"answers": [{"answer": 2}, {"answer": 4}, {"answer": 6}], "parent": True}
    worker.close()


def test_a_refusal_is_raised_in_the_child_with_its_kind_and_the_child_goes_on(tmp_path: Path) -> None:
    worker = KillableWorker(ASKING, tmp_path, 1.0, answer=doubled)
    assert worker.call({"questions": [13]}, 20) == {"refused": "13 is not doubled", "kind": "measure"}
    assert worker.call({"questions": [5]}, 20)["answers"] == [{"answer": 10}]
    worker.close()


def test_the_time_of_an_answer_is_not_the_candidates(tmp_path: Path) -> None:
    worker = KillableWorker(ASKING, tmp_path, 1.0, answer=doubled)
    worker.call({"questions": []}, 20)  # starts it
    assert worker.call({"questions": [150]}, 0.5)["answers"] == [{"answer": 300}]
    worker.close()


def test_a_parent_that_takes_no_questions_says_so(tmp_path: Path) -> None:
    worker = KillableWorker(ASKING, tmp_path, 1.0)
    reply = worker.call({"questions": [1]}, 20)
    assert reply["refused"] == "expected a parent that answers its evaluator's questions, got one that takes none"
    worker.close()


def test_an_error_of_the_parent_itself_is_not_taken_for_a_refusal(tmp_path: Path) -> None:
    def broken(question: dict[str, Any]) -> dict[str, Any]:
        raise ZeroDivisionError

    worker = KillableWorker(ASKING, tmp_path, 1.0, answer=broken)
    with pytest.raises(ZeroDivisionError):
        worker.call({"questions": [1]}, 20)
    worker.close()


def test_a_process_that_no_search_started_has_nobody_to_ask() -> None:
    assert not has_parent()
    with pytest.raises(MeasurementError, match="got one without a parent to ask"):
        ask_parent({})
