"""`init_from` takes an export's, a run's or a checkpoint's folder as it takes a file, and leaves optimizers alone."""

import pytest
import torch

from sparse_mlp_ds.checkpoints.manifest import open_checkpoint
from sparse_mlp_ds.checkpoints.reader import Reader
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.shards import digits
from sparse_mlp_ds.train.job import resolve
from sparse_mlp_ds.weights.load import load_into
from tests.helpers.launcher import MOE
from tests.helpers.made_checkpoints import call, finished, save
from tests.helpers.weight_files import DENSE, SPARSE, logits, make, refused


@pytest.fixture
def folders(tmp_path, capsys):
    """One model as a checkpoint, a run and an export."""
    path = save(tmp_path / "run/checkpoints", param=make(SPARSE))
    call(capsys, "export", path, tmp_path / "out")
    return {"checkpoint": path, "run": tmp_path / "run", "export": tmp_path / "out"}


@pytest.mark.parametrize("kind", ["checkpoint", "run", "export"])
def test_every_folder_gives_the_model(folders, kind):
    model = make(SPARSE, seed=1)
    assert load_into(model, SPARSE, folders[kind]).exact
    assert torch.equal(logits(model), logits(make(SPARSE)))


@pytest.mark.parametrize("average, seed", [(True, 2), (False, 0)])
def test_what_the_stage_hands_over_is_taken(tmp_path, average, seed):
    path = save(tmp_path, momentum=make(SPARSE, seed=2), progress=finished(average=average))
    model = make(SPARSE, seed=1)
    load_into(model, SPARSE, path)
    assert torch.equal(logits(model), logits(make(SPARSE, seed=seed)))


def test_optimizer_state_is_not_read(folders, monkeypatch):
    asked = []
    read = Reader.__call__
    monkeypatch.setattr(Reader, "__call__", lambda self, name, *part: asked.append(name) or read(self, name, *part))
    load_into(make(SPARSE, seed=1), SPARSE, folders["run"])
    assert asked and all(name.startswith("param/backbone.") for name in asked)
    assert any(name.startswith("exp_avg/") for name in Reader(open_checkpoint(folders["checkpoint"])).shapes)


def test_a_dense_run_is_upcycled_and_resized(tmp_path):
    dense = make(DENSE)
    path = save(tmp_path, param=dense)
    spec = SPARSE.model_copy(
        update={
            "rerepresent": False,
            "moe_s": SPARSE.moe_s.model_copy(update={"hidden": DENSE.token_hidden, "top_k": 3}),
            "moe_c": SPARSE.moe_c.model_copy(update={"hidden": DENSE.channel_hidden}),
        }
    )
    model = make(spec, seed=1)
    assert load_into(model, spec, path, upcycle=True).exact
    torch.testing.assert_close(logits(model), logits(dense))
    larger = DENSE.model_copy(update={"image_size": 24})
    assert len(load_into(make(larger), larger, path).resized) == 9


def test_another_model_is_refused_and_nothing_changes(tmp_path, folders):
    spec = SPARSE.model_copy(update={"channel_hidden": 9})
    model = make(spec, seed=1)
    before = logits(model)
    for path in folders.values():
        refused("mlp_channels", "model.channel_hidden", call=lambda: load_into(model, spec, path), path=path)  # noqa: B023
    assert torch.equal(logits(model), before)


def test_a_path_that_leads_nowhere_is_found_before_any_rank_starts(tmp_path):
    digits.make(tmp_path / "digits")
    overrides = [f"data.{split}={tmp_path}/digits/{split}" for split in ("train", "val")]

    def check(path):
        return resolve(
            "digits", MOE, [*overrides, f"stages.pretrain.init_from.path={path}"], str(tmp_path / "run"), "auto", 1
        )

    save(tmp_path / "old/checkpoints")
    assert check(tmp_path / "old").recipe.stages["pretrain"].init_from.path == str(tmp_path / "old")
    for path, part in ((tmp_path / "absent", "no such file or folder"), (tmp_path / "digits", "no export, run or")):
        with pytest.raises(UserError) as caught:
            check(path)
        (line,) = str(caught.value).splitlines()
        assert f"stages.pretrain.init_from.path {path}: " in line and part in line
