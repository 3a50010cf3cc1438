"""Seeds: one root seed per study, and independent streams derived from it by name.

References:
    O'Neill, 2015, "Developing a seed_seq Alternative"; numpy.random.SeedSequence.
"""

from __future__ import annotations

import hashlib


def derive_seed(root: int, *names: str | int) -> int:
    """Seed of the stream that `names` identify, in [0, 2**31).

    The same root and names give the same seed on every machine and in every process; different names give
    independent streams.

    Args:
        root: seed of the study.
        names: what the stream is for, as ``("recover", plan.key)``.

    Returns:
        An integer that torch, numpy and Optuna accept.

    Examples:
        >>> derive_seed(0, "split") == derive_seed(0, "split")
        True
        >>> derive_seed(0, "split") == derive_seed(1, "split")
        False
    """
    text = "\x1f".join(str(part) for part in (root, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") & 0x7FFFFFFF
