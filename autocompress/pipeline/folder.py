"""The study's folder: where everything lies, written whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from autocompress.errors import AutocompressError, StudyLockedError
from autocompress.files import write_bytes
from autocompress.records import Plan, Record, Role

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class StudyFolder:
    """Paths below one study's folder, and the two ways of writing there."""

    root: Path

    @property
    def study(self) -> Path:
        """The configuration that the study was created with."""
        return self.root / "study.json"

    @property
    def prepared(self) -> Path:
        """What preparation found: hashes, structure, baseline."""
        return self.root / "prepared.json"

    @property
    def profile(self) -> Path:
        """Latency per layer and sensitivity per group."""
        return self.root / "profile.json"

    @property
    def model(self) -> Path:
        """Weights of the dense model."""
        return self.root / "base" / "model.safetensors"

    @property
    def statistics(self) -> Path:
        """What was learned from training data about the dense model: gradients, activations, moments of inputs."""
        return self.root / "base" / "statistics.safetensors"

    @property
    def journal(self) -> Path:
        """The ledger, unless the study names a database."""
        return self.root / "journal.log"

    @property
    def search_log(self) -> Path:
        """What the search decided by itself, a `SearchLog`."""
        return self.root / "search.json"

    @property
    def seconds(self) -> Path:
        """The longest wall time of each stage over all runs, `StageSeconds`."""
        return self.root / "seconds.json"

    @property
    def finalists(self) -> Path:
        """The finalists after full recovery."""
        return self.root / "finalists.json"

    @property
    def opened(self) -> Path:
        """Test accuracies by artifact: each is measured once."""
        return self.root / "test_opened.json"

    @property
    def registered(self) -> Path:
        """The versions that the registry holds."""
        return self.root / "registered.json"

    @property
    def page(self) -> Path:
        """The report."""
        return self.root / "report.html"

    @property
    def slot(self) -> Path:
        """Lock files of the exclusive measuring slot."""
        return self.root / "slot"

    @property
    def logs(self) -> Path:
        """Output of the candidates' processes."""
        return self.root / "logs"

    def checkpoint(self, plan: Plan, role: Role) -> Path:
        """What a candidate of the search was trained so far, or a finalist."""
        return self.root / "checkpoints" / f"{plan.key}-{role}"

    def artifact(self, sha256: str) -> Path:
        """The model file with this hash."""
        return self.root / "artifacts" / f"{sha256}.onnx"

    def write_artifact(self, model: bytes) -> str:
        """Keep a model file under its own hash; returns the hash."""
        sha256 = hashlib.sha256(model).hexdigest()
        write_bytes(self.artifact(sha256), model)
        return sha256

    @contextlib.contextmanager
    def lent_artifact(self, model: bytes) -> Iterator[str]:
        """Have a model file under its own hash inside the block only, unless it is kept anyway; yields the hash."""
        kept = self.artifact(hashlib.sha256(model).hexdigest()).is_file()
        sha256 = self.write_artifact(model)
        try:
            yield sha256
        finally:
            if not kept:
                self.artifact(sha256).unlink(missing_ok=True)

    def read_artifact(self, sha256: str) -> bytes:
        """The bytes of a kept model file.

        Raises:
            AutocompressError: the file is gone, or its bytes no longer have this hash.
        """
        path = self.artifact(sha256)
        if not path.is_file():
            raise AutocompressError(f"artifact {path} is missing; run the study again to make it anew")
        model = path.read_bytes()
        found = hashlib.sha256(model).hexdigest()
        if found != sha256:
            raise AutocompressError(
                f"artifact {path}: expected sha256 {sha256}, got {found}: the file was changed after it was measured; "
                "delete it and run the study again"
            )
        return model

    @contextlib.contextmanager
    def driving(self) -> Iterator[None]:
        """Hold the study for this process: two drivers on one ledger would run trials twice.

        Raises:
            StudyLockedError: another process holds it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "driver.lock").open("a") as lock:
            for patience in range(9, -1, -1):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    # `is_driven` holds the lock for a moment too.
                    if patience == 0:
                        raise StudyLockedError(
                            f"study folder {self.root}: another process is running this study; wait for it or stop it"
                        ) from None
                    time.sleep(0.1)
            yield

    def is_driven(self) -> bool:
        """Whether a process is running the study now."""
        path = self.root / "driver.lock"
        if not path.is_file():
            return False
        with path.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False


def write_record(path: Path, record: Record) -> None:
    """Write a record as JSON, whole or not at all."""
    write_bytes(path, record.model_dump_json(indent=1).encode())


def read_record(path: Path, kind: type[R]) -> R | None:
    """The record in a file; None if there is no such file.

    Raises:
        AutocompressError: the file does not hold such a record.
    """
    if not path.is_file():
        return None
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValueError as error:
        raise AutocompressError(
            f"{path}: expected a {kind.__name__} record; it is damaged or from another version of autocompress. "
            f"Move the study folder away and run again. ({str(error).splitlines()[0]})"
        ) from error
