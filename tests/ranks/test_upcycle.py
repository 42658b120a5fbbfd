"""Upcycling with the experts on several ranks: each takes its own share, and all is as on a single process."""

import pytest
import torch
from safetensors.torch import save_file

from sparse_mlp_ds.config.recipe import MoE
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.base_spec import MoESpec
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.train import engine
from sparse_mlp_ds.weights.load import load_into
from tests.helpers import harness, tiny

DENSE = tiny.spec(family="mixer")
SPARSE = DENSE.model_copy(
    update={
        "family": "sparse_mlp",
        "dense_blocks": 1,
        "sparse_blocks": 1,
        "rerepresent": False,
        "moe_s": MoESpec(experts=4, top_k=4, hidden=DENSE.token_hidden),
        "moe_c": MoESpec(experts=4, top_k=4, hidden=DENSE.channel_hidden),
    }
)


def _upcycled(path, ep_size: int, noise: float):
    routing = MoE(group_images=4)
    sizes = {"moe_s": ep_size, "moe_c": ep_size}
    model = registry.build(SPARSE, tiny.CLASSES, engine.expert_parallel(routing, sizes))
    init_weights(model, seed=0)
    coverage = load_into(model, SPARSE, path, upcycle=True, noise=noise)
    engine.join_expert_groups(model)
    with torch.no_grad():
        logits = model(tiny.batch()[0])[0]
    return coverage, logits, tiny.gather(dict(model.named_parameters()))


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_every_rank_upcycles_its_own_experts(tmp_path, noise):
    dense = registry.build(DENSE, tiny.CLASSES)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    path = tmp_path / "dense.safetensors"
    save_file(dict(dense.named_parameters()), path)
    with torch.no_grad():
        wanted = dense(tiny.batch()[0])[0]

    expected = harness.run(1, _upcycled, path, 1, noise)[0]
    for coverage, logits, parameters in harness.run(2, _upcycled, path, 2, noise):
        assert coverage == expected[0]
        torch.testing.assert_close(logits, expected[1])
        assert parameters.keys() == expected[2].keys()
        assert all(torch.equal(value, expected[2][name]) for name, value in parameters.items())
        if noise:
            assert not torch.allclose(logits, wanted, atol=1e-3)
        else:
            torch.testing.assert_close(logits, wanted, rtol=0, atol=1e-5)
