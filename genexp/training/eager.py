"""torch's optimizers without torch's compiler, whose import takes about as long as torch's own.

Their methods ask for it at their first call, so that it leaves them alone where it compiles what calls them.
Nothing here is compiled, and a run need not wait for it.
"""

from __future__ import annotations

import inspect

import torch
from torch.optim import Optimizer

DYNAMO_WRAPPED_METHODS = (
    "add_param_group",
    "zero_grad",
    "state_dict",
    "load_state_dict",
)  # from the compiler, by torch


def remove_dynamo_wrappers(optimizer_class: type[Optimizer]) -> type[Optimizer]:
    """Return optimizer `kind` with the same methods, less what torch has wrapped around them for its compiler."""
    methods = {name: inspect.unwrap(getattr(optimizer_class, name)) for name in DYNAMO_WRAPPED_METHODS}
    return type(
        optimizer_class.__name__,
        (optimizer_class,),
        {**methods, "step": torch.no_grad()(inspect.unwrap(optimizer_class.step))},
    )
