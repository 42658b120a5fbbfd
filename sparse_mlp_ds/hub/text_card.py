"""What a model card says of a model of text."""

from dataclasses import dataclass

from sparse_mlp_ds.hub.config import TextConfig
from sparse_mlp_ds.models.text_spec import TextSpec

_PIPELINES = {
    "masked": "fill-mask",
    "classes": "text-classification",
    "spans": "question-answering",
    "features": "feature-extraction",
}
"""Task -> what the Hugging Face Hub calls it."""
_COMMANDS = {
    "masked": """sparse-mlp-ds predict FOLDER --text "a word that is [MASK] here\"""",
    "classes": """sparse-mlp-ds predict FOLDER --text "a text\"""",
    "spans": """sparse-mlp-ds predict FOLDER --question "Who?" --context "a text that has the answer\"""",
    "features": """sparse-mlp-ds embed FOLDER DATA --out features.npy""",
}
"""Task -> the command that uses the model."""


@dataclass(frozen=True)
class About:
    """The words of a card in which models of images and of text differ."""

    pipeline: str
    """What the Hugging Face Hub calls the task."""
    input: str
    """What the model takes."""
    output: str
    """What it returns."""
    patches: str
    """How an image is cut into patches; empty for text."""
    without: str
    """Which parameters are not counted."""


def about_text(config: TextConfig) -> About:
    """Return what a card says of a model."""
    spec = config.spec
    packed = f"rows of {spec.length} tokens out of {spec.vocabulary}"
    rows = f"{packed}, made from texts by tokenizer.model (SentencePiece)"
    outputs = {
        "masked": f"logits of {spec.vocabulary} tokens at each place of a row",
        "classes": f"{len(config.classes)} classes",
        "spans": "two logits at each token, of being the first one of an answer and the last one",
        "features": "no head: it returns features",
    }
    without = "without the output layer's bias" if config.task == "masked" else "without the head"
    return About(_PIPELINES[config.task], rows, outputs[config.task], "", without)


def use_of_text(config: TextConfig, format: str) -> str:
    """Return the section on the use of a model. format: `safetensors`, `onnx` or `pt2`."""
    given = f"int64 [B, {config.spec.length}] -> {shape(config)}"
    made = (
        "Rows are `[CLS] text [SEP]`, filled up with `[PAD]`. tokenizer.model makes the tokens of a text, and "
        "config.json has\nthe numbers of the special ones."
    )
    if format == "onnx":
        return f"""## Use

```python
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(outputs,) = session.run(None, {{"tokens": tokens}})  # {given}
```

{made}
"""
    if format == "pt2":
        return f"""## Use

```python
import torch

graph = torch.export.load("model.pt2").module()
outputs = graph(tokens)  # {given}
```

{made}
"""
    return f"""## Use

```sh
{_COMMANDS[config.task]}
```

```python
from sparse_mlp_ds.hub import SparseTextModel

model = SparseTextModel.from_pretrained("FOLDER")
outputs = model(model.preprocess(["a text"]))  # {shape(config).replace("B", "1")}
```

FOLDER is this folder, or OWNER/NAME on the Hub; texts need `pip install "sparse_mlp_ds[text]"`. To train on from it:
`init_from: {{path: FOLDER}}` in a recipe's stage.
"""


def shape(config: TextConfig) -> str:
    """Return the shape of what a model returns, such as `[B, 128, 4096]`."""
    spec: TextSpec = config.spec
    shapes = {
        "masked": f"[B, {spec.length}, {spec.vocabulary}]",
        "classes": f"[B, {len(config.classes)}]",
        "spans": f"[B, {spec.length}, 2]",
        "features": f"[B, {spec.width}]",
    }
    return shapes[config.task]
