"""Libraries that the project names: runs compute with them, not only import them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest

from tests.support.command import FIGURES_ON, format_run_dir_override, run_genexp
from tests.support.compose import make_tiny_overrides

# Run → package → functions of the package that the run must call.
EXPECTED_CALLS: dict[str, dict[str, tuple[str, ...]]] = {
    "vae": {  # the default model
        "torch": ("torch.nn:Module.__call__", "torch:Tensor.backward"),
        "hydra-core": ("hydra.core.hydra_config:HydraConfig.set_config",),
        "omegaconf": ("omegaconf:OmegaConf.to_object",),
        "numpy": ("numpy:load",),
        "matplotlib": ("matplotlib.backends.backend_agg:FigureCanvasAgg.draw",),
        "imageio": ("imageio.v3:imopen",),
        "tensorboardX": ("tensorboardX.record_writer:RecordWriter.write", "tensorboardX.summary:hparams"),
    },
    "kmeans": {
        "scipy": ("scipy.sparse.csgraph:min_weight_full_bipartite_matching",),
        "scikit-learn": ("sklearn.datasets:make_circles",),
    },
    "style_transfer": {"torchvision": ("torchvision.models.vgg:make_layers",)},
}


@pytest.mark.parametrize("model", EXPECTED_CALLS)
def test_a_run_computes_with_the_libraries(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from genexp.images.vision import torchvision  # noqa: F401 - its import needs the declarations of this module

    called: set[str] = set()
    expected = {name for names in EXPECTED_CALLS[model].values() for name in names}
    for name in expected:
        module, _, attribute = name.partition(":")
        owner = resolve_name(f"{module}:{attribute.rpartition('.')[0]}" if "." in attribute else module)
        _record_calls(monkeypatch, owner, attribute.rpartition(".")[2], partial(called.add, name))
    overrides = [
        *make_tiny_overrides(model),
        FIGURES_ON,
        "trainer.max_steps=2",
        format_run_dir_override(tmp_path),
    ]
    result = run_genexp(*overrides)
    assert result.exit_code == 0, result.stderr
    assert expected - called == set()


def _record_calls(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, record: Callable[[], object]) -> None:
    """Replace a function by one that calls `record` first."""
    function = getattr(owner, name)
    is_static = isinstance(vars(owner).get(name), staticmethod)

    @wraps(function)
    def recording(*args: Any, **kwargs: Any) -> Any:
        record()
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, staticmethod(recording) if is_static else recording)
