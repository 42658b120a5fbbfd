"""The command of the README over four hosts: ssh, one rank each, experts spread over all of them."""

import json
from pathlib import Path

import pytest

from tests.helpers import records
from tests.helpers.hosts import FourHosts, why_not
from tests.helpers.launcher import DEEPSPEED, MOE, REPOSITORY, Launch

_reason = why_not()
pytestmark = [pytest.mark.timeout(600), pytest.mark.skipif(bool(_reason), reason=_reason)]


def _summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


def test_four_hosts_train_what_one_host_trains(tmp_path):
    """Only where the ranks are differs, so the metrics are the same; the shards are those of the first run."""
    short = ("--set", "train.max_steps=2")
    with Launch(tmp_path, "--ds_config", MOE, *short, "--out", "one", ranks=4) as launch:
        assert launch.wait() == 0, launch.output()

    # `train.py` and `ds_configs` as in the repository, so that the command is the README's to the letter.
    for name in ("train.py", "ds_configs"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    with FourHosts(tmp_path / "lab") as hosts:
        (tmp_path / "hostfile").write_text("".join(f"{name} slots=1\n" for name in hosts.names))
        code, output = hosts.run(
            DEEPSPEED, "--hostfile", "hostfile", "--num_nodes", "4",
            "train.py", "--ds_config", "ds_configs/moe.json", *short, "--out", "four",
            cwd=tmp_path, PYTHONPATH=str(REPOSITORY),
        )  # fmt: skip
    assert code == 0, output
    # pdsh puts a host's name before each of its lines.
    assert all(f"\n{name}: " in output for name in hosts.names), output

    one, four = _summary(tmp_path / "one"), _summary(tmp_path / "four")
    assert (four["world_size"], four["ep_size"], four["zero_stage"]) == (4, 4, 2)
    assert [stage["name"] for stage in four["stages"]] == ["pretrain", "finetune", "evaluate"]
    # The same sums in another order (a rank has other numbers of threads there): losses agree closely, norms less so
    # after AdamW's first step, in which a gradient that is nearly zero moves its weight by as much as any other, and of
    # the 360 held-out images one or two near a tie may fall to the other side.
    for expected, found in zip(records.of_steps(tmp_path / "one"), records.of_steps(tmp_path / "four"), strict=True):
        for name, close in (("step", 0), ("loss", 1e-4), ("balance_loss", 1e-4), ("grad_norm", 2e-3)):
            assert found[name] == pytest.approx(expected[name], rel=close), name
    for expected, found in zip(one["stages"], four["stages"], strict=True):
        assert found["metrics"] == pytest.approx(expected["metrics"], rel=0, abs=2 / 360)
