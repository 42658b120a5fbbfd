"""A model as a graph of tensor operations, which other programs run: a file of torch.export or of ONNX.

MoE layers run all of their experts on all items there (see `moe.dense`), because a graph cannot send a number of items
that depends on the input. Every graph takes any number of inputs, and is compared with the model before it counts.
"""

import contextlib
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from sparse_mlp_ds import __version__
from sparse_mlp_ds.errors import EXTRAS, RunError, UserError
from sparse_mlp_ds.hub.any_model import AnyModel
from sparse_mlp_ds.hub.config import TextConfig
from sparse_mlp_ds.hub.text_model import SparseTextModel
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.backbone import Backbone
from sparse_mlp_ds.models.text_spec import TextSpec
from sparse_mlp_ds.moe.layer import MoELayer

TOLERANCE = 1e-4
"""Largest difference between a graph's outputs and the model's, relative to the model's largest output."""
DRAWS = 3
"""How often a graph is compared on new images before it counts as wrong: where two experts tie in the last bits, both
choices are right."""
_BATCH_SIZES = (1, 3)


def check_packages() -> None:
    """Raise UserError unless the packages that `write_onnx` needs are installed."""
    if missing := [name for name in EXTRAS["export"] if importlib.util.find_spec(name) is None]:
        raise UserError(f'--format onnx: {missing[0]} is not installed; `pip install "sparse_mlp_ds[export]"`')


def program(model: AnyModel) -> ExportedProgram:
    """Return a model as a graph, for any number B of inputs: to what `model.forward` returns.

    Inputs are normalised images [B, 3, H, W] float32, or rows of tokens [B, n] int64.
    """
    inputs = registry.example(model.config.spec, 2)  # of 0 and 1, torch.export takes no other number to be possible
    forward: nn.Module = model if isinstance(model, SparseTextModel) else _Forward(model.backbone)
    with _without_dispatch(model.backbone), torch.no_grad():
        return torch.export.export(forward, (inputs,), dynamic_shapes=({0: torch.export.Dim.AUTO},))


def write_pt2(model: AnyModel, path: Path) -> None:
    """Write a model as a file of torch.export, with config.json inside. Raises RunError if its outputs are wrong."""
    torch.export.save(program(model), path, extra_files={"config.json": model.config.as_json()})
    graph = torch.export.load(path).module()
    _compare(model, graph, path.name)


def write_onnx(model: AnyModel, path: Path) -> None:
    """Write a model as an ONNX file with the input `images` or `tokens`, and the output `logits` or `features`.

    The class names and what prepares the input are in its metadata, each as JSON. Weights of more than
    2 GB lie beside the file, in one with `.data` behind its name. Raises UserError without the packages for it, and
    RunError if ONNX Runtime's outputs are not the model's.
    """
    check_packages()
    import onnxruntime

    given = "tokens" if isinstance(model, SparseTextModel) else "images"
    output = "features" if _returns_features(model) else "logits"
    with _in_silence():
        made = torch.onnx.export(program(model), input_names=[given], output_names=[output], verbose=False)
        assert made is not None
        made.model.metadata_props.update(_metadata(model))
        made.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    run = lambda inputs: torch.from_numpy(session.run([output], {given: inputs.numpy()})[0])  # noqa: E731
    _compare(model, run, path.name)


class _Forward(nn.Module):
    """The logits alone."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images)[0]


@contextlib.contextmanager
def _without_dispatch(backbone: Backbone) -> Iterator[None]:
    """Let MoE layers run all experts on all items, and blocks run plainly, inside the `with` block."""
    layers = [module for module in backbone.modules() if isinstance(module, MoELayer)]
    again = backbone.checkpoint_blocks
    try:
        backbone.checkpoint_blocks = False
        for layer in layers:
            layer.runs_all = True
        yield
    finally:
        backbone.checkpoint_blocks = again
        for layer in layers:
            layer.runs_all = False


@contextlib.contextmanager
def _in_silence() -> Iterator[None]:
    """Keep the exporter's remarks, of torchvision that is not there and the like, from the user."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def _returns_features(model: AnyModel) -> bool:
    return model.config.task == "features" if isinstance(model, SparseTextModel) else not model.classes


def _metadata(model: AnyModel) -> dict[str, str]:
    config = model.config
    if isinstance(config, TextConfig):
        prepared = (config.text.model_dump(mode="json") if config.text else {}) | {"task": config.task}
    else:
        prepared = {"image_size": config.spec.image_size, **config.data.model_dump(mode="json")}
    entries = {"name": config.name, "version": __version__, **prepared, "classes": config.classes}
    return {key: json.dumps(value) for key, value in entries.items()}


def _drawn(model: AnyModel, number: int, generator: torch.Generator) -> Tensor:
    """Return random inputs of a model."""
    spec = model.config.spec
    if isinstance(spec, TextSpec):
        return torch.randint(spec.vocabulary, (number, spec.length), generator=generator)
    return torch.randn(number, *spec.input_shape, generator=generator)


@torch.no_grad()
def _compare(model: AnyModel, graph: Callable[[Tensor], Tensor], name: str) -> None:
    """Compare a graph with the model on batches of several sizes. Raises RunError if their outputs differ."""
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for _ in range(DRAWS):
        worst = 0.0
        for number in _BATCH_SIZES:
            inputs = _drawn(model, number, generator)
            expected = model(inputs)
            difference = (graph(inputs) - expected).abs().max() / expected.abs().max().clamp_min(1e-6)
            worst = max(worst, float(difference)) if difference == difference else float("inf")
        if worst <= TOLERANCE:
            return
    raise RunError(f"{name}: its outputs differ from the model's by {worst:.1g} of the largest; nothing was written")
