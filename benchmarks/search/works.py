"""What is compressed: networks, data, the space that every arm searches, and how long trials and recovery are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.config import SearchConfig, Study
from autocompress.files import write_bytes
from autocompress.space.config import load_space
from autocompress.task import load_task

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Places:
    """Where things lie.

    Attributes:
        data: folder of the data.
        weights: folder of the trained networks.
        output: scratch: studies, environments, files. Nothing in it is needed once results are there.
    """

    data: Path
    weights: Path
    output: Path


@dataclass(frozen=True)
class Work:
    """A network on its data.

    Attributes:
        name: of the work, its space and its folder of results.
        title: in pictures and tables.
        factory: of the task.
        arguments: of the task, but for paths.
        data, weights: file or folder below those of `Places`, by the name of the task's argument.
        trial_epochs: what a trial of the engineer's script is fine-tuned for.
        trial_s: about what such a trial takes on one thread, to tell how many fit into the time.
        own_s: about what a trial with this project's evaluator takes.
        own_epochs: passes over the training split of the evaluator's recovery.
        final_epochs: recovery, with distillation, of every member of every returned front.
        longer_epochs: of those members of the last fronts that lost a little more than what is allowed, if it is asked.
    """

    name: str
    title: str
    factory: str
    arguments: Mapping[str, Any]
    data: str
    weights: str
    trial_epochs: float
    trial_s: float
    own_s: float
    own_epochs: float
    final_epochs: float
    longer_epochs: float

    def task(self, places: Places) -> dict[str, Any]:
        """The task of a study."""
        paths = {"data": str((places.data / self.data).resolve()), "weights": str(self.weights_of(places).resolve())}
        return {"factory": self.factory, "arguments": {**self.arguments, **paths}}

    def weights_of(self, places: Places) -> Path:
        """The trained network: the given one, or what was fine-tuned here."""
        given = places.weights / self.weights
        return given if given.is_file() else places.output / self.weights

    def fine_tune(self, places: Places) -> None:
        """Train the dense network by the task's recipe, if there is none yet; minutes."""
        path = self.weights_of(places)
        if path.is_file():
            return
        from safetensors.torch import save

        from autocompress.compress.train import train_base

        task = load_task(self.factory, {**self.arguments, "data": str((places.data / self.data).resolve())})
        module = train_base(task, task.build(), seed=0)
        write_bytes(path, save({name: tensor.contiguous() for name, tensor in module.state_dict().items()}))

    def study(self, places: Places, name: str, seed: int, settings: Mapping[str, Any] | None = None) -> Study:
        """A study of this work.

        Args:
            places: where data and weights are.
            name: its folder below ``<output>/<work>``, which it shares with no other: any study beside it would take
                up its model of the latency, which would be in nobody's time.
            seed: root of its random streams.
            settings: ``search`` and others; one worker and the work's recovery unless they say otherwise. ``plain``:
                whether units are chosen by Taylor scores, and no layer behind a cut is refitted.
        """
        given = dict(settings or {})
        search = {"workers": 1, "recovery_epochs": self.own_epochs, **given.pop("search", {})}
        space = load_space(str(HERE / "spaces" / f"{self.name}.yaml"))
        if given.pop("plain", False):
            groups = space.groups.model_copy(update={"criterion": ("taylor",)})
            space = space.model_copy(update={"groups": groups, "reconstruction": ("none",)})
        return Study(
            name=name,
            seed=seed,
            task=self.task(places),
            output=(places.output / self.name / name).resolve(),
            space=space,
            search=SearchConfig(**search),
            **given,
        )


WORKS = {
    work.name: work
    for work in (
        Work(
            name="resnet",
            title="ResNet-20×2 on CIFAR-10",
            factory="autocompress.tasks.images:images",
            arguments={
                "network": {"depth": 20, "widths": [32, 64, 128], "shortcut": "projection"},
                "mean": [0.4914, 0.4822, 0.4465],
                "std": [0.2470, 0.2435, 0.2616],
                "split_seed": 0,
                "holdout": 5000,
            },
            data="cifar10.npz",
            weights="cifar10_resnet20x2.safetensors",
            trial_epochs=1.0,
            trial_s=45.0,
            own_s=20.0,
            own_epochs=0.25,
            final_epochs=0.5,
            longer_epochs=1.0,
        ),
        Work(
            name="minilm",
            title="MiniLM on TREC",
            factory="autocompress.tasks.text:trec",
            arguments={},
            data=".",
            weights="minilm_trec.safetensors",
            trial_epochs=1.0,
            trial_s=40.0,
            own_s=20.0,
            own_epochs=0.25,
            final_epochs=1.0,
            longer_epochs=2.0,
        ),
    )
}
