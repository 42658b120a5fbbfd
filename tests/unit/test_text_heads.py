"""A head for two classes and one for the ends of answers have one shape, and are not taken for each other."""

from types import SimpleNamespace

import pytest
import torch

from sparse_mlp_ds.config.stages import FinetuneSpan, FinetuneText
from sparse_mlp_ds.hub import any_model
from sparse_mlp_ds.hub.load import load_model, task_of
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.train.answer_spans import SpanModel
from sparse_mlp_ds.train.initial_weights import load_start
from tests.helpers import text_checkpoints as made

STAGES = {"finetune_text": FinetuneText, "finetune_span": FinetuneSpan}


def _network(kind, seed):
    backbone = registry.build(made.spec(), 2)
    torch.manual_seed(seed)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter)
    return SpanModel(backbone) if kind == "finetune_span" else made._Named(backbone)


@pytest.fixture(params=["checkpoint", "export"])
def source(request, tmp_path):
    """Write the weights of a stage of a kind as a checkpoint or an export; returns its network and its path."""

    def write(kind):
        network = _network(kind, seed=1)
        path = made.save(tmp_path, kind, made.learn(tmp_path), network, classes=["no", "yes"])
        if request.param == "export":
            any_model.from_loaded(load_model(path, tokenizer=tmp_path / "tokenizer.model")).save_pretrained(
                tmp_path / "export"
            )
            path = tmp_path / "export"
        return network, path

    return write


@pytest.mark.parametrize("wanted", STAGES)
@pytest.mark.parametrize("given", STAGES)
def test_a_head_is_taken_by_a_stage_of_its_task_alone(source, given, wanted):
    network, path = source(given)
    assert task_of(path) == made.KINDS[given]
    module = _network(wanted, seed=2)
    before = module.backbone.head.weight.clone()
    optimizer = {"name": "adamw", "base_lr": 0.1}
    stage = STAGES[wanted](kind=wanted, steps=1, batch_size=4, optimizer=optimizer, init_from={"path": str(path)})
    job = SimpleNamespace(recipe=SimpleNamespace(spec=made.spec(), train=SimpleNamespace(seed=0)))
    load_start(module, stage, job)
    assert torch.equal(module.backbone.token_embed.weight, network.backbone.token_embed.weight)
    expected = network.backbone.head.weight if given == wanted else before
    assert torch.equal(module.backbone.head.weight, expected)
