"""Models for `torch.hub.load(REPOSITORY, NAME)`, where REPOSITORY is a checkout or a fork on GitHub.

Every model of images in `sparse-mlp-ds models` is an entry, with the arguments of `sparse_mlp_ds.create_model`;
`pretrained` takes the folder of an export or run, a repository of the Hugging Face Hub, or `cifar10`, which comes with
the code.
"""

from collections.abc import Callable as _Callable
from typing import Any as _Any

from sparse_mlp_ds.api.create_model import create_model as _create_model
from sparse_mlp_ds.hub.any_model import AnyModel as _AnyModel
from sparse_mlp_ds.models.presets import IMAGE_PRESETS as _PRESETS

dependencies = ["torch", "numpy", "PIL", "yaml", "pydantic", "safetensors", "psutil", "rich", "filelock"]


def pretrained(path_or_repo: str = "cifar10", num_classes: int | None = None) -> _AnyModel:
    """Return a trained model, whatever it is.

    path_or_repo: see above. num_classes: a number unlike the head's replaces it by a new one of zeros.
    """
    return _create_model(pretrained=path_or_repo, num_classes=num_classes)


def _entry(name: str) -> _Callable[..., _AnyModel]:
    def entry(pretrained: str | None = None, **options: _Any) -> _AnyModel:
        return _create_model(name, pretrained=pretrained, **options)

    entry.__name__ = name
    entry.__doc__ = f"Return the model {name}; see `sparse_mlp_ds.create_model` for the arguments."
    return entry


for _name in _PRESETS:
    globals()[_name] = _entry(_name)
