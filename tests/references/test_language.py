"""gMLP and aMLP for text against g-mlp-pytorch: same weights, same logits of every token."""

import pytest
import torch

from sparse_mlp_ds.config.recipe import model_spec
from sparse_mlp_ds.models import registry
from tests.helpers.references import fill, load, under

NAMES = {
    "to_embed": "token_embed",
    "to_logits.0": "norm",
    "layers": "blocks",
    ".fn.fn.fn": "",
    ".fn.norm": ".norm",
    "proj_in.0": "fc1",
    "proj_out": "fc2",
    "sgu.norm": "gate.norm",
    "sgu": "gate.spatial",
    "attn.to_qkv": "attention.qkv",
    "attn.to_out": "attention.proj",
}


def text_names(tensors):
    """Rename what g-mlp-pytorch calls its tensors; the output's matrix, which is the embedding, and its bias stay out.

    Its matrices W [1, n, n] become the row of numbers along their diagonals, and its queries, keys and values get
    biases of 0.
    """
    found = {}
    for name, tensor in tensors.items():
        if name.startswith("to_logits.1."):
            continue
        for old, new in NAMES.items():
            name = name.replace(old, new)
        if name.endswith("spatial.weight"):
            tensor = torch.cat([tensor[0, 0].flip(0), tensor[0, 1:, 0]])
        if name.endswith("qkv.weight"):
            found[name.replace("weight", "bias")] = torch.zeros(len(tensor))
        found[name] = tensor
    return found


def build(family, vocabulary, width, tokens, depth):
    """Our model of that shape."""
    shape = {"vocabulary": vocabulary, "width": width, "length": tokens, "depth": depth, "hidden": 2 * width}
    return registry.build(model_spec({"name": f"{family}_text_speeches", "attention": 8, **shape}))


def logits(model, tokens, bias):
    """Return logits of every token."""
    with torch.no_grad():
        return model.tied_logits(model.forward_tokens(tokens)[0]) + bias


@pytest.mark.parametrize("family", ["gmlp", "amlp"])
def test_logits_of_g_mlp_pytorch(family):
    recorded = under(load("g_mlp_pytorch"), family)
    weights = under(recorded, "weights")
    model = build(family, 50, 24, 12, 2)
    fill(model, text_names(weights))
    found = logits(model, recorded["tokens"], weights["to_logits.1.bias"])
    torch.testing.assert_close(found, recorded["logits"], rtol=1e-4, atol=5e-5)
