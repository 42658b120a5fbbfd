"""Teachers: what does not fit is said before training starts, and how the images reach them."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from sparse_mlp_ds.checkpoints.manifest import open_checkpoint
from sparse_mlp_ds.config.loading import load_recipe
from sparse_mlp_ds.config.recipe import model_spec
from sparse_mlp_ds.config.stages import Finetune
from sparse_mlp_ds.data.augment import normalize
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.hub import SparseVisionModel
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.train import distillation
from sparse_mlp_ds.train.distillation import Teacher
from sparse_mlp_ds.train.initial_weights import load_previous
from sparse_mlp_ds.train.supervised import Classifier
from sparse_mlp_ds.weights.load import load_into
from tests.helpers.made_checkpoints import recipe as made_recipe
from tests.helpers.made_checkpoints import save
from tests.helpers.references import load, under
from tests.helpers.tiny_families import TINY
from tests.helpers.weight_files import logits, make, refused, weights
from tests.ranks.test_distillation import RECIPE, make_teacher

DIGITS = [str(number) for number in range(10)]


@pytest.fixture
def folder(tmp_path):
    make_teacher(tmp_path / "teacher")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(tmp_path))
    return tmp_path


def recipe(folder, *overrides):
    return load_recipe(str(folder / "recipe.yaml"), overrides)


def test_the_teacher_sees_the_same_images_normalised_its_own_way(folder):
    teacher, exported = (
        Teacher(folder / "teacher", recipe(folder)),
        SparseVisionModel.from_pretrained(folder / "teacher"),
    )
    images = torch.rand(4, 3, 16, 16)
    found = teacher.logits(images)
    assert not found.requires_grad and not any(p.requires_grad for p in teacher.model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(found, exported(normalize(images, exported.config.data)))
        assert not torch.allclose(found, exported(images), atol=0.1)
    torch.testing.assert_close(teacher.logits(images[2:3]), found[2:3])  # in any batch


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["model.distillation_token=false"], ["stages.supervised.distill", "set model.distillation_token: true"]),
        (["model.name=mixer_b16"], []),
        (["model.pool=mean"], ["distillation_token needs pool: cls"]),
        (["model.representation=true"], ["representation: false"]),
        (["stages.supervised.distill.type=weak"], ["'hard' or 'soft'"]),
        (["stages.supervised.distill.alpha=2"], ["stages.supervised.distill.alpha"]),
    ],
)
def test_recipes_that_cannot_distill_are_refused(folder, overrides, parts):
    with pytest.raises(UserError) as caught:
        recipe(folder, *overrides)
    assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["data.classes=100"], ["knows 10 classes, the data has 100"]),
        (["model.image_size=32"], ["takes images of 16 pixels, the model of 32", "set model.image_size: 16"]),
        (["stages.supervised.distill.teacher=nowhere"], ["nowhere: no such file or folder"]),
        (["stages.supervised.distill.teacher={}/teacher/model.safetensors"], ["sparse-mlp-ds import"]),
    ],
)
def test_teachers_that_do_not_fit_are_refused(folder, overrides, parts):
    section = recipe(folder, *(text.format(folder) for text in overrides))
    path = section.stages["supervised"].distill.teacher
    refused(*parts, call=lambda: distillation.check(path, section, DIGITS), path=path)


def test_a_teacher_of_different_classes_is_refused(folder):
    path, section = folder / "teacher", recipe(folder)
    assert distillation.check(path, section, DIGITS) == []
    names = ["1", "0", *DIGITS[2:]]
    refused("class 0 is '0', but '1' in data.train", call=lambda: distillation.check(path, section, names), path=path)


def test_a_teacher_without_a_head_is_refused(folder):
    config = json.loads((folder / "teacher/config.json").read_text())
    (folder / "teacher/config.json").write_text(json.dumps(config | {"classes": []}))
    path = folder / "teacher"
    refused("the teacher has no head", call=lambda: distillation.check(path, recipe(folder), DIGITS), path=path)


# ---- published weights with two tokens

DEIT = {"name": "vit_s16", "image_size": 16, "patch_size": 4, "width": 24, "depth": 2, "heads": 2, "channel_hidden": 48}
DISTILLED = DEIT | {"positions": "learned", "distillation_token": True}


def test_a_distilled_deit_is_read_with_both_heads(tmp_path):
    recorded, path = load("timm_deit_distilled"), tmp_path / "deit.safetensors"
    save_file(under(recorded, "weights"), path)
    spec = model_spec(DISTILLED)
    model = make(spec)
    coverage = load_into(model, spec, path)
    assert coverage.exact and coverage.fresh == () and coverage.skipped == ()
    with torch.no_grad():
        torch.testing.assert_close(model(recorded["images"])[0], recorded["logits"], rtol=1e-4, atol=2e-5)

    other = make(spec, seed=1, classes=7)
    assert set(load_into(other, spec, path).fresh) == {
        f"{head}.{kind}" for head in ("head", "head_dist") for kind in ("weight", "bias")
    }

    larger = model_spec(DISTILLED | {"image_size": 32})
    grown = make(larger)
    assert load_into(grown, larger, path).resized == ("positions",)
    assert torch.equal(grown.positions[:2], model.positions[:2]) and grown.positions.shape == (66, 24)

    plain = model_spec(DEIT | {"positions": "learned"})
    refused("set model.distillation_token: true", call=lambda: load_into(make(plain), plain, path), path=path)


def test_an_undistilled_deit_has_no_second_token(tmp_path):
    save_file(under(load("timm_vit"), "weights"), path := tmp_path / "deit.safetensors")
    spec = model_spec(DISTILLED)
    parts = ("holds no 'distillation_token'", "set model.distillation_token: false")
    refused(*parts, call=lambda: load_into(make(spec), spec, path), path=path)


@pytest.mark.parametrize(
    "head",
    [{"distillation_token": True, "positions": "learned"}, {"representation": True}],
    ids=lambda head: next(iter(head)),
)
def test_fine_tuning_begins_with_a_new_head_of_every_kind(tmp_path, head):
    """The stage before, pretraining, had no head at all."""
    spec = model_spec(TINY["vit"] | head)
    before, classifier = make(spec, classes=0), Classifier(registry.build(spec, 5))
    init_weights(classifier, 1)
    start = open_checkpoint(save(tmp_path, param=before, recipe=made_recipe(spec)))
    folder = SimpleNamespace(start=start, progress=SimpleNamespace(hands_over_average=False))
    stage = Finetune(kind="finetune", epochs=1, batch_size=8, view={}, optimizer={"base_lr": 1.0})
    load_previous(classifier, stage, folder)
    loaded = weights(classifier.backbone)
    assert {name.split(".")[0] for name in loaded.keys() - weights(before).keys()} > {"head"}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights(before).items())
    assert not classifier.backbone.head.weight.any()


# ---- ResMLP


@pytest.mark.parametrize("mode", ["bilinear", "block"])
def test_resmlp_is_read_at_another_resolution(tmp_path, mode):
    spec = model_spec(
        {"name": "resmlp_s12", "image_size": 16, "patch_size": 4, "width": 24, "depth": 2, "channel_hidden": 96}
    )
    save_file(under(load("timm_resmlp"), "weights"), path := tmp_path / "resmlp.safetensors")
    model = make(spec)
    assert load_into(model, spec, path).exact
    torch.testing.assert_close(
        model(load("timm_resmlp")["images"])[0], load("timm_resmlp")["logits"], rtol=1e-4, atol=2e-5
    )
    larger = spec.model_copy(update={"image_size": 32})
    grown = make(larger)
    coverage = load_into(grown, larger, path, mode=mode)
    assert len(coverage.resized) == 4 and not coverage.exact
    flat = torch.ones(1, 3, 16, 16)
    with torch.no_grad():  # an image whose patches are all equal keeps its logits, as interpolation promises
        if mode == "bilinear":
            assert weights(grown)["blocks.0.tokens.weight"].shape == (64, 64)
            before, after = (m.blocks[0].tokens for m in (model, grown))
            torch.testing.assert_close(after.weight.sum(1).mean(), before.weight.sum(1).mean(), rtol=1e-4, atol=1e-5)
        else:
            windows = torch.cat([flat, flat], dim=2)
            torch.testing.assert_close(
                grown(torch.cat([windows, windows], dim=3))[0], model(flat)[0], rtol=1e-4, atol=1e-4
            )
    assert logits(grown, 32).shape == (4, 5)
