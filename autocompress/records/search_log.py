"""What a search decided by itself: which sampler, which rungs, and what it had to say on its way."""

from __future__ import annotations

from pydantic import Field

from autocompress.records.base import Record


class SearchLog(Record):
    """Kept as ``search.json`` in the study's folder, and written anew whenever one of these changes.

    What became of candidates is in the ledger alone; this holds what cannot be read off it.

    Attributes:
        sampler: kind of what proposes, such as ``"surrogate"``; empty before the first proposal.
        why: why that one, a sentence such as ``"sampler nsga2: as the study says"``.
        messages: what else a reader should know, in the order in which it was said, each once: a first rung that was
            lengthened or never checked, a sampler that raised and was replaced.
        seconds: wall time over all runs: ``"seeds"``, of finding them; ``"search"``, of everything after that.
    """

    sampler: str = ""
    why: str = ""
    messages: tuple[str, ...] = ()
    seconds: dict[str, float] = Field(default_factory=dict)
