"""The study file: every setting of a study, checked before anything is imported, created or run.

Nothing heavy is imported here: samplers and targets are frozen settings that import their library when built.
"""

from autocompress.config.stages import FinalistsConfig, Limit, MeasureConfig, RegistryConfig, SearchConfig
from autocompress.config.study import (
    OUTPUT,
    Study,
    diff,
    find_study,
    load_study,
    packaged_studies,
    read_identity,
)

__all__ = [
    "OUTPUT",
    "FinalistsConfig",
    "Limit",
    "MeasureConfig",
    "RegistryConfig",
    "SearchConfig",
    "Study",
    "diff",
    "find_study",
    "load_study",
    "packaged_studies",
    "read_identity",
]
