"""`export --stage`: the network of a stage that the run has left behind, and the best head of a probe."""

import pytest
import torch

from sparse_mlp_ds.checkpoints.writer import Piece
from sparse_mlp_ds.config.recipe import model_spec
from sparse_mlp_ds.hub import SparseVisionModel
from sparse_mlp_ds.models import registry
from tests.helpers.made_checkpoints import STAGES, call, edit, finished, pieces, recipe, save, writer
from tests.helpers.tiny_families import TINY
from tests.helpers.weight_files import SPARSE, make

PROBE = {"kind": "probe", "rates": [0.5, 1.0, 4.0], "optimizer": {"name": "sgd", "base_lr": 0.1}}
WITH_PROBE = {"pretrain": STAGES["pretrain"], "probe": PROBE, **STAGES}
METRICS = {"top1": 0.75, "top1_lr_0.05": 0.5, "top1_lr_0.1": 0.75, "top1_lr_0.4": 0.75}


def heads(width, number=3, classes=5):
    generator = torch.Generator().manual_seed(5)
    return [(torch.randn(classes, width, generator=generator), torch.randn(classes)) for _ in range(number)]


def write_probe(folder, model, spec=SPARSE, step=6, metrics=METRICS, linear=None, done=True):
    """A checkpoint of a probe: the frozen backbone, and the heads that were trained."""
    parts = [*pieces("momentum", model)]
    for number, (weight, bias) in enumerate(linear or heads(spec.width)):
        for name, values in (("weight", weight), ("bias", bias)):
            parts.append(Piece(f"param/heads.{number}.{name}", tuple(values.shape), 0, values.flatten()))
    progress = finished("probe", step, average=True)
    progress["done"][0]["metrics"] = dict(metrics)
    if not done:
        progress["done"] = []
    about = {"progress": progress, "recipe": recipe(spec, stages=WITH_PROBE), "classes": list("abcde")}
    return writer.save(folder, step, parts, about).path


@pytest.fixture
def run(tmp_path):
    """A run through a pretraining, a probe and a fine-tuning."""
    checkpoints = tmp_path / "run/checkpoints"
    stages = {"recipe": recipe(stages=WITH_PROBE)}
    for step, seed in ((2, 1), (4, 2)):
        encoder = make(SPARSE, seed, classes=0)
        save(checkpoints, step, finished("pretrain", step), encoder, make(SPARSE, 9, classes=0), **stages)
    write_probe(checkpoints, make(SPARSE, 2, classes=0))
    save(checkpoints, 8, finished("finetune", 8), make(SPARSE, 3), **stages)
    return tmp_path / "run"


def images(size=16):
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_each_stages_network_is_found(run, tmp_path, capsys):
    expected = {"pretrain": make(SPARSE, 2, classes=0), "finetune": make(SPARSE, 3)}
    for stage, model in expected.items():
        code, said, errors = call(capsys, "export", run, tmp_path / stage, "--stage", stage)
        assert (code, errors) == (0, []) and f"of stage {stage} at step {4 if stage == 'pretrain' else 8}" in said
        read = SparseVisionModel.from_pretrained(tmp_path / stage)
        assert torch.equal(read(images()), model(images())[0])
        assert len(read.classes) == (5 if stage == "finetune" else 0)
    single = run / "checkpoints/step_2"
    code, said, _ = call(capsys, "export", single, tmp_path / "single", "--stage", "pretrain")
    assert code == 0 and "of stage pretrain at step 2" in said


@torch.no_grad()
def test_a_probe_is_exported_with_its_best_head(run, tmp_path, capsys):
    assert call(capsys, "export", run, tmp_path / "out", "--stage", "probe")[0] == 0
    read = SparseVisionModel.from_pretrained(tmp_path / "out")
    weight, bias = SparseVisionModel.from_pretrained(tmp_path / "out").backbone.head.parameters()
    assert torch.equal(weight, heads(SPARSE.width)[1][0]), "the second is the first of two that reached most"
    assert read.classes == tuple("abcde")
    features = make(SPARSE, 2, classes=0)(images())[0]
    assert torch.equal(read(images()), torch.nn.functional.linear(features, weight, bias))
    code, said, _ = call(capsys, "export", run / "checkpoints/step_6", tmp_path / "features")
    assert code == 0 and SparseVisionModel.from_pretrained(tmp_path / "features").classes == (), "as before"


@torch.no_grad()
@pytest.mark.parametrize("family", ["deit", "vmoe", "widenet"])
def test_a_probes_head_is_linear_whatever_head_the_family_has(family, tmp_path, capsys):
    spec = model_spec(TINY[family])
    model, linear = registry.build(spec), heads(spec.width)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    path = write_probe(tmp_path, model, spec, linear=linear)
    assert call(capsys, "export", path, tmp_path / "out", "--stage", "probe")[0] == 0
    read = SparseVisionModel.from_pretrained(tmp_path / "out")
    batch = images(spec.image_size)
    expected = torch.nn.functional.linear(model(batch)[0], *linear[1])
    torch.testing.assert_close(read(batch), expected, rtol=1e-5, atol=1e-5)


def test_a_damaged_checkpoint_of_the_stage_is_passed_over(run, tmp_path, capsys):
    (run / "checkpoints/step_4/rank_00000.safetensors").write_bytes(b"")
    code, said, _ = call(capsys, "export", run, tmp_path / "out", "--stage", "pretrain")
    assert code == 0 and "passed over" in said and "of stage pretrain at step 2" in said


def test_what_cannot_be_exported_is_said_in_one_line(run, tmp_path, capsys):
    def refused(source, *flags):
        code, _, lines = call(capsys, "export", source, tmp_path / "out", *flags)
        assert code == 2 and not (tmp_path / "out").exists()
        return lines[-1]

    assert "--stage pretrian is no stage of its recipe; did you mean 'pretrain'?" in refused(run, "--stage=pretrian")
    assert "--stage evaluate trains nothing" in refused(run, "--stage=evaluate")
    line = refused(run / "checkpoints/step_2", "--stage=finetune")
    assert "no complete checkpoint of stage finetune, only of pretrain" in line
    assert "not allowed with argument" in refused(run, "--stage=probe", "--best")
    edit(run / "checkpoints/step_6", lambda tree: tree["progress"]["done"][0]["metrics"].pop("top1_lr_0.4"))
    assert "does not say what each head of the probe reached" in refused(run, "--stage=probe")
    path = write_probe(tmp_path / "going_on", make(SPARSE, 2, classes=0), done=False)
    assert "stage probe is not finished, so its best head is not known" in refused(path, "--stage=probe")
    assert call(capsys, "export", run, tmp_path / "whole")[0] == 0
    assert "an export is of one stage; leave out --stage" in refused(
        tmp_path / "whole", "--stage=probe", "--format=pt2"
    )
    (tmp_path / "empty/checkpoints").mkdir(parents=True)
    assert "no complete checkpoint; train it further" in refused(tmp_path / "empty", "--stage=probe")
