"""hubconf.py, through torch.hub as its users reach it."""

import importlib.util
import subprocess
import sys

from sparse_mlp_ds.models.presets import IMAGE_PRESETS as PRESETS
from tests.helpers.launcher import REPOSITORY

CODE = """
import importlib.util, sys, torch
assert importlib.util.find_spec("sparse_mlp_ds") is None, "it would be found without torch.hub"
model = torch.hub.load({repository!r}, "sparse_mlp_t4", source="local", num_classes=3).eval()
trained = torch.hub.load({repository!r}, "pretrained", source="local")
assert torch.hub.load({repository!r}, "sparse_mlp_t4", source="local", pretrained="cifar10").classes == trained.classes
print(tuple(model(torch.zeros(2, 3, 32, 32)).shape), trained.classes[0], "deepspeed" in sys.modules)
"""


def test_models_come_by_name_from_a_checkout_alone(tmp_path):
    """The package is found through torch.hub, away from the checkout and from where it is installed."""
    hidden = "import sys; sys.meta_path = [f for f in sys.meta_path if 'editable' not in str(f).lower()]\n"
    code = hidden + CODE.format(repository=str(REPOSITORY))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(2, 3) airplane False\n"


def test_every_model_is_an_entry_and_explains_itself():
    spec = importlib.util.spec_from_file_location("hubconf", REPOSITORY / "hubconf.py")
    hubconf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hubconf)
    entries = {name for name, value in vars(hubconf).items() if callable(value) and name[0] != "_"}
    assert entries == {*PRESETS, "pretrained"}
    assert all("create_model" in vars(hubconf)[name].__doc__ for name in PRESETS)
