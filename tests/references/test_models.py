"""MLP-Mixer, gMLP and ViT against Google's code in Flax and timm's in torch: same weights, same logits."""

import pytest
import torch

from sparse_mlp_ds.config.recipe import model_spec
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.weights import layouts
from tests.helpers.references import fill, load, text, under

SMALL = {"image_size": 16, "patch_size": 4, "width": 24}


def build(preset, **settings):
    return registry.build(model_spec({"name": preset, **SMALL, **settings}), classes=5)


def logits(model, images):
    with torch.no_grad():
        return model(images)[0]


def test_mixer_of_flax():
    recorded = load("flax_mixer")
    model = build("mixer_s16", dense_blocks=2, token_hidden=12, channel_hidden=40)
    fill(model, layouts.to_own_names(under(recorded, "weights"), "flax_mixer.npz").tensors)
    found = logits(model, recorded["images"].permute(0, 3, 1, 2))
    torch.testing.assert_close(found, recorded["logits, exact GELU"], rtol=1e-4, atol=2e-5)
    # As published it takes GELU's tanh approximation; after two blocks that makes a difference of 2e-4 in the logits.
    torch.testing.assert_close(found, recorded["logits"], rtol=0, atol=5e-4)


def test_mixer_starts_as_that_of_flax():
    model = registry.build(model_spec({"name": "mixer_s16", "dense_blocks": 1}), classes=1000)
    init_weights(model, 0)
    parameters = dict(model.named_parameters())
    summaries = dict(zip(text("flax_mixer", "names"), load("flax_mixer")["mean, std, min, max"].tolist(), strict=True))
    names = layouts.to_own_names({name: torch.empty(1, 1) for name in summaries}, "flax_mixer.npz").origin
    assert names.keys() == parameters.keys()
    for own, theirs in names.items():
        parameter, (mean, std, low, high) = parameters[own].detach(), summaries[theirs]
        error = 10 * std / parameter.numel() ** 0.5
        assert parameter.mean().item() == pytest.approx(mean, abs=error + 1e-12), own
        assert parameter.std(unbiased=False).item() == pytest.approx(std, abs=error + 1e-12), own
        # The draws are cut at two deviations, which thousands of them come near to.
        assert [parameter.min().item(), parameter.max().item()] == pytest.approx([low, high], rel=0.02, abs=1e-12), own


def test_mixer_of_timm():
    recorded = load("timm_mixer")
    model = build("mixer_s16", dense_blocks=2, token_hidden=12, channel_hidden=96)
    fill(model, layouts.to_own_names(under(recorded, "weights"), "timm_mixer.npz").tensors)
    torch.testing.assert_close(logits(model, recorded["images"]), recorded["logits"], rtol=1e-4, atol=2e-5)


def gmlp_names(tensors):
    """Rename what timm calls a gMLP's tensors."""
    renamed = {"stem.": "patch_embed.", "mlp_channels.gate.proj": "gate.spatial", "mlp_channels.": ""}
    found = {}
    for name, tensor in tensors.items():
        for old, new in renamed.items():
            name = name.replace(old, new)
        found[name] = tensor
    return found


def test_gmlp_of_timm():
    recorded = load("timm_gmlp")
    model = build("gmlp_ti16", depth=2, hidden=144)
    fill(model, gmlp_names(under(recorded, "weights")))
    # The norm inside timm's gate adds 1e-5 to the variance, ours 1e-6 as all the others.
    torch.testing.assert_close(logits(model, recorded["images"]), recorded["logits"], rtol=1e-4, atol=1e-4)


def test_vit_of_timm():
    recorded = load("timm_vit")
    model = build("vit_s16", depth=2, heads=2, channel_hidden=48, positions="learned")
    fill(model, layouts.to_own_names(under(recorded, "weights"), "timm_vit.npz").tensors)
    torch.testing.assert_close(logits(model, recorded["images"]), recorded["logits"], rtol=1e-4, atol=2e-5)


def official_names(tensors):
    """Rename timm's tensors of a ResMLP as the authors' code does, whose affine layers hold vectors [C]."""
    renamed = {"stem.": "patch_embed.", ".linear_tokens.": ".attn.", ".mlp_channels.": ".mlp.", ".ls": ".gamma_"}
    found = {}
    for name, tensor in tensors.items():
        for timm, authors in renamed.items():
            name = name.replace(timm, authors)
        found[name] = tensor.flatten() if name.endswith((".alpha", ".beta")) else tensor
    return found


@pytest.mark.parametrize("names", ["timm_resmlp", "resmlp"])
def test_resmlp_of_timm(names):
    recorded = load("timm_resmlp")
    weights = under(recorded, "weights")
    read = layouts.to_own_names(weights if names == "timm_resmlp" else official_names(weights), "resmlp.npz")
    assert (read.layout, read.unknown) == (names, ())
    model = build("resmlp_s12", depth=2, channel_hidden=96)
    fill(model, read.tensors)
    torch.testing.assert_close(logits(model, recorded["images"]), recorded["logits"], rtol=1e-4, atol=2e-5)


def test_distilled_vit_of_timm():
    recorded = load("timm_deit_distilled")
    shape = {"depth": 2, "heads": 2, "channel_hidden": 48, "positions": "learned"}
    model = build("vit_s16", **shape, distillation_token=True)
    fill(model, layouts.to_own_names(under(recorded, "weights"), "deit.npz").tensors)
    torch.testing.assert_close(logits(model, recorded["images"]), recorded["logits"], rtol=1e-4, atol=2e-5)
    with torch.no_grad():
        both, _ = model.forward_both(recorded["images"])
    torch.testing.assert_close(both, recorded["logits of both tokens"], rtol=1e-4, atol=2e-5)
