"""The model registry: what a study writes into it, and how models are found and fetched from it."""

from __future__ import annotations

import difflib
import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import yaml
from pydantic import ValidationError

from autocompress.errors import RegistryError, VerificationError
from autocompress.files import write_bytes
from autocompress.front.selection import Alias
from autocompress.records import Finalist, Lineage, TrialRecord, Version
from autocompress.registry.address import ModelUri, check_model_name, sqlite_file
from autocompress.registry.baseline import keep_dense, read_dense
from autocompress.registry.card import EvidenceCard
from autocompress.registry.connection import Connection, all_pages
from autocompress.registry.publish import CARD_FILE, MODEL_FILE, PAGE_FILE, publish
from autocompress.registry.tags import CARD_SHA256, SHA256
from autocompress.registry.tracking import track_study

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

ALIASES: tuple[Alias, ...] = get_args(Alias)


class Store:
    """An MLflow tracking store and registry.

    Nothing is opened until the first call. Only one process, the study's driver, should write; any may read.
    """

    def __init__(self, tracking_uri: str | None, folder: Path) -> None:
        """Name the store.

        Args:
            tracking_uri: address of a server or database; None takes the variable ``MLFLOW_TRACKING_URI``, and
                without it ``mlflow.db`` in `folder`.
            folder: folder of all studies. Unless a server keeps them, model files go to its ``mlartifacts``.

        Raises:
            RegistryError: the address cannot hold a registry.
        """
        self._connection = Connection(tracking_uri, Path(folder))

    def __repr__(self) -> str:
        return f"Store({self.address!r})"

    @property
    def address(self) -> str:
        """The tracking address without credentials, for display."""
        return self._connection.safe_uri

    def track_study(
        self,
        study_name: str,
        params: Mapping[str, object],
        lineage: Lineage,
        trials: Sequence[TrialRecord],
        summary: Mapping[str, float] | None = None,
    ) -> str:
        """Write a study as a parent run, and each complete, stopped or failed trial as a child run.

        What a trial was worth at the rungs below the last becomes the metrics ``rung.<objective>``, with the rung as
        their step.

        Repeating it writes nothing twice: what is there is found by tags, what a crash left half done is completed.

        Args:
            study_name: also names the experiment, ``autocompress/<study_name>``.
            params: the study's settings, flat; credentials in them are hidden.
            lineage: the identity of the study; another lineage makes another parent run.
            trials: all trials known; those that wait, run or are paused are left for a later call.
            summary: metrics of the study's run beside its numbers of trials.

        Returns:
            Id of the parent run.

        Raises:
            RegistryError: MLflow refused or is away.
        """
        check_model_name(study_name)
        return track_study(self._connection, study_name, params, lineage, trials, summary or {})

    def keep_dense(self, parent_run: str, onnx_bytes: bytes) -> None:
        """Keep the dense model's file with a study's run, so that latencies can be measured beside it again.

        Args:
            parent_run: the study's run, from `track_study`.
            onnx_bytes: the dense file; kept under its sha256, once.

        Raises:
            RegistryError: MLflow refused or is away, or stored other bytes.
        """
        keep_dense(self._connection, parent_run, onnx_bytes)

    def dense(self, uri: str) -> bytes:
        """The dense model's file that a version was measured beside.

        Args:
            uri: ``models:/name/3`` or ``models:/name@alias``.

        Raises:
            RegistryError: as `fetch`; or the version's study kept no dense model.
            VerificationError: as `fetch`; or the kept file is not the one on the version's card.
        """
        return read_dense(self._connection, self.fetch(uri)[1])

    def register(
        self,
        model: str,
        finalist: Finalist,
        onnx_bytes: bytes,
        card: EvidenceCard,
        lineage: Lineage,
        parent_run: str | None = None,
    ) -> Version:
        """Put a measured model into the registry with its evidence, or find it there.

        The identity is study, plan and artifact: the same finalist is never registered twice, wherever an earlier
        attempt was cut off. A version appears only after its stored bytes were read back and found equal.

        Args:
            model: name of the registry model; made if there is none.
            finalist: what is registered.
            onnx_bytes: the measured file.
            card: its evidence card, of the same finalist and lineage.
            lineage: hashes of all inputs.
            parent_run: the study's run, from `track_study`.

        Raises:
            RegistryError: the parts do not belong together, the bytes are not the measured ones or would be stored
                as others, or MLflow refused or is away.
        """
        check_model_name(model)
        for what, expected, got in (
            ("card.model", model, card.model),
            ("card.trial", finalist.number, card.trial),
            ("card.plan", finalist.plan.key, card.plan.key),
            ("card.final.artifact", finalist.final.artifact.sha256, card.artifact.sha256),
            ("card.test", finalist.test, card.test),
            ("card.origin.lineage", lineage, card.origin.lineage),
        ):
            if expected != got:
                raise RegistryError(f"trial {finalist.number}: {what}: expected {expected}, got {got}")
        made = publish(self._connection, card, onnx_bytes, parent_run)
        return self.resolve(f"models:/{model}/{made.version}")

    def alias(self, model: str, aliases: Mapping[Alias, Version | int]) -> None:
        """Let each alias name the given version, and no other one any more.

        Args:
            model: name of the registry model.
            aliases: alias -> version of this model. Aliases that are not given stay where they are.

        Raises:
            RegistryError: an alias or version is not known; nothing was moved then.
        """
        numbers: dict[str, int] = {}
        known = {v.version for v in self.versions(model)}
        for alias, version in aliases.items():
            if alias not in ALIASES:
                raise RegistryError(f"alias: expected one of {', '.join(ALIASES)}, got {alias!r}")
            if isinstance(version, Version) and version.model != model:
                raise RegistryError(f"alias {alias!r}: expected a version of {model!r}, got {version.uri}")
            numbers[alias] = version.version if isinstance(version, Version) else version
            if numbers[alias] not in known:
                raise _no_version(model, numbers[alias], known)
        with self._connection.guard(f"moving aliases of {model!r}") as client:
            for name, number in numbers.items():
                client.set_registered_model_alias(model, name, str(number))

    def versions(self, model: str) -> tuple[Version, ...]:
        """All versions of a model, oldest first, with their aliases; `tags.values` reads what was measured of each.

        Raises:
            RegistryError: there is no such model, or MLflow refused or is away.
        """
        check_model_name(model)
        aliases = self._aliases(model)
        with self._connection.guard(f"listing {model!r}") as client:
            found = all_pages(
                lambda token: client.search_model_versions(f"name = '{model}'", max_results=1000, page_token=token)
            )
        return tuple(_version(v, aliases) for v in sorted(found, key=lambda v: int(v.version)))

    def resolve(self, uri: str) -> Version:
        """The version that an address names.

        Args:
            uri: ``models:/name/3`` or ``models:/name@alias``.

        Raises:
            RegistryError: the address is malformed, or there is no such model, version or alias.
        """
        address = ModelUri.parse(uri)
        aliases = self._aliases(address.model)
        number = address.version
        if number is None:
            number = aliases.get(str(address.alias))
            if number is None:
                raise RegistryError(
                    f"{uri}: the model has no alias {address.alias!r}; it has {', '.join(sorted(aliases)) or 'none'}"
                )
        found = {v.version: v for v in self.versions(address.model)}
        if number not in found:
            raise _no_version(address.model, number, set(found))
        return found[number]

    def fetch(self, uri: str) -> tuple[bytes, EvidenceCard]:
        """The ONNX file and evidence card of a version. Nothing is unpickled and no code of the model runs.

        Args:
            uri: ``models:/name/3`` or ``models:/name@alias``.

        Raises:
            RegistryError: there is no such version, it is no ONNX model, or it carries no evidence card.
            VerificationError: file or card are not those that were registered.
        """
        version = self.resolve(uri)
        with self._connection.guard(f"fetching {version.uri}") as client:
            location = client.get_model_version_download_uri(version.model, str(version.version))
            _check_flavor(version, self._connection.read(location, "MLmodel"))
            if SHA256 not in version.tags:
                raise RegistryError(
                    f"{version.uri}: expected a version that autocompress registered, got one without the tag {SHA256}"
                )
            text = self._connection.read(location, CARD_FILE)
            onnx_bytes = self._connection.read(location, MODEL_FILE)
        _check_digest(version, CARD_FILE, text, version.tags.get(CARD_SHA256, ""))
        _check_digest(version, MODEL_FILE, onnx_bytes, version.tags[SHA256])
        try:
            card = EvidenceCard.model_validate_json(text)
        except ValidationError as error:
            raise RegistryError(
                f"{version.uri}: its {CARD_FILE} is not an evidence card that this release reads: {error}"
            ) from error
        _check_digest(version, MODEL_FILE, onnx_bytes, card.artifact.sha256)
        return onnx_bytes, card

    def download(self, uri: str, folder: Path) -> Path:
        """Write a version's ``model.onnx``, ``card.json`` and ``card.md`` into a folder.

        A new folder appears complete or not at all. In a folder that exists, each file is replaced as a whole, the
        model last; other files are left alone.

        Args:
            uri: ``models:/name/3`` or ``models:/name@alias``.
            folder: made if there is none.

        Returns:
            Path of ``model.onnx``.

        Raises:
            RegistryError: as `fetch`; or the folder cannot be written.
            VerificationError: as `fetch`.
        """
        onnx_bytes, card = self.fetch(uri)
        folder = Path(folder).absolute()
        files = {
            PAGE_FILE: card.to_markdown().encode(),
            CARD_FILE: (card.model_dump_json(indent=2)).encode(),
            MODEL_FILE: onnx_bytes,
        }
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as name:
                fresh = Path(name) / "files"
                fresh.mkdir()
                for file, content in files.items():
                    write_bytes(fresh / file, content)
                if folder.exists():
                    for file in files:
                        (fresh / file).replace(folder / file)
                else:
                    fresh.rename(folder)
        except OSError as error:
            raise RegistryError(f"{uri}: cannot write to {folder}: {error}") from error
        return folder / MODEL_FILE

    def _aliases(self, model: str) -> dict[str, int]:
        file = sqlite_file(self._connection.uri)
        if file is not None and not file.exists():  # a question must not create the store
            raise RegistryError(f"no model {model!r}: {self.address} does not exist yet; 'autocompress run' makes it")
        with self._connection.guard(f"looking up {model!r}") as client:
            from mlflow.exceptions import MlflowException

            try:
                found = client.get_registered_model(model)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            else:
                return {str(alias): int(number) for alias, number in found.aliases.items()}
            known = [m.name for m in all_pages(lambda token: client.search_registered_models(page_token=token))]
        nearest = difflib.get_close_matches(model, known, n=3) or sorted(known)[:5]
        raise RegistryError(
            f"no model {model!r} in {self.address}; " + (f"there is {', '.join(nearest)}" if nearest else "it is empty")
        )


def _version(found: ModelVersion, aliases: Mapping[str, int]) -> Version:
    number = int(found.version)
    return Version(
        model=found.name,
        version=number,
        sha256=found.tags.get(SHA256, ""),
        run_id=found.run_id or "",
        aliases=tuple(sorted(alias for alias, target in aliases.items() if target == number)),
        tags=dict(found.tags),
    )


def _no_version(model: str, number: int, known: set[int]) -> RegistryError:
    have = ", ".join(str(n) for n in sorted(known)[-10:]) or "none"
    return RegistryError(f"models:/{model}/{number}: no such version; the latest are {have}")


def _check_flavor(version: Version, mlmodel: bytes) -> None:
    try:
        parsed: Any = yaml.safe_load(mlmodel)
        flavors = dict(parsed["flavors"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError):
        raise RegistryError(f"{version.uri}: its MLmodel file names no flavors; register the model again") from None
    function = flavors.pop("python_function", None) or {}
    native = flavors.pop("onnx", None)
    loader = function.get("loader_module", "mlflow.onnx")
    if native is None or flavors or loader != "mlflow.onnx":
        other = ", ".join(sorted(flavors)) or str(loader)
        raise RegistryError(
            f"{version.uri}: expected an ONNX model, got the flavor {other}; "
            "other flavors can run code when they are loaded, so it was not opened"
        )
    if native.get("data") != MODEL_FILE:
        raise RegistryError(f"{version.uri}: expected its data in {MODEL_FILE}, got {native.get('data')!r}")


def _check_digest(version: Version, file: str, content: bytes, expected: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise VerificationError(
            f"{version.uri}: {file} is not the one that was registered: expected sha256 {expected}, got {found}; "
            "the artifact store was changed, do not use this version"
        )
