"""A container's small /dev/shm is explained before anything is trained: a real one, in a mount namespace."""

import os
import subprocess
import sys

import pytest

from sparse_mlp_ds.shards import digits
from tests.helpers.launcher import MOE, REPOSITORY

IN_A_SMALL_ONE = 'mount -t tmpfs -o size=256k tmpfs /dev/shm && exec "$@"'


def _can_mount() -> bool:
    probe = ["unshare", "--mount", "sh", "-ec", IN_A_SMALL_ONE, "sh", "true"]
    try:
        return subprocess.run(probe, stderr=subprocess.DEVNULL).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not _can_mount(), reason="needs root and mount namespaces")
@pytest.mark.parametrize(("workers", "code"), [(1, 2), (0, 0)])
def test_a_small_one_is_refused_with_the_option_that_helps(tmp_path, workers, code):
    digits.make(tmp_path / "data/digits")
    command = [
        sys.executable,
        REPOSITORY / "train.py",
        "--ds_config",
        MOE,
        "--check",
        "--set",
        f"data.workers={workers}",
    ]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", IN_A_SMALL_ONE, "sh", *map(str, command)],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    if code:
        assert len(set(errors)) == 1
        assert errors[0].startswith("error: /dev/shm: 0 MiB are free") and "--shm-size=1g" in errors[0]
    else:
        assert errors == []
