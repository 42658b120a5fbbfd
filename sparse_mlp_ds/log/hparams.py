"""What TensorBoard shows of a recipe: its keys as hyperparameters beside the results (tab HPARAMS), and all of it as
text (tab TEXT)."""

import json
from typing import Any

import yaml

from sparse_mlp_ds.config.recipe import Recipe

_RESULTS = {"pretrain": "knn_top1", "mlm": "perplexity", "finetune_span": "f1"}
LEFT_OUT = ("name", "log", "checkpoint")
"""Sections of a recipe that say nothing of what is trained."""


def hyperparameters(recipe: Recipe) -> dict[str, bool | int | float | str]:
    """Return the keys of a resolved recipe, written with dots, and their values; lists and null as text."""
    tree = recipe.model_dump(mode="json")
    return _flat({name: section for name, section in tree.items() if name not in LEFT_OUT})


def result_tags(recipe: Recipe) -> list[str]:
    """Return the name of the first result of each stage, as TensorBoard has it."""
    tags, kind = [], ""
    for name, stage in recipe.stages.items():
        kind = kind if stage.kind == "evaluate" else stage.kind  # it measures what the stage before has trained
        tags.append(f"{name}/result/{_RESULTS.get(kind, 'top1')}")
    return tags


def at_start(recipe: Recipe) -> list[Any]:
    """Return summaries (protocol buffers) of a recipe, to be written when a run begins."""
    from torch.utils.tensorboard.summary import hparams, text

    experiment, start, _ = hparams(hyperparameters(recipe), dict.fromkeys(result_tags(recipe)))
    tree = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    return [experiment, start, text("recipe", f"```\n{tree}```")]


def at_end() -> Any:
    """Return the summary (a protocol buffer) of a run that has finished all of its stages."""
    from torch.utils.tensorboard.summary import hparams

    return hparams({}, {})[2]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    flat: dict[str, bool | int | float | str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return flat
