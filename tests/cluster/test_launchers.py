"""The scripts for ssh and mpirun over four hosts, one rank each."""

import json
import shutil

import pytest

from tests.helpers.hosts import FourHosts, why_not
from tests.helpers.launcher import REPOSITORY

_reason = why_not()
pytestmark = [pytest.mark.timeout(900), pytest.mark.skipif(bool(_reason), reason=_reason)]

SECRET = "not-for-everybody"
SETTINGS = {
    "PYTHONPATH": str(REPOSITORY),
    "GLOO_SOCKET_IFNAME": "eth0",  # the hosts' interface; the lab's own is another
    "WANDB_API_KEY": SECRET,
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


@pytest.mark.parametrize("script", ["ssh", "mpi"])
def test_four_hosts_train(script, tmp_path):
    if script == "mpi" and not shutil.which("mpirun"):
        pytest.skip("mpirun not installed: apt-get install openmpi-bin")
    for name in ("train.py", "ds_configs", "launcher"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    with FourHosts(tmp_path / "lab") as hosts:
        (tmp_path / "hostfile").write_text("".join(f"{name} slots=1\n" for name in hosts.names))
        train = ("--ds_config", "ds_configs/moe.json", "--set", "train.max_steps=1")
        alone = (
            "--set",
            "stages.pretrain=null",
            "--set",
            "stages.evaluate=null",
            "--set",
            "stages.finetune.kind=supervised",
        )
        code, output = hosts.run(
            f"launcher/{script}.sh", "hostfile", *train, *alone, cwd=tmp_path, seconds=500, **SETTINGS
        )
        assert code == 0, output
        assert SECRET not in output
        # Bad input, which every rank finds, is the exit code of the script.
        code, output = hosts.run(
            f"launcher/{script}.sh", "hostfile", *train, "--set", "trian.seed=1", cwd=tmp_path, seconds=300, **SETTINGS
        )
        assert code == 2 and "did you mean 'train'?" in output, output
    summary = json.loads((tmp_path / "runs/digits/summary.json").read_text())
    assert (summary["world_size"], summary["ep_size"]) == (4, 4)
