from __future__ import annotations

import pytest

from autocompress.front.summary import SearchSummary
from autocompress.records import SearchLog
from autocompress.report.search_words import (
    candidates_words,
    sampler_words,
    search_line,
    seed_words,
    share_words,
    state_words,
    time_words,
)

SUMMARY = SearchSummary(
    total=60,
    begun=37,
    counts={"failed": 1, "complete": 12, "paused": 3, "stopped": 21},
    stops={"rung": 18, "hopeless": 2, "repeat": 1},
    seeds={"dense": 1, "uniform": 10, "budget": 12},
    hypervolume=0.41234,
    seconds=372.0,
    shares={
        "propose": 0.02,
        "compress": 0.08,
        "recover": 0.61,
        "export": 0.14,
        "measure": 0.12,
        "orchestration": 0.03,
    },
    log=SearchLog(sampler="surrogate", why="auto: 60 candidates of about 6 s each"),
)
SHARES = "recovering 61%, exporting 14%, measuring 12%, compressing 8%, proposing 2%, orchestration 3%"


def test_one_line_tells_the_whole_search() -> None:
    assert search_line(SUMMARY) == (
        "37 of 60 candidates: 12 complete, 18 stopped early at a rung, 2 not built as hopeless, 1 not built as "
        f"repeats, 3 paused, 1 failed; hypervolume 0.412; 6 min 12 s: {SHARES}; "
        "sampler surrogate (auto: 60 candidates of about 6 s each)"
    )


def test_what_is_not_known_is_not_told() -> None:
    bare = SearchSummary(total=1, begun=0)
    assert search_line(bare) == "0 of 1 candidate: none yet; hypervolume 0.000"
    assert (sampler_words(bare), time_words(bare), share_words({}), seed_words(bare)) == ("", "", "", "no seeds")
    assert sampler_words(SearchSummary(total=1, begun=0, log=SearchLog(sampler="tpe"))) == "tpe"


def test_the_sampler_is_named_once() -> None:
    log = SearchLog(sampler="nsga2", why="sampler nsga2: as the study says")
    assert sampler_words(SUMMARY.model_copy(update={"log": log})) == "nsga2 (as the study says)"


def test_the_budget_of_time_stands_beside_what_was_spent() -> None:
    assert time_words(SUMMARY.model_copy(update={"time_s": 600.0})) == f"6 min 12 s of 10 min 00 s: {SHARES}"


def test_kinds_of_seeds_are_counted_the_most_frequent_first() -> None:
    assert seed_words(SUMMARY) == "23 seeds: 12 budget, 10 uniform, 1 dense"


@pytest.mark.parametrize(
    ("counts", "stops", "words"),
    [
        ({"complete": 2}, {}, "2 complete"),
        ({"stopped": 3}, {"time": 2, "foreign": 1}, "2 stopped by the budget of time, 1 stopped otherwise"),
        ({"interrupted": 1, "waiting": 4}, {}, "1 interrupted"),
        ({}, {}, "none yet"),
    ],
)
def test_states_are_told_in_one_order(counts: dict[str, int], stops: dict[str, int], words: str) -> None:
    assert state_words(counts, stops) == words


def test_a_part_that_is_hardly_there_is_not_nothing() -> None:
    assert share_words({"recover": 0.998, "propose": 0.002}) == "recovering 100%, proposing under 1%"
    assert candidates_words(SUMMARY).startswith("37 of 60 candidates: ")
