"""The base installation: models, exports and predictions without any package of an extra, and without what POSIX has.

The environment is a folder of links to this package and to the packages that its base requirements lead to; no other
package of this machine can be imported there.
"""

import os
import re
import subprocess
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest

from sparse_mlp_ds.errors import EXTRAS
from sparse_mlp_ds.shards.digits import make
from tests.helpers.launcher import REPOSITORY

pytestmark = pytest.mark.timeout(600)

BEYOND_POSIX = """
import os, signal, sys
import filelock, numpy, PIL.Image, psutil, pydantic, safetensors.torch, torch  # these know their system
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("uname", "fork", "pread", "pathconf", "sched_getaffinity", "sched_setaffinity", "pidfd_open", "setsid"):
    delattr(os, name)
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGCHLD", "sigwaitinfo"):
    delattr(signal, name)
"""
"""What Windows, macOS or both lack is taken away, so that using it fails here too."""
USE = """
import sys
from pathlib import Path
import torch
import sparse_mlp_ds as sm
from sparse_mlp_ds.hub import SparseVisionModel
from sparse_mlp_ds.models import registry

model = sm.create_model(pretrained="cifar10").eval()
images = torch.randn(2, 3, 32, 32)
with torch.no_grad():
    logits = model(images)
again = SparseVisionModel.from_pretrained(model.save_pretrained(sys.argv[1])).eval()
with torch.no_grad():
    assert logits.shape == (2, 10) and torch.equal(again(images), logits)
data = sm.Shards(sys.argv[3], transform=lambda image: model.preprocess([image.resize((32, 32))])[0])
batch, labels = next(iter(torch.utils.data.DataLoader(data, batch_size=4)))
assert batch.shape == (4, 3, 32, 32) and len(data) > 4
moe = sm.MoE(8, 4, top_k=2)
y, loss = moe(torch.randn(4, 5, 8))
loss.backward()
print(y.shape, sorted(set(sys.modules) & set(sys.argv[2].split())))
"""


def closure(name: str, found: dict[str, Distribution]) -> dict[str, Distribution]:
    """Add a distribution and those that it requires without any extra; return all."""
    if name not in found:
        found[name] = distribution(name)
        for line in found[name].requires or ():
            requirement, _, marker = line.partition(";")
            if "extra" not in marker and (required := _installed(requirement)):
                closure(required, found)
    return found


def _installed(requirement: str) -> str | None:
    """Return the name in a requirement if it is installed: some are only for different systems."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement.strip())
    try:
        return distribution(name[0]).metadata["Name"].lower().replace("_", "-") if name else None
    except ModuleNotFoundError:
        return None


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A folder of links to the packages of a base installation."""
    folder = tmp_path_factory.mktemp("base")
    requirements = [one for one in distribution("sparse_mlp_ds").requires or () if "extra" not in one]
    assert 5 < len(requirements) < 12, "the package's own metadata are old: install it again"
    found: dict[str, Distribution] = {}
    for requirement in requirements:
        assert (name := _installed(requirement))
        closure(name, found)
    assert not {"deepspeed", "kornia", "webdataset", "wandb", "matplotlib"} & found.keys()
    for one in found.values():
        for file in one.files or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(Path(str(one.locate_file(top))))
    (folder / "sparse_mlp_ds").symlink_to(REPOSITORY / "sparse_mlp_ds")
    return folder


def run(base: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-S", *arguments]  # without site-packages
    return subprocess.run(
        command, cwd=folder, env=environment | {"PYTHONPATH": str(base)}, capture_output=True, text=True, timeout=240
    )


@pytest.mark.parametrize("before", ["", BEYOND_POSIX], ids=["as it is", "without POSIX"])
def test_models_work(base, tmp_path, before):
    names = " ".join(name for names in EXTRAS.values() for name in names)
    make(tmp_path / "digits")
    done = run(base, tmp_path, "-c", before + USE, str(tmp_path / "export"), names, str(tmp_path / "digits/val"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch.Size([4, 5, 8]) []"


@pytest.mark.parametrize("before", ["", BEYOND_POSIX], ids=["as it is", "without POSIX"])
def test_predict_works(base, tmp_path, an_image, before):
    code = f"{before}\nimport sys\nfrom sparse_mlp_ds.cli.main import main\nmain(sys.argv[1:])"
    done = run(base, tmp_path, "-c", code, "predict", "cifar10", str(an_image))
    assert done.returncode == 0, done.stderr
    assert "%" in done.stdout


def test_the_extras_that_errors_name_are_those_that_there_are():
    about = distribution("sparse_mlp_ds").metadata
    assert {*EXTRAS, "all", "test"} == set(about.get_all("Provides-Extra"))
    required = {
        extra: [one for one in about.get_all("Requires-Dist") if f'extra == "{extra}"' in one] for extra in EXTRAS
    }
    known = {"sklearn": "scikit-learn"}  # a package's name in Python and on an index
    for extra, names in EXTRAS.items():
        wanted = {known.get(name, name) for name in names} | ({"matplotlib"} if extra == "train" else set())
        assert {re.split(r"[<>=;\[ ]", one)[0] for one in required[extra]} == wanted


@pytest.fixture
def an_image(tmp_path):
    from PIL import Image

    path = tmp_path / "image.png"
    Image.new("RGB", (40, 40), (90, 140, 60)).save(path)
    return path


@pytest.mark.parametrize("command", [
    ("train", "--ds_config", "moe", "--check"), ("shards", "make", "digits", "data"),
])  # fmt: skip
def test_what_needs_an_extra_names_it_in_one_line(base, tmp_path, command):
    done = run(base, tmp_path, "-m", "sparse_mlp_ds.cli.main", *command)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("error: package ")
    assert line.endswith('pip install "sparse_mlp_ds[train]"')
