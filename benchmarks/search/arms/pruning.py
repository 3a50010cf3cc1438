"""Torch-Pruning: the global isomorphic Taylor ranking at six ratios, fine-tuned and quantized as its users do.

Runs in an environment that has torch-pruning beside this project.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from recorder import Recorder
from runs import Candidate
from torch import Tensor, nn
from works import Work

from arms.trials import eight_bits, engineer, judge, judged
from autocompress.compress.export import export_onnx
from autocompress.compress.quantize import quantize
from autocompress.compress.stages import calibration_inputs
from autocompress.compress.train import Trainer, recalibrate_bn
from autocompress.inputs import forward
from autocompress.pipeline.prepare import Workbench
from autocompress.records import Distillation, NoDistillation
from autocompress.rng import derive_seed
from autocompress.task import fetch, plain, size

#: Of channels, the gentlest first.
RATIOS = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75)
#: Batches of the training split that the ranking is from.
BATCHES = 16


def torch_pruning(bench: Workbench, work: Work, seed: int, recorder: Recorder) -> None:
    """The dense network in 8 bits, then one network for each ratio; ends when there is none left.

    Args:
        bench: the prepared study.
        work: what is compressed.
        seed: of everything random.
        recorder: takes down what is judged.
    """
    judge(eight_bits(bench), engineer(bench, work, seed), recorder, 0.0)
    ranked = gradients(bench, seed)
    for ratio in RATIOS:
        own = derive_seed(seed, "ratio", f"{ratio:g}")
        model = finished(bench, pruned(bench, ratio, ranked), NoDistillation(), work.trial_epochs, own)
        error, latency = judged(bench, model, own)
        recorder.tell(Candidate(ratio=ratio, seed=seed), error, latency, work.trial_epochs)


def gradients(bench: Workbench, seed: int) -> dict[str, Tensor]:
    """The loss's gradient by every parameter of the dense network, summed over some batches: what Taylor needs."""
    module = copy.deepcopy(bench.dense).eval()
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    generator = torch.Generator().manual_seed(derive_seed(seed, "ranking"))
    order = torch.randperm(size(bench.task.train), generator=generator)
    for indices in order.split(bench.task.recipe.batch_size)[:BATCHES]:
        inputs, targets = fetch(plain(bench.task.train), indices)
        bench.task.loss(forward(module, inputs), targets).backward()
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}


def pruned(bench: Workbench, ratio: float, ranked: Mapping[str, Tensor]) -> nn.Module:
    """The dense network without the share `ratio` of its channels, in multiples of the target's; not trained.

    Heads of attention layers are removed whole, at the same ratio; the width of the states that every layer of a
    transformer shares stays, as in the space that the other arms search.

    Args:
        bench: the prepared study.
        ratio: share of channels and heads, over the whole network.
        ranked: `gradients`.
    """
    import torch_pruning as tp

    module = copy.deepcopy(bench.dense).eval()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(parameter.is_floating_point())
        parameter.grad = ranked[name].clone() if name in ranked else None
    layers = dict(module.named_modules())
    heads = {
        layers[group.name.replace("query", part)]: group.width
        for group in bench.prepared.structure.groups
        if group.kind == "heads"
        for part in ("query", "key", "value")
    }
    kept = [layers[name] for name in left_alone(bench)]
    pruner = tp.pruner.BasePruner(
        module,
        bench.task.example_input(),
        importance=tp.importance.GroupTaylorImportance(),
        global_pruning=True,
        isomorphic=True,
        pruning_ratio=ratio,
        round_to=bench.target.round_to,
        ignored_layers=kept,
        num_heads=heads,
        prune_num_heads=bool(heads),
        prune_head_dims=not heads,
        head_pruning_ratio=ratio if heads else 0.0,
        forward_fn=forward,
    )
    pruner.step()
    module.zero_grad(set_to_none=True)
    for name, layer in module.named_modules():
        if hasattr(layer, "num_attention_heads") and heads:
            layer.num_attention_heads = layer.query.out_features // layer.attention_head_size
            layer.all_head_size = layer.query.out_features
            if layer.query.out_features % layer.attention_head_size:
                raise RuntimeError(f"{name}: {layer.query.out_features} outputs are no whole heads")
    return module


def left_alone(bench: Workbench) -> list[str]:
    """Layers whose outputs stay: the classifier, and whatever writes into a transformer's shared states."""
    structure = bench.prepared.structure
    shared = [group for group in structure.groups if group.name.endswith("word_embeddings")]
    names = [entry.name for entry in structure.left_dense]
    return names + [layer for group in shared for layer in group.layers]


def finished(bench: Workbench, module: nn.Module, distillation: Distillation, epochs: float, seed: int) -> bytes:
    """A pruned network trained, with fresh statistics of its normalization, in 8 bits, as ONNX."""
    trainer = Trainer(task=bench.task, teacher=bench.dense, distillation=distillation, epochs=epochs, seed=seed)
    module = recalibrate_bn(trainer.train(module, key="torch-pruning"), bench.task)
    exported = export_onnx(module, bench.task.example_input())
    plan = eight_bits(bench)
    return quantize(exported.model, plan.bits, plan.quantizer, calibration_inputs(bench.task, seed=seed))
