"""Small checkpoints of models of text, written by the trainer's own code, and a tokenizer learnt from few sentences."""

from pathlib import Path

import torch
from torch import nn

from sparse_mlp_ds.data.tokenizer import Tokenizer
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.language import MaskedModel
from sparse_mlp_ds.shards import sentence_pieces
from sparse_mlp_ds.train.answer_spans import SpanModel
from tests.helpers import made_checkpoints, text_rows
from tests.helpers.text_sets import LENGTH, VOCABULARY, sentence

PRESETS = {"gmlp_text": "gmlp_text_speeches", "amlp_text": "amlp_text_speeches", "bert": "bert_speeches"}
KINDS = {"mlm": "masked", "finetune_text": "classes", "finetune_span": "spans"}
CLASSES = ["early", "late", "later"]


def learn(folder: Path) -> Tokenizer:
    """Write folder/tokenizer.model."""
    path = folder / "tokenizer.model"
    sentence_pieces.train((sentence(n) for n in range(200)), VOCABULARY, path)
    return Tokenizer(path)


def spec(family="sparse_gmlp_text", **fields):
    """A tiny model of the tokenizer's rows."""
    return text_rows.spec(family, **({"length": LENGTH, "vocabulary": VOCABULARY} | fields))


def network(kind, of, seed=0):
    """The module that a stage of a kind trains, all of whose tensors are random."""
    backbone = registry.build(of, {"finetune_text": len(CLASSES), "finetune_span": 2}.get(kind, 0))
    made = {"mlm": lambda: MaskedModel(backbone, of.vocabulary), "finetune_span": lambda: SpanModel(backbone)}
    module = made[kind]() if kind in made else _Named(backbone)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


class _Named(nn.Module):
    """A backbone under its name, as a classifier's stage has it."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone


def save(folder: Path, kind: str, tokenizer: Tokenizer, module=None, of=None, **about):
    """Write folder/step_4 of a stage of a kind, and return its path."""
    of = of or spec()
    module = module or network(kind, of)
    text = {"length": of.length, "vocabulary": of.vocabulary, "special": tokenizer.special, "packing": "texts"}
    recipe = {
        "name": "tiny_text",
        "model": {"name": PRESETS[of.family]} | of.model_dump(),
        "moe": {"ep_size": 2},
        "data": {"train": "nowhere", "val": "nowhere", "classes": len(CLASSES)},
        "stages": {kind: {"kind": kind, "steps": 4, "batch_size": 8, "optimizer": {"name": "adamw"}}},
    }
    done = [{"name": kind, "kind": kind, "steps": 4, "last_step": 4, "metrics": {"loss": 2.0}}]
    parts = [*made_checkpoints.pieces("param", module, prefix="")]
    about = {
        "progress": {"stage": kind, "stage_step": 4, "step": 4, "done": done, "hands_over_average": False},
        "recipe": recipe,
        "ds_config": {},
        "topology": {"world_size": 1, "ep_sizes": {}, "zero_stage": 2},
        "classes": CLASSES if kind == "finetune_text" else [],
        "text": text | {"tokenizer": tokenizer.sha256},
    } | about
    return made_checkpoints.writer.save(folder, 4, parts, about).path
