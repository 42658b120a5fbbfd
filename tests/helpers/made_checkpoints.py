"""Small checkpoints, written by the trainer's own code in this process, and the command line called on them."""

import json
from pathlib import Path

import torch

from sparse_mlp_ds.checkpoints import writer
from sparse_mlp_ds.checkpoints.manifest import MANIFEST
from sparse_mlp_ds.checkpoints.writer import Piece
from sparse_mlp_ds.cli import main
from tests.helpers.weight_files import SPARSE, make

STAGES = {
    "pretrain": {"kind": "pretrain", "epochs": 2.0, "batch_size": 8, "optimizer": {"name": "adamw"}},
    "finetune": {"kind": "finetune", "epochs": 3.0, "batch_size": 4, "optimizer": {"name": "lamb"}},
    "evaluate": {"kind": "evaluate", "batch_size": 16},
}

PRESETS = {
    "mixer": "sparse_mlp_digits",
    "sparse_mlp": "sparse_mlp_digits",
    "gmlp": "gmlp_s16",
    "amlp": "amlp_s16",
    "resmlp": "resmlp_s12",
    "vit": "vit_s16",
    "vmoe": "vmoe_s32_last2",
    "widenet": "widenet_b16",
}
"""Family -> a registered model of it."""


def recipe(spec=SPARSE, classes=5, **sections):
    """A recipe as a manifest holds it, without what no reader of weights looks at."""
    data = {"train": "nowhere", "val": "nowhere", "classes": classes, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    preset = PRESETS[spec.family]
    model = {"name": preset} | spec.model_dump()
    return {"name": "tiny", "model": model, "moe": {"ep_size": 2}, "data": data, "stages": STAGES} | sections


def finished(stage="finetune", step=4, average=False, **changes):
    """Progress at a stage's end."""
    done = [{"name": stage, "kind": stage, "steps": step, "last_step": step, "metrics": {"top1": 0.5, "odd": None}}]
    return {"stage": stage, "stage_step": step, "step": step, "done": done, "hands_over_average": average} | changes


def pieces(kind, model, prefix="backbone."):
    """Every tensor of a model in two runs of elements."""
    for name, parameter in model.named_parameters():
        values, shape = parameter.detach().flatten(), tuple(parameter.shape)
        half = len(values) // 2
        for start, stop in ((0, half), (half, len(values))) if half else ((0, len(values)),):
            yield Piece(f"{kind}/{prefix}{name}", shape, start, values[start:stop])


def save(folder, step=4, progress=None, param=None, momentum=None, moments=True, **about):
    """Write folder/step_<step> of a model, its average if one is given, and moments that are no weights."""
    param = make(SPARSE) if param is None else param
    parts = [*pieces("param", param)]
    if momentum is not None:
        parts += pieces("momentum", momentum)
    if moments:
        parts += [
            Piece(f"exp_avg/{one.name[6:]}", one.shape, one.start, torch.ones_like(one.values)) for one in parts[:4]
        ]
    about = {
        "progress": progress or finished(step=step),
        "recipe": recipe(),
        "ds_config": {},
        "topology": {"world_size": 1, "ep_sizes": {"moe_s": 1}, "zero_stage": 2},
        "classes": ["ant", "bee", "cat", "dog", "elk"],
    } | about
    return writer.save(Path(folder), step, parts, about).path


def edit(path, change):
    """Rewrite a checkpoint's manifest."""
    file = path / MANIFEST
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def call(capsys, *arguments):
    """Call `sparse-mlp-ds`; returns the exit code, what it said, and the lines of complaint."""
    capsys.readouterr()
    try:
        main.main([str(argument) for argument in arguments])
        code = 0
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    return code, said.out, said.err.splitlines()


def put(*keys_and_value):
    """Return a function that changes a config: the last argument becomes the value under the keys before it."""
    *keys, last, value = keys_and_value

    def change(config):
        for key in keys:
            config = config[key]
        config[last] = value

    return change
