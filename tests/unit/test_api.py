"""`import sparse_mlp_ds as sm`: models by name, shards by number, one MoE layer alone; nothing comes too early."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import sparse_mlp_ds as sm
from sparse_mlp_ds.api import fit as fit_file
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.hub import SparseVisionModel
from sparse_mlp_ds.models.layers import Mlp
from sparse_mlp_ds.moe.layer import MoELayer, Routing
from sparse_mlp_ds.shards.digits import make


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    make(folder)
    return folder


def test_importing_the_package_imports_no_torch():
    code = "import sys, sparse_mlp_ds as sm; print('torch' in sys.modules, sorted(set(sm.__all__) - set(dir(sm))))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False []"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trane'"):
        sm.__getattr__("trane")


def test_a_model_by_name_is_initialised_and_has_the_head_that_was_asked_for():
    model = sm.create_model("mixer_digits", num_classes=7, image_size=16).eval()
    same = sm.create_model("mixer_digits", num_classes=7, image_size=16).eval()
    different = sm.create_model("mixer_digits", num_classes=7, image_size=16, seed=1).eval()
    images = torch.randn(2, 3, 16, 16)
    assert model(images).shape == (2, 7) and model.classes == tuple("0123456")
    features = model.forward_features(images)
    assert torch.equal(features, same.forward_features(images))
    assert not torch.equal(features, different.forward_features(images))
    assert torch.equal(sm.create_model("mixer_digits", num_classes=0, image_size=16).eval()(images), features)


def test_trained_weights_get_a_new_head_where_the_number_of_classes_differs():
    trained = sm.create_model(pretrained="cifar10")
    images = torch.randn(3, 3, 32, 32)
    kept = sm.create_model(pretrained="cifar10", num_classes=10).eval()
    assert torch.equal(kept(images), trained.eval()(images)) and kept.classes == trained.classes
    new = sm.create_model(pretrained="cifar10", num_classes=3).eval()
    assert torch.equal(new(images), torch.zeros(3, 3)) and new.classes == ("0", "1", "2")
    assert torch.equal(new.forward_features(images), trained.forward_features(images))


def test_a_model_with_a_new_head_can_be_saved_and_loaded(tmp_path):
    model = sm.create_model(pretrained="cifar10")
    model.reset_head(["ant", "bee"])
    again = SparseVisionModel.from_pretrained(model.save_pretrained(tmp_path / "model"))
    assert again.classes == ("ant", "bee")


@pytest.mark.parametrize(("arguments", "keywords", "said"), [
    (("mixer_s_16",), {}, "did you mean"),
    ((), {}, "give the name of a model"),
    (("mixer_digits",), {"image_size": 15}, "image_size"),
    (("mixer_digits",), {"pretrained": "cifar10"}, "cifar10 is a "),
    ((), {"pretrained": "cifar10", "image_size": 64}, "leave out image_size"),
    ((), {"pretrained": "nowhere"}, "nowhere"),
])  # fmt: skip
def test_bad_arguments_of_create_model_are_user_errors(arguments, keywords, said):
    with pytest.raises(UserError, match=said):
        sm.create_model(*arguments, **keywords)


def test_shards_are_a_map_style_data_set(digits):
    data = sm.Shards(digits / "val")
    record = json.loads((digits / "val/index.json").read_text())
    assert len(data) == record["samples"] and data.classes == record["classes"]
    image, label = data[5]
    assert isinstance(image, Image.Image) and image.mode == "RGB" and 0 <= label < 10
    assert np.array_equal(np.asarray(data[5 - len(data)][0]), np.asarray(image))
    for number in (len(data), -len(data) - 1):
        with pytest.raises(IndexError):
            data[number]


def test_shards_in_torchs_loader_give_each_sample_once(digits):
    data = sm.Shards(digits / "val", transform=lambda image: torch.from_numpy(np.array(image)))
    loader = torch.utils.data.DataLoader(data, batch_size=50, shuffle=True, num_workers=2)
    images, labels = map(torch.cat, zip(*loader, strict=True))
    expected = torch.stack([data[number][0] for number in range(len(data))])
    assert sorted(images.flatten(1).sum(1).tolist()) == sorted(expected.flatten(1).sum(1).tolist())
    assert sorted(labels.tolist()) == sorted(label for _, label in (data[n] for n in range(len(data))))


def test_shards_without_an_index_are_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no shards here"):
        sm.Shards(tmp_path)


def test_an_moe_layer_alone_trains_and_is_deterministic_in_evaluation():
    torch.manual_seed(0)
    moe, x = sm.MoE(12, experts=4, top_k=2), torch.randn(6, 5, 12)
    y, loss = moe(x)
    assert y.shape == x.shape and loss.item() > 0
    (y.square().mean() + loss).backward()
    assert all(parameter.grad is not None for parameter in moe.parameters())
    moe.eval()
    (first, none), (second, _) = moe(x), moe(x)
    assert torch.equal(first, second) and none.item() == 0


def test_an_moe_layer_alone_is_the_models_layer():
    moe, x = sm.MoE(12, experts=4, hidden=20, priority="importance", group_images=2), torch.randn(6, 5, 12)
    layer = MoELayer(12, 4, 1, lambda: Mlp(12, 20), Routing(priority="importance", group_images=2))
    layer.load_state_dict(moe.layer.state_dict())
    keys = torch.arange(6)
    assert torch.equal(moe(x, keys)[0], layer(x, keys)[0])


def test_experts_of_ones_own():
    torch.manual_seed(0)
    moe = sm.MoE(12, experts=3, top_k=3, expert=lambda: nn.Linear(12, 12), capacity_factor=None).eval()
    x = torch.randn(2, 5, 12)
    gates = torch.softmax(moe.layer.router(x, None).logits, dim=-1).view(2, 5, 3)
    expected = sum(gates[..., [e]] * moe.layer.experts[str(e)].expert(x) for e in range(3))
    assert torch.allclose(moe(x)[0], expected, atol=1e-6)


@pytest.mark.parametrize(
    "value", [1, 0.1, 1e-5, True, None, "a: b", "1", [1, "x"], {"a": [1]}, "x" * 300, "two\nlines"]
)
def test_settings_arrive_as_they_were_given(value):
    assert yaml.safe_load(fit_file._as_yaml(value)) == value


def test_a_value_that_yaml_has_no_type_for():
    with pytest.raises(UserError, match="cannot be written as YAML"):
        fit_file._as_yaml(torch.zeros(1))
