"""What a candidate's training has reached, on disk, so that a longer or a second one goes on from there.

A folder belongs to one candidate. In it are, as safetensors that carry their own content hash:

- ``trained.safetensors``: the network after a whole training, and how many steps it had;
- ``progress.safetensors``: a training that is under way: network, optimizer, generator and losses after a step.

Both say whose they are. What is damaged, or another candidate's, is not used, and named.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from autocompress.compress.state import load_noted, save_tensors
from autocompress.errors import CompressionError

#: Seconds of training between two notes of its progress.
INTERVAL_S = 60.0
_FORMAT = "1"
_TRAINED = "trained.safetensors"
_PROGRESS = "progress.safetensors"


@dataclass(frozen=True)
class Trained:
    """A network after a whole training.

    Attributes:
        steps: that the training was planned with, from the candidate's first one on.
        taken: optimizer steps of these that were taken; fewer if it stopped by itself.
        tensors: see `snapshot`.
    """

    steps: int
    taken: int
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Progress:
    """A training after one of its steps.

    Attributes:
        step: steps taken, at least 1.
        tensors: see `snapshot`.
        moments: of the optimizer, see `optimizer_tensors`.
        generator: state of torch's global generator.
        losses: of every step, shape (step,), float64.
    """

    step: int
    tensors: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    generator: Tensor
    losses: Tensor


@dataclass(frozen=True)
class Checkpoint:
    """The folder of one candidate, as its main training uses it.

    Attributes:
        folder: exists; nobody else uses it meanwhile, see `opened`.
        owner: whose it is: what has to be equal for the weights to be the same, such as plan, model and seed.
        continues: a training of more steps may go on from one of fewer.
        warn: called with a sentence for everything that could not be used or written.
        interval_s: seconds of training between two notes of its progress.
    """

    folder: Path
    owner: Mapping[str, str]
    continues: bool
    warn: Callable[[str], None]
    interval_s: float

    def trained(self, steps: int, like: Mapping[str, Tensor]) -> Trained | None:
        """The whole training that one of `steps` steps can go on from; None if there is none.

        Args:
            steps: wanted, counted from the candidate's first one.
            like: tensors whose names, shapes and kinds of number must be those on disk.
        """
        found = self._read(_TRAINED, {}, {f"network.{name}": tensor for name, tensor in like.items()}, exact=True)
        if found is None:
            return None
        tensors, notes = found
        done = int(notes["steps"])
        if done > steps or (done < steps and not self.continues):
            return None
        return Trained(done, int(notes["taken"]), _part(tensors, "network"))

    def keep(self, trained: Trained) -> None:
        """Replace what was kept, unless that had more steps; what was noted of the way there is deleted.

        A longer training is worth more to whoever asks next, and a shorter one can be had again.
        """
        found = self._read(_TRAINED, {}, {}, exact=False, quiet=True)
        if found is None or int(found[1]["steps"]) <= trained.steps:
            notes = {"steps": str(trained.steps), "taken": str(trained.taken)}
            self._write(_TRAINED, {f"network.{name}": tensor for name, tensor in trained.tensors.items()}, notes)
        (self.folder / _PROGRESS).unlink(missing_ok=True)

    def progress(self, first: int, steps: int, like: Mapping[str, Tensor]) -> Progress | None:
        """How far the training from step `first` to step `steps` came; None if nothing is known of it."""
        about = {"first": str(first), "steps": str(steps)}
        expected = {f"network.{name}": tensor for name, tensor in like.items()}
        found = self._read(_PROGRESS, about, expected, exact=False)
        if found is None:
            return None
        tensors, notes = found
        return Progress(
            int(notes["step"]),
            _part(tensors, "network"),
            _part(tensors, "optimizer"),
            tensors["generator"],
            tensors["losses"],
        )

    def note(self, progress: Progress, first: int, steps: int) -> None:
        """Replace what is known of the training from step `first` to step `steps`."""
        tensors = {
            **{f"network.{name}": tensor for name, tensor in progress.tensors.items()},
            **{f"optimizer.{name}": tensor for name, tensor in progress.moments.items()},
            "generator": progress.generator,
            "losses": progress.losses,
        }
        self._write(_PROGRESS, tensors, {"first": str(first), "steps": str(steps), "step": str(progress.step)})

    def _write(self, name: str, tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> None:
        try:
            save_tensors(tensors, self.folder / name, {"format": _FORMAT, **self.owner, **notes})
        except OSError as error:
            # A full disk costs the next rung its start, not this one its result.
            self.warn(f"checkpoint {self.folder / name} could not be written ({error})")

    def _read(
        self,
        name: str,
        about: Mapping[str, str],
        like: Mapping[str, Tensor],
        *,
        exact: bool,
        quiet: bool = False,
    ) -> tuple[dict[str, Tensor], dict[str, str]] | None:
        """A file's tensors and notes if it is whole, this candidate's, and has the tensors `like` (`exact`: no others).

        What the file says `about` itself has to be so, too.
        """
        path = self.folder / name
        if not path.exists():
            return None
        try:
            tensors, notes = load_noted(path)
            problem = _difference(notes, {"format": _FORMAT, **self.owner, **about}) or _unlike(tensors, like, exact)
        except CompressionError as error:
            problem = str(error)
        if problem:
            if not quiet:
                self.warn(f"checkpoint {path} is not used, training starts again: {problem}")
            return None
        return tensors, notes


@contextmanager
def opened(
    folder: Path, owner: Mapping[str, str], *, continues: bool, warn: Callable[[str], None]
) -> Iterator[Checkpoint | None]:
    """The checkpoint in `folder`, for one process at a time; None, with a warning, for a second one.

    Args:
        folder: absolute; made if it is missing.
        owner: see `Checkpoint`.
        continues: likewise.
        warn: likewise.

    Raises:
        CompressionError: the folder is not absolute or cannot be made.
    """
    if not folder.is_absolute():
        raise CompressionError(f"checkpoint: expected an absolute path of a folder, got {str(folder)!r}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a")
    except OSError as error:
        raise CompressionError(f"checkpoint: expected a folder that can be written, got {folder} ({error})") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            warn(f"checkpoint {folder} is in use by another process; this training neither reads nor writes it")
            yield None
            return
        for left in folder.glob(".*.safetensors.*"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)
        yield Checkpoint(folder, owner, continues, warn, INTERVAL_S)


def snapshot(module: nn.Module, helpers: Sequence[nn.Parameter]) -> dict[str, Tensor]:
    """Everything that training changes but the optimizer: the network's state, and what helps to train it.

    The tensors are the network's own, not copies.
    """
    state = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    return {**state, **{f"helper.{at}": helper.detach() for at, helper in enumerate(helpers)}}


@torch.no_grad()
def restore(tensors: Mapping[str, Tensor], module: nn.Module, helpers: Sequence[nn.Parameter]) -> None:
    """Fill a network and its helpers, in place, with what `snapshot` gave; every name must be there."""
    module.load_state_dict(_part(tensors, "module"), strict=True)
    kept = _part(tensors, "helper")
    for at, helper in enumerate(helpers):
        helper.copy_(kept[str(at)])


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Moments of an optimizer whose state is tensors, as ``"<parameter>.<name>"``; its rates are not among them."""
    found: dict[str, Tensor] = {}
    for at, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                found[f"{at}.{name}"] = value
            elif value is not None:
                raise CompressionError(f"optimizer state {name!r}: expected a tensor, got {type(value).__name__}")
    return found


def restore_optimizer(moments: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer of the same parameters the moments that `optimizer_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in moments.items():
        at, name = key.split(".", 1)
        state.setdefault(int(at), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _difference(notes: Mapping[str, str], expected: Mapping[str, str]) -> str:
    """The first note that is not as expected, in words; empty if all are."""
    for name, value in expected.items():
        if notes.get(name) != value:
            return f"expected {name} {value}, got {notes.get(name, 'none')}"
    return ""


def _unlike(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor], exact: bool) -> str:
    """The first tensor that is missing, too much or of another form, in words; empty if there is none."""
    for name, expected in like.items():
        if name not in tensors:
            return f"expected a tensor {name}, got none"
        got = tensors[name]
        if got.shape != expected.shape or got.dtype != expected.dtype:
            return (
                f"{name}: expected {expected.dtype} of shape {tuple(expected.shape)}, got {got.dtype} of shape "
                f"{tuple(got.shape)}"
            )
    extra = sorted(tensors.keys() - like.keys()) if exact else []
    return f"expected no tensor {extra[0]}" if extra else ""
