"""The model card: README.md of an export, with the front matter that the Hugging Face Hub reads."""

from sparse_mlp_ds.hub.config import ModelConfig, Stage
from sparse_mlp_ds.models import macs

NAME = "README.md"


def text(config: ModelConfig) -> str:
    """Return the card."""
    spec, cost = config.spec, macs.cost(config.spec)
    head = f"{len(config.classes)} classes" if config.classes else "no head: it returns features"
    mean, std = list(config.data.mean), list(config.data.std)
    cut = f"the central {config.data.crop_fraction:g} of the shorter side"
    active = f"{cost.params_active / 1e6:.2f} M of them active for one item"
    routers = ", routers float32" if config.dtype != "float32" and spec.experts else ""
    task = "image-classification" if config.classes else "image-feature-extraction"
    return f"""---
library_name: sparse_mlp_ds
pipeline_tag: {task}
# license: yours to choose, for example mit
tags:
- {spec.family}
---

# {_plain(config.name)}

{_origin(config)}

| | |
|---|---|
| family | {spec.family}, {spec.depth} blocks, width {spec.width}, patches of {spec.patch_size} x {spec.patch_size} |
| input | {spec.image_size} x {spec.image_size} pixels, mean {mean}, std {std}, {cut} |
| output | {head} |
| parameters | {cost.params / 1e6:.2f} M, {active} (without the head) |
| multiply-accumulates | {cost.macs / 1e9:.3g} G for one image |
| weights | {config.dtype}{routers} |
{_training(config.origin.stages)}
## Use

```sh
sparse-mlp-ds predict FOLDER IMAGE...
```

```python
from sparse_mlp_ds.hub import SparseVisionModel

model = SparseVisionModel.from_pretrained("FOLDER")
logits = model(model.preprocess(["image.jpg"]))  # [1, {len(config.classes) or spec.width}]
```

FOLDER is this folder, or OWNER/NAME on the Hub. To train on from it: `init_from: {{path: FOLDER}}` in a recipe's stage.
"""


def _origin(config: ModelConfig) -> str:
    origin = config.origin
    if origin.weights == "imported":
        return f"Read from `{_plain(origin.file)}` by sparse_mlp_ds {_plain(origin.version)}."
    what = "The averaged weights" if origin.weights == "averaged" else "The weights"
    when = "after" if origin.finished else "during"
    return (
        f"{what} of the recipe `{_plain(origin.recipe)}` {when} its stage `{_plain(origin.stage)}`, "
        f"step {origin.step}, written by sparse_mlp_ds {_plain(origin.version)}."
    )


def _training(stages: tuple[Stage, ...]) -> str:
    if not stages:
        return ""
    rows = ["", "## Training", "", "| stage | what was done | measured |", "|---|---|---|"]
    for stage in stages:
        said = [f"{stage.steps} steps"] if stage.steps else []
        said += [f"recipe: {stage.epochs:g} epochs"] if stage.epochs is not None else []
        said += [f"batches of {stage.batch_size}"] if stage.batch_size is not None else []
        said += [_plain(stage.optimizer)] if stage.optimizer else []
        measured = ", ".join(f"{_plain(name)} {value:.4g}" for name, value in stage.metrics.items())
        rows.append(f"| {_plain(stage.name)} ({_plain(stage.kind)}) | {', '.join(said)} | {measured} |")
    return "\n".join([*rows, ""])


def _plain(value: str | None) -> str:
    """Return a word that may come from a stranger without what Markdown, HTML or a terminal would act on."""
    return "".join(c if c.isalnum() or c in " ._-+/" else "?" for c in value or "unknown")[:80]
