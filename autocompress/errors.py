"""Errors that a user can act on.

Every message says what was expected, what was found (with the value and its key) and what to do next.
Each class carries the exit code of the command line.
"""

from __future__ import annotations


class AutocompressError(Exception):
    """Base of every error that autocompress raises on purpose."""

    exit_code = 1
    #: Short machine-readable word kept with a failed trial.
    kind = "error"


class ConfigError(AutocompressError):
    """A study, space or command-line value is wrong; nothing was created."""

    exit_code = 2
    kind = "config"


class StudyChangedError(ConfigError):
    """The study on disk was made from another configuration, model, data or code."""

    kind = "changed"


class StudyLockedError(AutocompressError):
    """Another process is running this study."""

    kind = "locked"


class TaskError(AutocompressError):
    """The user's task function raised, or did not return what a task needs."""

    kind = "task"


class InfeasibleError(AutocompressError):
    """A plan that cannot be built: a group without channels, an unknown layer, an unsupported bit width."""

    kind = "infeasible"


class CompressionError(AutocompressError):
    """A compression pass failed."""

    kind = "compress"


class ExportError(AutocompressError):
    """The network could not be written as ONNX, or what was written is not what was asked."""

    kind = "export"


class MeasurementError(AutocompressError):
    """A measurement could not be taken, or its values are out of range."""

    kind = "measure"


class WorkerError(AutocompressError):
    """A candidate's process died, ran out of memory or exceeded its time."""

    kind = "worker"


class SearchError(AutocompressError):
    """The search cannot go on."""

    kind = "search"


class InterruptedStudyError(AutocompressError):
    """The user stopped the study; the same command continues it."""

    exit_code = 130
    kind = "interrupted"


class RegistryError(AutocompressError):
    """The registry refused, is away, or does not hold what was asked."""

    kind = "registry"


class NoCandidateError(AutocompressError):
    """No candidate meets the constraints; the message names the nearest ones."""

    exit_code = 3
    kind = "no-candidate"


class VerificationError(AutocompressError):
    """Registered bytes do not show what their evidence card claims."""

    exit_code = 4
    kind = "verification"
