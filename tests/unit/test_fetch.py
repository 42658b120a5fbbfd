"""Weights that lie elsewhere: fetched once, whole or not at all, and never a pickle."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import fsspec
import pytest
import torch

from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.hub import fetch, huggingface
from sparse_mlp_ds.hub.load import class_list
from sparse_mlp_ds.weights import locate
from sparse_mlp_ds.weights.load import load_into
from tests.helpers import stub_hub
from tests.helpers.made_checkpoints import call, save
from tests.helpers.named_shards import NAMES, check, shards
from tests.helpers.processes import together
from tests.helpers.remote import Server
from tests.helpers.weight_files import DENSE, SPARSE, logits, make, weights, write


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/sparse_mlp_ds/weights"


@pytest.fixture
def server(tmp_path):
    (tmp_path / "site").mkdir()
    write(tmp_path / "site", "timm", weights(make(DENSE)))
    with Server(tmp_path / "site") as one:
        yield one


def refused(path):
    with pytest.raises(UserError) as caught:
        fetch.local(path)
    (line,) = str(caught.value).splitlines()
    return line


def test_a_url_gives_the_model_and_is_asked_once(server):
    for _ in range(2):
        model = make(DENSE, seed=1)
        load_into(model, DENSE, fetch.local(f"{server.url}/timm.safetensors"))
        assert torch.equal(logits(model), logits(make(DENSE)))
    assert server.requests == {"timm.safetensors": 1}


def test_what_fsspec_opens_is_fetched_too(server):
    content = (server.folder / "timm.safetensors").read_bytes()
    fsspec.filesystem("memory").pipe("/bucket/weights.safetensors", content)
    assert fetch.local("memory://bucket/weights.safetensors").read_bytes() == content
    assert "no driver for this kind of URL" in refused("unheard://bucket/weights.safetensors")


@pytest.mark.parametrize("how", ["short", "chunks cut", "error"])
def test_what_does_not_come_whole_is_not_there(server, cache, how):
    server.answers["timm.safetensors"] = [how]
    url = f"{server.url}/timm.safetensors"
    assert url in refused(url)
    assert not list(cache.glob("*.safetensors")) and not list(cache.glob(".*partial"))
    assert fetch.local(url).exists(), "the next try may succeed"


def test_ranks_of_one_host_fetch_once(server):
    url = f"{server.url}/timm.safetensors"
    assert together(_fetches, *[(url,)] * 3) == [0, 0, 0]
    assert server.requests == {"timm.safetensors": 1}


def _fetches(url, barrier):
    barrier.wait()
    fetch.local(url)


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin", "model.safetensors.exe"])
def test_pickles_are_not_even_fetched(server, name):
    (server.folder / name).write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    assert name in refused(f"{server.url}/{name}?download=true#weights.safetensors")
    assert name in refused(f"hf://someone/ants/{name}")
    assert not server.requests


def test_training_starts_from_a_url(server, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for part in ("train", "val"):
        shards(tmp_path / part, NAMES)
    url = f"{server.url}/timm.safetensors"
    assert check(capsys, tmp_path, f"stages.train.init_from.path={url}")[0] == 0
    code, _, (line,) = check(capsys, tmp_path, f"stages.train.init_from.path={url}/nothing.npz")
    assert code == 2 and "stages.train.init_from.path http" in line and "404" in line


# ---- the Hugging Face Hub


def served(monkeypatch, tmp_path, files):
    """Stand in for `huggingface_hub`: files of any repository, laid out as its cache does it."""
    snapshot, blobs = tmp_path / "hub/models--x/snapshots/0123", tmp_path / "hub/models--x/blobs"
    snapshot.mkdir(parents=True), blobs.mkdir()
    absent = type("EntryNotFoundError", (OSError,), {})
    asked = []

    def download(repo, name, revision=None, token=None):
        asked.append((repo, name, revision))
        if name not in files:
            raise absent(f"no {name} in {repo}")
        if not (snapshot / name).exists():
            shutil.copy(files[name], blobs / name)
            (snapshot / name).symlink_to(f"../../blobs/{name}")
        return str(snapshot / name)

    package = SimpleNamespace(hf_hub_download=download, errors=SimpleNamespace(EntryNotFoundError=absent))
    monkeypatch.setattr(huggingface, "_package", lambda: package)
    return asked


def test_weights_of_a_stranger_are_read_as_a_file(monkeypatch, tmp_path):
    """As those of timm, whose config.json is none of this package."""
    file = write(tmp_path, "timm", weights(make(DENSE)))
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "mixer_b16_224", "num_classes": 21843}))
    asked = served(monkeypatch, tmp_path, {"model.safetensors": file, "config.json": tmp_path / "config.json"})
    path = fetch.local("hf://timm/mixer_b16_224.goog_in21k")
    assert path.is_file() and class_list(path).names == ()
    assert asked[0] == ("timm/mixer_b16_224.goog_in21k", "model.safetensors", None)
    model = make(DENSE, seed=1)
    assert load_into(model, DENSE, path).exact
    assert fetch.local("hf://timm/mixer@refs/pr/3/model.safetensors") == path
    assert asked[-1] == ("timm/mixer", "model.safetensors", "refs/pr/3")


def test_an_export_brings_its_class_names_and_links_into_the_cache_are_read(monkeypatch, tmp_path, capsys):
    call(capsys, "export", save(tmp_path, classes=NAMES), tmp_path / "out")
    served(monkeypatch, tmp_path, {name: tmp_path / "out" / name for name in ("model.safetensors", "config.json")})
    path = fetch.local("hf://someone/ants@v1")
    assert path.is_dir() and list(class_list(path).names) == NAMES
    locate.check(path)
    model = make(SPARSE, seed=1)
    assert load_into(model, SPARSE, path).exact
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").symlink_to(tmp_path / "out/model.safetensors")
    with pytest.raises(UserError, match="a link out of the folder"):
        locate.check(path)


@pytest.mark.parametrize("path", ["hf://ants", "hf://", "hf://a/b/../../c.npz", "hf://a/b@c@d", "hf://a b/c"])
def test_what_is_no_repository_is_one_line(path):
    assert refused(path).startswith(f"{path}: no repository; write it as hf://OWNER/NAME")


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    line = refused("hf://someone/ants")
    assert line.startswith("hf://someone/ants: ") and 'pip install "sparse_mlp_ds[hub]"' in line


PROGRAM = """
import sys
from sparse_mlp_ds.errors import UserError
from sparse_mlp_ds.hub import fetch
print(fetch.local("hf://timm/mixer").name)
try:
    fetch.local("hf://someone/absent")
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(importlib.util.find_spec("huggingface_hub") is None, reason="needs sparse_mlp_ds[hub]")
def test_the_real_package_fetches_once_and_works_without_the_hub(tmp_path):
    with stub_hub.serve() as hub:
        hub.repos["timm/mixer"] = {"model.safetensors": write(tmp_path, "timm", weights(make(DENSE))).read_bytes()}
        environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf")}
        environment["HF_HUB_DISABLE_XET"] = "1"

        def program(**more):
            command = [sys.executable, "-c", PROGRAM]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment | more)
            assert done.returncode == 0, done.stderr
            return done.stdout.splitlines()

        name, absent = program()
        assert name == "model.safetensors"
        assert absent.startswith("hf://someone/absent: the Hub does not provide it")
    assert program(HF_HUB_OFFLINE="1")[0] == name
