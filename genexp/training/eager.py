"""torch's optimizers without torch's compiler, whose import takes about as long as torch's own.

Their methods ask for it at their first call, so that it leaves them alone where it compiles what calls them.
Nothing here is compiled, and a run need not wait for it.
"""

from __future__ import annotations

import inspect

import torch
from torch.optim import Optimizer

SHIELDED = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")  # from the compiler, by torch


def eager(kind: type[Optimizer]) -> type[Optimizer]:
    """Return optimizer `kind` with the same methods, less what torch has wrapped around them for its compiler."""
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in SHIELDED}
    return type(kind.__name__, (kind,), {**methods, "step": torch.no_grad()(inspect.unwrap(kind.step))})
