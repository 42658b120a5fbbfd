"""This package's models in timm: `make test-references` runs it, in an environment that has timm."""

import pytest
import torch

from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.hub import SparseVisionModel
from sparse_mlp_ds.models.presets import IMAGE_PRESETS as PRESETS
from tests.references.make import support

support.torchvision_without_operators()
import timm  # noqa: E402
from timm.data import resolve_model_data_config  # noqa: E402
from timm.optim import create_optimizer_v2  # noqa: E402

import sparse_mlp_ds.timm  # noqa: E402, F401

SMALL = {"img_size": 32}
FAMILIES = {
    **{name: {} for name in ("sparse_mlp_s16", "mixer_s16", "gmlp_ti16", "amlp_ti16", "resmlp_s12", "vit_s16")},
    **{"vmoe_s32_last2": {}, "widenet_b16": {}},
}
families = pytest.mark.parametrize(
    ("name", "options"), [*FAMILIES.items(), ("vit_s16", {"distillation_token": True, "positions": "learned"})]
)


def make(name, **options):
    return timm.create_model(name, **SMALL | options).eval()


def images(model, number=2):
    torch.manual_seed(0)
    return torch.randn(number, *model.pretrained_cfg["input_size"][:1], 32, 32)


def test_every_model_is_registered_and_described():
    assert set(PRESETS) <= set(timm.list_models())
    for name, spec in PRESETS.items():
        cfg = timm.get_pretrained_cfg(name)
        assert cfg.input_size == (3, spec.image_size, spec.image_size)


@families
def test_the_parts_of_a_pass_agree(name, options):
    model = make(name, num_classes=7, **options)
    for parameter in model.get_classifier().parameters():
        torch.nn.init.normal_(parameter)
    x = images(model)
    with torch.no_grad():
        tokens = model.forward_features(x)
        logits = model(x)
        assert tokens.shape[0] == 2 and tokens.shape[2] == model.num_features and logits.shape == (2, 7)
        assert torch.equal(model.forward_head(tokens), logits)
        features = model.forward_head(tokens, pre_logits=True)
        assert features.shape == (2, model.head_hidden_size)
        expected, _ = model.backbone(x)
        torch.testing.assert_close(logits, expected)
        assert torch.equal(features, model.backbone.forward_features(x)[0])


@families
def test_intermediates_are_what_the_blocks_return(name, options):
    model = make(name, **options)
    x = images(model)
    with torch.no_grad():
        tokens, parts = model.forward_intermediates(x, norm=True, output_fmt="NLC")
        assert torch.equal(tokens, model.forward_features(x)) and len(parts) == len(model.feature_info)
        assert torch.equal(parts[-1], tokens[:, model.num_prefix_tokens :])
        early = model.forward_intermediates(x, indices=[0, 2], stop_early=True, intermediates_only=True)
        _, late = model.forward_intermediates(x, indices=[0, 2])
        side = 32 // PRESETS[name].patch_size
        for one, other in zip(early, late, strict=True):
            assert torch.equal(one, other) and one.shape == (2, model.num_features, side, side)
        first, prefix = (
            model.forward_intermediates(x, indices=[0], return_prefix_tokens=True)[1][0],
            model.num_prefix_tokens,
        )
        assert not prefix or first[1].shape == (2, prefix, model.num_features)


@families
def test_features_only(name, options):
    model = timm.create_model(name, features_only=True, out_indices=(0, 1), **SMALL, **options).eval()
    with torch.no_grad():
        maps = model(torch.zeros(1, 3, 32, 32))
    assert [one.shape[1] for one in maps] == model.feature_info.channels()
    assert model.feature_info.reduction() == [PRESETS[name].patch_size] * 2


@families
def test_the_head_is_replaced(name, options):
    model = make(name, **options)
    model.reset_classifier(3)
    assert model(images(model)).shape == (2, 3) and model.num_classes == 3
    model.reset_classifier(0)
    assert model(images(model)).shape == (2, model.num_features)


@families
def test_it_trains_with_timms_optimizer(name, options):
    model = make(name, num_classes=3, drop_path_rate=0.1, **options).train()
    model.set_grad_checkpointing()
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.7)
    for _ in range(2):  # the head's zeros let no gradient through in the first step
        loss = (
            torch.nn.functional.cross_entropy(model(images(model, 4)), torch.tensor([0, 1, 2, 0])) + model.balance_loss
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "experts" not in name)
    assert bool(model.balance_loss > 0) == bool(PRESETS[name].experts)


def test_the_model_that_comes_with_the_package():
    model = timm.create_model("sparse_mlp_t4.cifar10", pretrained=True).eval()
    assert timm.create_model("sparse_mlp_t4", pretrained=True).num_classes == 10
    ours = SparseVisionModel.from_pretrained("cifar10").eval()
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), ours(x))
    data = resolve_model_data_config(model)
    assert (data["mean"], data["std"]) == (tuple(ours.config.data.mean), tuple(ours.config.data.std))
    assert data["input_size"] == (3, 32, 32) and data["crop_pct"] == ours.config.data.crop_fraction
    assert timm.create_model("sparse_mlp_t4", pretrained=True, num_classes=4)(x).shape == (3, 4)


def test_an_export_is_loaded_as_weights(tmp_path):
    folder = SparseVisionModel.from_pretrained("cifar10").save_pretrained(tmp_path / "export")
    overlay = {"file": str(folder / "model.safetensors"), "num_classes": 10}
    model = timm.create_model("sparse_mlp_t4", pretrained=True, pretrained_cfg_overlay=overlay)
    ours = SparseVisionModel.from_pretrained(folder)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), ours.eval()(x))


@pytest.mark.parametrize("shape", [(1, 3, 48, 48), (1, 1, 32, 32), (3, 32, 32)])
def test_images_of_the_wrong_size(shape):
    with pytest.raises(UserError, match=f"{' x '.join(map(str, shape))}, but the model takes B x 3 x 32 x 32"):
        make("mixer_s16")(torch.zeros(shape))


def test_images_that_are_not_square():
    assert make("mixer_s16", img_size=(48, 48)).spec.image_size == 48
    with pytest.raises(UserError, match=r"img_size \(32, 48\)"):
        make("mixer_s16", img_size=(32, 48))


def test_images_of_other_channels():
    with pytest.raises(UserError, match="in_chans 1"):
        make("mixer_s16", in_chans=1)
