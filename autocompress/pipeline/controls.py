"""Controls: what the same cuts are worth when chosen otherwise, and what the shape is worth without its weights.

References:
    Blalock et al., 2020, "What is the State of Neural Network Pruning?": random and magnitude pruning beside every
    result; Liu et al., 2019, "Rethinking the Value of Network Pruning": the same architecture trained from scratch.
"""

from __future__ import annotations

from typing import Literal

from autocompress.records import Criterion, FromScratch, NoDistillation, Plan

Control = Literal["magnitude", "random", "from-scratch"]


def control_plan(plan: Plan, control: Control) -> Plan | None:
    """The plan that stands beside `plan` as a control; None where it would be the same plan or has no meaning.

    ``"magnitude"`` and ``"random"`` keep every width and every share of zeros and choose what goes by that criterion.
    ``"from-scratch"`` draws the weights of the compressed shape anew and trains them without the dense model's help.

    Args:
        plan: of a finalist.
        control: which.
    """
    if not (plan.cuts or plan.masks):
        return None
    if control == "from-scratch":
        found = plan.model_copy(update={"schedule": FromScratch(), "distillation": NoDistillation()})
    else:
        criterion: Criterion = control
        found = plan.model_copy(
            update={
                "cuts": tuple(c.model_copy(update={"criterion": criterion}) for c in plan.cuts),
                "masks": tuple(m.model_copy(update={"criterion": criterion}) for m in plan.masks),
            }
        )
    return None if found.key == plan.key else found
