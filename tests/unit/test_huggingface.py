"""The Hugging Face Hub, through its real package against a stand-in for the site: pushed, fetched, and the same."""

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.helpers import stub_hub
from tests.helpers.made_checkpoints import save

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("huggingface_hub") is None, reason="needs the extra: pip install sparse_mlp_ds[hub]"
)

PROGRAM = """
import sys, torch
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.hub import SparseVisionModel

model = SparseVisionModel.from_pretrained(sys.argv[1])
print(model.push_to_hub("someone/ants", token="hf_test"))
again = SparseVisionModel.from_pretrained("someone/ants", token="hf_test")
assert again.config == model.config
for (name, one), (_, other) in zip(model.named_parameters(), again.named_parameters(), strict=True):
    assert torch.equal(one, other), name
try:
    SparseVisionModel.from_pretrained("someone/absent")
except UserError as error:
    assert len(str(error).splitlines()) == 1, error
    print(error)
"""


def test_what_is_pushed_comes_back(tmp_path):
    with stub_hub.serve() as hub:
        environment = os.environ | {
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
        }
        command = [sys.executable, "-c", PROGRAM, str(save(tmp_path))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
        assert done.returncode == 0, done.stderr + "\n".join(hub.asked)
    assert set(hub.repos["someone/ants"]) == {"README.md", "config.json", "model.safetensors"}
    commit, absent = done.stdout.splitlines()
    assert (
        commit.startswith(hub.address) and "someone/absent: no such folder, and the Hub does not provide it" in absent
    )
