"""The model card: README.md of an export, with the front matter that the Hugging Face Hub reads."""

from sparse_mlp_ds.hub.config import AnyConfig, ModelConfig, StageSummary, TextConfig
from sparse_mlp_ds.hub.text_card import About, about_text, use_of_text
from sparse_mlp_ds.models import cost

NAME = "README.md"
"""Name of the model card's file."""


def card_text(config: AnyConfig, format: str = "safetensors") -> str:
    """Return the model card as Markdown. Words that may come from a stranger cannot add markup to it.

    format: what the file of the model is, `safetensors`, `onnx` or `pt2`.
    """
    spec, total = config.spec, cost.cost(config.spec)
    active = f"{total.params_active / 1e6:.2f} M of them active for one item"
    routers = ", routers float32" if config.dtype != "float32" and spec.experts else ""
    is_text = isinstance(config, TextConfig)
    about = about_text(config) if isinstance(config, TextConfig) else _about(config)
    usage = use_of_text(config, format) if isinstance(config, TextConfig) else _use(config, format)
    return f"""---
library_name: sparse_mlp_ds
pipeline_tag: {about.pipeline}
# license: yours to choose, for example mit
tags:
- {spec.family}
---

# {_plain(config.name)}

{_origin(config)}

| | |
|---|---|
| family | {spec.family}, {spec.depth} blocks, width {spec.width}{about.patches} |
| input | {about.input} |
| output | {about.output} |
| parameters | {total.params / 1e6:.2f} M, {active} ({about.without}) |
| multiply-accumulates | {total.macs / 1e9:.3g} G for one {"row" if is_text else "image"} |
| weights | {config.dtype}{routers} |
{_training(config.origin.stages)}
{usage}"""


def _about(config: ModelConfig) -> About:
    spec = config.spec
    mean, std = list(config.data.mean), list(config.data.std)
    cut = f"the central {config.data.crop_fraction:g} of the shorter side"
    return About(
        pipeline="image-classification" if config.classes else "image-feature-extraction",
        input=f"{spec.image_size} x {spec.image_size} pixels, mean {mean}, std {std}, {cut}",
        output=f"{len(config.classes)} classes" if config.classes else "no head: it returns features",
        patches=f", patches of {spec.patch_size} x {spec.patch_size}",
        without="without the head",
    )


def _of_safetensors(outputs: int) -> str:
    return f"""## Use

```sh
sparse-mlp-ds predict FOLDER IMAGE...
```

```python
from sparse_mlp_ds.hub import SparseVisionModel

model = SparseVisionModel.from_pretrained("FOLDER")
logits = model(model.preprocess(["image.jpg"]))  # [1, {outputs}]
```

FOLDER is this folder, or OWNER/NAME on the Hub. To train on from it: `init_from: {{path: FOLDER}}` in a recipe's stage.
"""


def _of_onnx(outputs: int) -> str:
    return f"""## Use

```python
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(outputs,) = session.run(None, {{"images": images}})  # float32 [B, 3, H, W] -> [B, {outputs}]
```

Images are cropped, scaled to the input size, divided by 255, and normalised with mean and std before that. The file's
metadata (`session.get_modelmeta().custom_metadata_map`) says with which, and has the class names, each entry as JSON.
"""


def _of_pt2(outputs: int) -> str:
    return f"""## Use

```python
import torch

graph = torch.export.load("model.pt2").module()
outputs = graph(images)  # float32 [B, 3, H, W] -> [B, {outputs}]
```

Images are cropped, scaled to the input size, divided by 255, and normalised with mean and std before that; config.json
says with which, and has the class names.
"""


def _use(config: ModelConfig, format: str) -> str:
    """Return the section on the use of a model in a format."""
    sections = {"safetensors": _of_safetensors, "onnx": _of_onnx, "pt2": _of_pt2}
    return sections[format](len(config.classes) or config.spec.width)


def _origin(config: AnyConfig) -> str:
    origin = config.origin
    if origin.weights == "imported":
        return f"Read from `{_plain(origin.file)}` by sparse_mlp_ds {_plain(origin.version)}."
    what = "The averaged weights" if origin.weights == "averaged" else "The weights"
    when = "after" if origin.finished else "during"
    lines = [
        f"{what} of the recipe `{_plain(origin.recipe)}` {when} its stage `{_plain(origin.stage)}`, "
        f"step {origin.step}, written by sparse_mlp_ds {_plain(origin.version)}."
    ]
    if origin.commit:
        changed = ", with changes that are not committed" if origin.dirty else ""
        lines.append(f"The code was that of git commit `{_plain(origin.commit)}`{changed}.")
    if origin.data:
        fingerprint = _plain(origin.data)
        lines.append(f"The training data's fingerprint, over the names and hashes of its tars, is `{fingerprint}`.")
    return "\n".join(lines)


def _training(stages: tuple[StageSummary, ...]) -> str:
    if not stages:
        return ""
    rows = ["", "## Training", "", "| stage | what was done | measured |", "|---|---|---|"]
    for stage in stages:
        done = [f"{stage.steps} steps"] if stage.steps else []
        done += [f"recipe: {stage.epochs:g} epochs"] if stage.epochs is not None else []
        done += [f"batches of {stage.batch_size}"] if stage.batch_size is not None else []
        done += [_plain(stage.optimizer)] if stage.optimizer else []
        measured = ", ".join(f"{_plain(name)} {value:.4g}" for name, value in stage.metrics.items())
        rows.append(f"| {_plain(stage.name)} ({_plain(stage.kind)}) | {', '.join(done)} | {measured} |")
    return "\n".join([*rows, ""])


def _plain(value: str | None) -> str:
    """Return text of a stranger, at most 80 characters, with `?` for all that Markdown, HTML or a terminal acts on."""
    return "".join(c if c.isalnum() or c in " ._-+/" else "?" for c in value or "unknown")[:80]
