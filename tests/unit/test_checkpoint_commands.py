"""`sparse-mlp-ds checkpoint`: figures that are right, damage that is named, and nothing removed that is needed."""

import json

import pytest
import torch

from tests.helpers.made_checkpoints import call, edit, finished, save
from tests.helpers.weight_files import SPARSE, make


def flip(path, place=-5):
    """Change one byte of a checkpoint's tensors."""
    with (path / "rank_00000.safetensors").open("rb+") as file:
        file.seek(place, 2)
        byte = file.read(1)
        file.seek(place, 2)
        file.write(bytes([byte[0] ^ 1]))


def test_inspect_counts_right(tmp_path, capsys):
    model = make(SPARSE)
    progress = finished(expert_items={"2.moe_s": [7, 8, 9], "2.moe_c": ["x"]})
    path = save(tmp_path / "run/checkpoints", param=model, momentum=make(SPARSE, seed=1), progress=progress)
    found = json.loads(call(capsys, "checkpoint", "inspect", tmp_path / "run", "--json")[1])
    parameters = dict(model.named_parameters())
    assert found["tensors"].keys() == {f"backbone.{name}" for name in parameters}
    for name, parameter in parameters.items():
        one = found["tensors"][f"backbone.{name}"]
        assert one["shape"] == list(parameter.shape)
        assert one["norm"] == pytest.approx(float(parameter.detach().double().norm()))
    assert found["others"]["momentum"]["elements"] == sum(p.numel() for p in parameters.values())
    assert found["others"]["exp_avg"]["norm"] == pytest.approx(found["others"]["exp_avg"]["elements"] ** 0.5)
    assert found["experts"].keys() == {"blocks.2.moe_s", "blocks.2.moe_c"}
    experts = found["experts"]["blocks.2.moe_s"]
    assert [one["items"] for one in experts] == [7, 8, 9]
    assert [one["items"] for one in found["experts"]["blocks.2.moe_c"]] == [None, None]
    own = [p.detach().flatten() for name, p in parameters.items() if ".moe_s.experts.1." in name]
    assert experts[1]["norm"] == pytest.approx(float(torch.cat(own).norm()))
    assert found["progress"]["finished"] == ["finetune"] and found["topology"]["zero_stage"] == 2
    code, said, _ = call(capsys, "checkpoint", "inspect", path)
    assert code == 0 and all(name in said for name in found["tensors"])
    assert "finished: finetune" in said and "blocks.2.moe_s" in said


def test_verify_names_the_first_bad_file_of_each(tmp_path, capsys):
    run = tmp_path / "run"
    paths = [save(run / "checkpoints", step) for step in (2, 4, 6)]
    assert call(capsys, "checkpoint", "verify", run)[0] == 0
    flip(paths[0])
    (paths[1] / "rank_00000.safetensors").unlink()
    code, said, errors = call(capsys, "checkpoint", "verify", run)
    assert code == 2 and len(errors) == 2 and said.count("all sound") == 1
    assert f"{paths[0]}/rank_00000.safetensors: differs" in errors[0]
    assert f"{paths[1]}/rank_00000.safetensors: missing" in errors[1]
    assert call(capsys, "checkpoint", "verify", paths[2])[0] == 0
    edit(paths[2], lambda manifest: manifest["tensors"].update({"param/backbone.more": [3]}))
    code, _, (line,) = call(capsys, "checkpoint", "verify", paths[2])
    assert code == 2 and "holds 0 of the 3 elements of 'param/backbone.more'" in line
    code, _, (line,) = call(capsys, "checkpoint", "verify", tmp_path)
    assert code == 2 and "not a checkpoint" in line


def test_diff_is_a_diff(tmp_path, capsys):
    a, b = make(SPARSE), make(SPARSE)
    first = save(tmp_path / "a", param=a)
    code, said, _ = call(capsys, "checkpoint", "diff", first, save(tmp_path / "b", param=b, moments=False))
    assert code == 0, "moments are no weights"
    assert said.count("only in") == 2 and "weights are the same" in said
    with torch.no_grad():
        b.norm.weight[3] += 0.5 * b.norm.weight.abs().max()
    largest = max(float(a.norm.weight.detach().abs().max()), float(b.norm.weight.detach().abs().max()))
    expected = 0.5 * float(a.norm.weight.detach().abs().max()) / largest
    code, said, _ = call(capsys, "checkpoint", "diff", first, save(tmp_path / "b", param=b))
    assert code == 1 and "weights are not the same" in said
    assert f"param/backbone.norm.weight: differs by {expected:.2e}" in said and said.count("differs by") == 1
    other = make(SPARSE, classes=7)
    code, said, _ = call(capsys, "checkpoint", "diff", first, save(tmp_path / "c", param=other))
    assert code == 1 and "param/backbone.head.weight: shape 5 x 12 and 7 x 12" in said
    code, _, (line,) = call(capsys, "checkpoint", "diff", first, tmp_path)
    assert code == 2 and "not a checkpoint" in line


def test_diff_tells_signs_of_zero_and_nan_apart(tmp_path, capsys):
    a, b = make(SPARSE), make(SPARSE)
    with torch.no_grad():
        a.norm.bias[0], b.norm.bias[0] = 0.0, -0.0
        a.norm.weight[0] = b.norm.weight[0] = float("nan")
    code, said, _ = call(capsys, "checkpoint", "diff", save(tmp_path / "a", param=a), save(tmp_path / "b", param=b))
    assert code == 1 and "norm.bias: differs by 0.00e+00" in said and "norm.weight" not in said


def steps_of(run):
    return sorted(int(path.name[5:]) for path in (run / "checkpoints").glob("step_*"))


def test_prune_keeps_what_is_needed(tmp_path, capsys):
    run = tmp_path / "run"
    for step in range(1, 10):
        ends = [{"name": "pretrain", "last_step": 3}] if step >= 3 else []
        progress = {"stage": "x", "step": step, "done": ends, "hands_over_average": False}
        save(run / "checkpoints", step, progress=progress)
    flip(run / "checkpoints/step_9")
    code, said, _ = call(capsys, "checkpoint", "prune", run, "--keep=2", "--every=5", "--dry-run")
    assert code == 0 and said.count("would remove") == 4 and steps_of(run) == list(range(1, 10))
    code, said, _ = call(capsys, "checkpoint", "prune", run, "--keep=2", "--every=5")
    assert code == 0 and "left alone" in said and "step_9" in said.splitlines()[0]
    removed = [line.rpartition("_")[2] for line in said.splitlines() if line.startswith("removed")]
    assert sorted(removed) == ["1", "2", "4", "6"]
    assert steps_of(run) == [3, 5, 7, 8, 9]
    assert call(capsys, "checkpoint", "prune", run, "--keep=1")[0] == 0
    assert steps_of(run) == [3, 8, 9], "the end of a stage, the newest sound one, and the damaged one"
    assert "nothing to remove" in call(capsys, "checkpoint", "prune", run, "--keep=1")[1]


def test_prune_removes_nothing_where_nothing_is_sound(tmp_path, capsys):
    run = tmp_path / "run"
    for step in (1, 2, 3):
        flip(save(run / "checkpoints", step))
    code, _, (line,) = call(capsys, "checkpoint", "prune", run, "--keep=1")
    assert code == 2 and "no complete checkpoint" in line and steps_of(run) == [1, 2, 3]
    for flags in (["--keep=0"], ["--keep=1", "--every=0"]):
        assert call(capsys, "checkpoint", "prune", run, *flags)[0] == 2
    assert call(capsys, "checkpoint", "prune", tmp_path, "--keep=1")[0] == 2
