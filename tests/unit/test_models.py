"""Models: the papers' sizes, and weights and stochastic depth that depend on names and samples alone."""

import pytest
import torch

from sparse_mlp_ds import rng
from sparse_mlp_ds.config.recipe import model_spec
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.layers import DropPath, PatchEmbed, init_weights

SIZES = {
    "mixer_s16": 18_015_264,
    "mixer_b16": 59_111_472,
    "mixer_l16": 207_171_168,
    "sparse_mlp_s16": 22_402_608,
    "sparse_mlp_b16": 69_976_768,
    "sparse_mlp_l16": 130_436_456,
}
ABLATIONS = [("moe_s", 4, 65.15), ("moe_s", 16, 79.64), ("moe_c", 8, 79.43), ("moe_c", 16, 98.34)]


def parameters(spec, classes=0):
    with torch.device("meta"):
        return sum(p.numel() for p in registry.build(spec, classes).parameters())


def make(name, seed=0, classes=0, **overrides):
    model = registry.build(model_spec({"name": name, **overrides}), classes)
    init_weights(model, seed)
    return model


def images(count, size=16):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name, count", SIZES.items())
def test_size_without_head(name, count):
    spec = registry.preset(name)
    assert parameters(spec) == count
    assert parameters(spec, classes=1000) == count + 1000 * (spec.width + 1)


@pytest.mark.parametrize("kind, experts, millions", ABLATIONS)
def test_size_of_the_papers_ablations_of_sparse_b(kind, experts, millions):
    spec = model_spec({"name": "sparse_mlp_b16", kind: {"experts": experts}})
    assert parameters(spec) / 1e6 == pytest.approx(millions, abs=0.005)
    other = {"moe_s": "moe_c", "moe_c": "moe_s"}[kind]
    assert getattr(spec, other) == getattr(registry.preset("sparse_mlp_b16"), other)


def test_an_unknown_model_is_answered_with_the_nearest_name():
    with pytest.raises(UserError, match="unknown model 'mixer_s61'; did you mean 'mixer_s16'?"):
        registry.preset("mixer_s61")


@pytest.mark.parametrize("classes", [0, 7])
@pytest.mark.parametrize("name", ["mixer_digits", "sparse_mlp_digits"])
def test_shapes_and_reports(name, classes):
    model = make(name, classes=classes)
    x = images(8)
    for keys in (None, rng.sample_keys(0, torch.arange(8), "test")):
        features, reports = model.forward_features(x, keys)
        assert features.shape == (8, 96)
        assert model(x, keys)[0].shape == (8, classes or 96)
        assert set(reports) == ({"3.moe_s", "3.moe_c"} if name.startswith("sparse") else set())
        assert all((report.balance > 0) == (keys is not None) for report in reports.values())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("patch, side", [(4, 16), (7, 28)])
def test_patches_are_those_of_a_convolution(patch, side, layout):
    embed = PatchEmbed(patch, 24).double()
    init_weights(embed, 0)
    embed.proj.bias.data.uniform_()
    pictures = images(3, side).double().to(memory_format=layout).requires_grad_()
    convolution = torch.nn.functional.conv2d(pictures, embed.proj.weight, embed.proj.bias, stride=patch)
    products, convolved = embed(pictures), convolution.flatten(2).transpose(1, 2)
    torch.testing.assert_close(products, convolved, rtol=1e-12, atol=1e-12)
    wanted = (pictures, *embed.parameters())
    gradients = (torch.autograd.grad(made.square().sum(), wanted) for made in (products, convolved))
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    assert [tuple(p.shape) for p in embed.state_dict().values()] == [(24, 3, patch, patch), (24,)], "as in checkpoints"


def test_zero_experts_are_one_dense_mlp():
    model = make("sparse_mlp_digits", moe_c={"experts": 0, "top_k": 1})
    assert [name for name, _ in model.named_parameters() if "moe_c" in name] == [
        f"blocks.3.moe_c.{layer}.{kind}" for layer in ("fc1", "fc2") for kind in ("weight", "bias")
    ]
    assert set(model(images(8))[1]) == {"3.moe_s"}


def test_every_parameter_gets_a_gradient():
    model = make("sparse_mlp_digits", drop_path=0.2)
    features, reports = model.forward_features(images(8), rng.sample_keys(0, torch.arange(8), "test"))
    (features.square().sum() + sum(r.balance for r in reports.values())).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    one, same, other = (make("sparse_mlp_digits", seed).state_dict() for seed in (3, 3, 4))
    for name, weight in one.items():
        assert torch.equal(weight, same[name])
        assert torch.equal(weight, other[name]) == (weight.ndim == 1)  # biases and norms start as constants


def test_weights_are_drawn_on_the_cpu_wherever_the_model_is():
    class Layer(torch.nn.Linear):
        def init_parameter(self, name, parameter, generator):
            drawn_on.append((parameter.device.type, generator.device.type))

    drawn_on = []
    init_weights(Layer(2, 3, device="meta"), 0)  # a GPU would refuse the generator of a CPU; this device is anywhere
    assert drawn_on == [("cpu", "cpu")] * 2


def test_experts_differ_from_one_another():
    experts = make("sparse_mlp_digits").blocks[3].moe_s.experts
    assert len(experts) == 4
    for layer in ("fc1", "fc2"):
        weights = torch.stack([getattr(expert, layer).weight.flatten() for expert in experts.values()])
        assert torch.corrcoef(weights).fill_diagonal_(0).abs().max() < 0.1


def test_weights_of_a_shared_name_do_not_depend_on_the_rest_of_the_model():
    small = make("sparse_mlp_digits", classes=10).state_dict()
    large = make("sparse_mlp_digits", moe_s={"experts": 6}, dense_blocks=3, drop_path=0.1).state_dict()
    dense = make("mixer_digits").state_dict()
    assert "blocks.3.moe_s.experts.3.fc1.weight" in small.keys() & large.keys()
    for other in (large, dense):
        shared = [n for n in small.keys() & other.keys() if small[n].shape == other[n].shape]
        assert len(shared) >= 38
        assert all(torch.equal(small[name], other[name]) for name in shared)


def test_weights_are_lecun_normal_and_vectors_constant():
    state = make("mixer_digits").state_dict()
    for name, weight in state.items():
        if weight.ndim == 1:
            assert (weight == (1 if name.endswith("weight") else 0)).all()
        else:
            deviation = weight[0].numel() ** -0.5
            assert weight.std().item() == pytest.approx(deviation, rel=0.05)
            assert weight.abs().max() < 2 / 0.8796 * deviation * 1.001  # cut at two deviations before rescaling


def test_the_head_is_zero_at_the_start_and_after_a_reset():
    model = make("mixer_digits", classes=10)
    features = model.forward_features(images(2))[0]
    assert features.any()
    assert not model.forward_head(features).any()

    torch.nn.init.normal_(model.head.weight)
    assert model.forward_head(features).any()
    model.reset_head(4)
    assert model.forward_head(features).shape == (2, 4)
    assert not model.forward_head(features).any()
    model.reset_head(0)
    assert torch.equal(model.forward_head(features), features)


def test_drop_path_drops_whole_images_by_their_keys_and_rescales_the_rest():
    layer, keys = DropPath(0.3), rng.sample_keys(0, torch.arange(5000), "test")
    layer.stream = 11
    branch = torch.rand(5000, 2, 3) + 1
    result = layer(branch, keys)
    dropped = (result == 0).all(dim=(1, 2))
    assert dropped.float().mean() == pytest.approx(0.3, abs=0.03)
    torch.testing.assert_close(result[~dropped], branch[~dropped] / 0.7)
    some = torch.tensor([4, 99, 3, 2000])
    assert torch.equal(layer(branch[some], keys[some]), result[some])
    assert torch.equal(layer(branch, None), branch)
    assert torch.equal(DropPath(0.0)(branch, keys), branch)


def test_drop_path_grows_linearly_and_each_block_draws_for_itself():
    model = make("sparse_mlp_digits", drop_path=0.3)
    assert [block.drop_path1.rate for block in model.blocks] == pytest.approx([0, 0.1, 0.2, 0.3])
    branches = [branch for block in model.blocks for branch in (block.drop_path1, block.drop_path2)]
    assert len({branch.stream for branch in branches}) == 8


def test_stochastic_depth_of_an_image_does_not_depend_on_its_batch():
    model, x = make("mixer_digits", drop_path=0.5), images(16)
    keys = rng.sample_keys(0, torch.arange(16), "test")
    whole = model.forward_features(x, keys)[0]
    picked = torch.tensor([9, 2, 2, 15])
    torch.testing.assert_close(model.forward_features(x[picked], keys[picked])[0], whole[picked])
    assert not torch.allclose(whole, model.forward_features(x)[0])
    other_keys = rng.sample_keys(0, torch.arange(16) + 16, "test")
    assert not torch.allclose(whole, model.forward_features(x, other_keys)[0])


def test_no_two_routers_share_a_stream():
    widths = {"width": 8, "token_hidden": 8, "channel_hidden": 8, "sparse_width": 8, "sparse_tokens": 8}
    model = registry.build(model_spec({"name": "sparse_mlp_l16", **widths}))
    streams = [int(layer.router.stream) for block in model.blocks[8:] for layer in (block.moe_s, block.moe_c)]
    assert len(set(streams)) == 12
    assert 0 not in streams
