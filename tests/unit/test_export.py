"""`sparse-mlp-ds export`, and the module that reads what it wrote: the same model, the same bytes, nothing lost."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors import safe_open

from sparse_mlp_ds.config.recipe import MoE, model_spec
from sparse_mlp_ds.hub import SparseVisionModel
from sparse_mlp_ds.hub import save as hub_save
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.models.layers import init_weights
from sparse_mlp_ds.models.spec import GmlpSpec, MixerSpec
from sparse_mlp_ds.moe.layer import MoELayer
from tests.helpers import tiny_families
from tests.helpers.made_checkpoints import call, finished, recipe, save
from tests.helpers.weight_files import SPARSE, logits, make


def answers(model, size=16):
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(images)


def test_a_checkpoint_becomes_a_folder_that_answers_alike(tmp_path, capsys):
    model, out = make(SPARSE), tmp_path / "out"
    code, said, errors = call(capsys, "export", save(tmp_path, param=model), out)
    assert (code, errors) == (0, [])
    assert "the online weights of stage finetune at step 4" in said
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1, "whoever may read one file may read all"
    with safe_open(out / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == {name for name, _ in model.named_parameters()}
    read = SparseVisionModel.from_pretrained(out)
    assert torch.equal(answers(read), logits(model))
    assert read.classes == ("ant", "bee", "cat", "dog", "elk")
    config = json.loads((out / "config.json").read_text())
    assert MixerSpec.model_validate(config["spec"]) == SPARSE and config["format"] == 1
    assert list(config["spec"])[:3] == ["family", "image_size", "patch_size"], "the keys' order of version 0.1.0"
    assert "chunk" not in config["spec"]["moe_s"], "which version 0.1.0 does not know"
    assert config["data"] == {"crop_fraction": 1.0, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    assert (config["origin"]["stage"], config["origin"]["step"]) == ("finetune", 4)


@pytest.mark.parametrize(
    ("progress", "flag", "taken"),
    [
        (finished(average=True), [], "momentum"),
        (finished(average=True), ["--online"], "param"),
        (finished(average=False), [], "param"),
        # in the middle of a stage the manifest's hands_over_average is that of the stage before
        (finished(average=True) | {"stage": "pretrain", "done": []}, [], "param"),
        (finished(average=False) | {"done": []}, [], "momentum"),
    ],
)
def test_the_average_is_taken_where_it_is_what_counts(tmp_path, capsys, progress, flag, taken):
    models = {"param": make(SPARSE), "momentum": make(SPARSE, seed=1)}
    path = save(tmp_path, progress=progress, **models)
    assert call(capsys, "export", path, tmp_path / "out", *flag)[0] == 0
    assert torch.equal(answers(SparseVisionModel.from_pretrained(tmp_path / "out")), logits(models[taken]))
    weights = json.loads((tmp_path / "out/config.json").read_text())["origin"]["weights"]
    assert weights == {"momentum": "averaged", "param": "online"}[taken]


@pytest.mark.parametrize("family", tiny_families.TINY)
def test_every_family(tmp_path, capsys, family):
    spec = model_spec(tiny_families.TINY[family])
    model = registry.build(spec, 5)
    init_weights(model, seed=3)
    torch.nn.init.normal_(model.head.weight)
    path = save(tmp_path, param=model, recipe=recipe(spec))
    assert call(capsys, "export", path, tmp_path / "out")[0] == 0
    for source in (tmp_path / "out", path):
        assert torch.equal(answers(SparseVisionModel.from_pretrained(source)), logits(model))


@pytest.mark.parametrize("moe", [{"renormalize": True}, {"priority": "expert_choice", "capacity_factor_s": 2.0}])
def test_how_items_are_routed_goes_along(tmp_path, capsys, moe):
    model, before = make(SPARSE), logits(make(SPARSE))
    for name, layer in model.named_modules():
        if isinstance(layer, MoELayer):
            layer.routing = MoE(**moe).routing(name.rsplit(".", 1)[1])
    path = save(tmp_path, param=model, recipe=recipe(moe=moe | {"ep_size": 2}))
    assert call(capsys, "export", path, tmp_path / "out")[0] == 0
    found = answers(SparseVisionModel.from_pretrained(tmp_path / "out"))
    assert torch.equal(found, logits(model)) and not torch.equal(found, before)


def test_capacity_can_be_set_when_a_model_is_read(tmp_path):
    path = save(tmp_path)
    model = make(SPARSE)
    for layer in model.modules():
        if isinstance(layer, MoELayer):
            layer.routing = replace(layer.routing, evaluation_capacity=0.3, priority="importance")
    read = SparseVisionModel.from_pretrained(path, capacity_factor=0.3)
    assert torch.equal(answers(read), logits(model)) and not torch.equal(answers(read), logits(make(SPARSE)))


def test_the_same_model_gives_the_same_bytes(tmp_path, capsys):
    path = save(tmp_path)
    for name in ("a", "b"):
        assert call(capsys, "export", path, tmp_path / name)[0] == 0
    SparseVisionModel.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "c")
    for name in ("README.md", "config.json", "model.safetensors"):
        assert len({(tmp_path / out / name).read_bytes() for out in "abc"}) == 1


def test_bf16_halves_the_file_and_leaves_routers_alone(tmp_path, capsys):
    model = make(SPARSE)
    assert call(capsys, "export", save(tmp_path, param=model), tmp_path / "out", "--dtype", "bf16")[0] == 0
    with safe_open(tmp_path / "out/model.safetensors", framework="pt") as file:
        types = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert {types[name] for name in types if ".router." in name} == {torch.float32}
    assert {types[name] for name in types if ".router." not in name} == {torch.bfloat16}
    read = SparseVisionModel.from_pretrained(tmp_path / "out")
    for name, parameter in read.backbone.named_parameters():
        stored = dict(model.named_parameters())[name].to(types[name]).float()
        assert torch.equal(parameter, stored)
    read.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "out/model.safetensors").read_bytes()


def test_of_a_run_the_newest_sound_checkpoint_is_taken(tmp_path, capsys):
    models = {step: make(SPARSE, seed=step) for step in (2, 4, 6)}
    for step, model in models.items():
        save(tmp_path / "run/checkpoints", step, param=model)
    with (tmp_path / "run/checkpoints/step_6/rank_00000.safetensors").open("rb+") as file:
        file.seek(-5, 2)
        file.write(b"x")
    code, said, _ = call(capsys, "export", tmp_path / "run", tmp_path / "out")
    assert code == 0 and "passed over" in said and "step_6" in said
    assert torch.equal(answers(SparseVisionModel.from_pretrained(tmp_path / "out")), logits(models[4]))


def test_a_pretrained_model_has_no_head_and_returns_features(tmp_path, capsys):
    model = registry.build(SPARSE)
    init_weights(model, seed=0)
    progress = finished("pretrain")
    path = save(tmp_path, param=model, momentum=registry.build(SPARSE), progress=progress)
    assert call(capsys, "export", path, tmp_path / "out")[0] == 0
    read = SparseVisionModel.from_pretrained(tmp_path / "out")
    assert read.classes == () and torch.equal(answers(read), logits(model))
    assert "no head" in (tmp_path / "out/README.md").read_text()
    code, _, (line,) = call(capsys, "predict", tmp_path / "out", tmp_path / "a.png")
    assert code == 2 and "without a head" in line


def test_the_card_says_what_was_done_and_what_came_out(tmp_path, capsys):
    run = tmp_path / "run"
    save(run / "checkpoints")
    evaluated = {"name": "evaluate", "kind": "evaluate", "steps": 0, "metrics": {"top1": 0.625}}
    (run / "summary.json").write_text(json.dumps({"stages": [*finished()["done"], evaluated]}))
    assert call(capsys, "export", run, tmp_path / "out")[0] == 0
    card = (tmp_path / "out/README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert (front["library_name"], front["pipeline_tag"]) == ("sparse_mlp_ds", "image-classification")
    assert "license" not in front
    assert "| finetune (finetune) | 4 steps, recipe: 3 epochs, batches of 4, lamb | top1 0.5 |" in card
    assert "| evaluate (evaluate) | batches of 16 | top1 0.625 |" in card
    parameters = sum(p.numel() for p in registry.build(SPARSE).parameters())
    assert f"| parameters | {parameters / 1e6:.2f} M" in card


def test_names_of_a_stranger_cannot_write_markup_into_the_card(tmp_path, capsys):
    path = save(tmp_path, recipe=recipe(name="x`\n# <script>|[a](b)"))
    assert call(capsys, "export", path, tmp_path / "out")[0] == 0
    card = (tmp_path / "out/README.md").read_text()
    assert "`x??? ?script???a??b?`" in card and "<script" not in card


def test_what_is_no_export_is_never_replaced(tmp_path, capsys):
    path, out = save(tmp_path), tmp_path / "out"
    out.mkdir()
    assert call(capsys, "export", path, out)[0] == 0, "an empty folder holds nothing to lose"
    assert call(capsys, "export", path, out, "--dtype", "bf16")[0] == 0
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    (out / "notes.txt").write_text("mine")
    code, _, (line,) = call(capsys, "export", path, out)
    assert code == 2 and "notes.txt" in line and (out / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    assert call(capsys, "export", path, tmp_path / "file")[0] == 2
    assert (tmp_path / "file").read_text() == "mine"


def test_an_export_that_fails_leaves_the_earlier_one_and_nothing_else(tmp_path, capsys, monkeypatch):
    path, out = save(tmp_path), tmp_path / "out"
    assert call(capsys, "export", path, out)[0] == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}

    def full_disk(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub_save, "card_text", full_disk)
    code, _, (line,) = call(capsys, "export", path, out, "--dtype", "bf16")
    assert (code, line) == (2, f"error: {out}: cannot be written (No space left on device)")
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "step_4"]


def test_another_models_checkpoint_is_refused(tmp_path, capsys):
    spec = GmlpSpec(family="gmlp", image_size=16, patch_size=4, width=12, depth=2, hidden=8)
    code, _, (line,) = call(capsys, "export", save(tmp_path, recipe=recipe(spec)), tmp_path / "out")
    assert code == 2 and "is missing" in line and not (tmp_path / "out").exists()
    path = save(tmp_path, recipe=recipe(SPARSE.model_copy(update={"width": 16})))
    code, _, (line,) = call(capsys, "export", path, tmp_path / "out")
    assert code == 2 and "is of shape [12, 3, 4, 4], sparse_mlp_digits needs [16, 3, 4, 4]" in line


def test_deepspeed_is_never_imported(tmp_path):
    path = save(tmp_path)
    program = f"""
import sys, torch
from sparse_mlp_ds.cli import main as cli
from sparse_mlp_ds.hub import SparseVisionModel
cli.main(["export", {str(path)!r}, {str(tmp_path / "out")!r}])
cli.main(["checkpoint", "verify", {str(path)!r}])
model = SparseVisionModel.from_pretrained({str(tmp_path / "out")!r})
assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 5)
import sparse_mlp_ds.train.evaluate
assert not [name for name in sys.modules if name.partition(".")[0] in ("deepspeed", "huggingface_hub")]
print("alone")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.endswith("alone\n"), done.stderr


def test_the_hub_is_an_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    code, _, (line,) = call(capsys, "predict", "someone/some-model", "a.png")
    assert code == 2 and "someone/some-model: no such folder" in line and "sparse_mlp_ds[hub]" in line
