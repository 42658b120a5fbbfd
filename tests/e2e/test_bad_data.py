"""Training on data of which some is damaged: a little is replaced and counted, too much ends every rank."""

import json
import shutil

import numpy as np
import pytest

from sparse_mlp_ds.shards import digits
from tests.helpers import records
from tests.helpers.launcher import MOE, Launch

SHORT = ("--ds_config", MOE, "--set", "data.train=damaged", "--set", "data.val=digits/val", "--set",
         "stages.pretrain.epochs=1", "--set", "stages.finetune.epochs=1", "--set", "log.every_steps=2")  # fmt: skip

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def damage(tmp_path):
    """Spoil a share of the training images on the disk, behind the index's back."""
    digits.make(tmp_path / "digits")

    def spoil(share: float) -> int:
        shutil.copytree(tmp_path / "digits/train", tmp_path / "damaged")
        shards = json.loads((tmp_path / "damaged/index.json").read_text())["shards"]
        places = [(s["file"], offset) for s in shards for offset in s["offsets"]]
        chosen = np.random.default_rng(0).permutation(len(places))[: int(share * len(places))]
        for place in chosen:
            with (tmp_path / "damaged" / places[place][0]).open("rb+") as file:
                file.seek(places[place][1])
                file.write(b"spoilt!!")
        return len(chosen)

    return spoil


def test_one_percent_is_replaced_and_counted(damage, tmp_path):
    count = damage(0.0099)
    with Launch(tmp_path, *SHORT) as launch:
        assert launch.wait() == 0, launch.output()
    run = tmp_path / "runs/digits"
    assert [stage["steps"] for stage in json.loads((run / "summary.json").read_text())["stages"]] == [11, 22, 0]
    last = [r for r in records.of_steps(run) if r["stage"] == "finetune"][-1]
    assert 0 < last["bad/undecodable"] <= count  # an epoch leaves out the tail that fills no batch


def test_twenty_percent_stop_every_rank_and_name_the_worst_tar(damage, tmp_path):
    damage(0.2)
    with Launch(tmp_path, *SHORT) as launch:
        assert launch.wait() == 2, launch.output()
        (error,) = [line for line in launch.output().splitlines() if line.startswith("error:")]
    assert "samples are bad, more than data.bad_limit 0.01 allows; worst is damaged/digits-" in error
    assert "remake it" in error
