"""Both Dockerfiles, built and used: by whom they run, without what, on a small /dev/shm, and two of them as two nodes.

The base is a plain Debian and torch its CPU build, for docker/Dockerfile too, as its build arguments allow. So what is
shown of that one is that its steps work, that the result trains without a compiler, and that DeepSpeed, told that it
runs on CUDA, starts without one. Not shown: NVIDIA's base, torch's CUDA build, and anything on a GPU.
"""

import json
import os
import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from tests.helpers import hosts, images
from tests.helpers.images import REPOSITORY, Images, inside

_reason = images.why_not() or hosts.why_not()
pytestmark = [pytest.mark.timeout(1800), pytest.mark.skipif(bool(_reason), reason=_reason)]

DOCKERFILES = {"cpu": "Dockerfile.cpu", "cuda": "Dockerfile"}
WORKDIR = "/opt/sparse_mlp_ds"
SMOKE = ("test_digits", "test_deepspeed_json", "test_moe_layer", "test_loading", "test_run_folder")
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "nvcc", "make")
SECRET = 'a "quoted" \\ key #1'


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    with Images(tmp_path_factory.mktemp("images")) as store:
        with ThreadPoolExecutor() as both:
            list(both.map(lambda item: store.build(item[1], item[0]), DOCKERFILES.items()))
        for name in DOCKERFILES:
            store.container(name)
        yield store


@pytest.mark.parametrize("image", DOCKERFILES)
def test_holds_the_package_and_no_compiler_and_is_nobody_s_root(built, image):
    config = built.config(image)
    assert config["User"] == "trainer" and config["WorkingDir"] == WORKDIR
    assert config["Entrypoint"] == [f"{WORKDIR}/docker/entrypoint.sh"]
    script = (
        f"id -u; pwd; touch ~/written runs/written data/written; command -v {' '.join(COMPILERS)}; "
        "find / -xdev -name cc1 -o -xdev -name 'ssh_host_*' 2>/dev/null; ls -A"
    )
    done = inside(built.start(image, "sh", "-c", script))
    uid, folder, *rest = done.stdout.split()
    assert (done.returncode, uid, folder) == (0, "1000", WORKDIR), done.stderr
    # Neither a compiler nor a host key was found: nothing stands between the folder's name and what lies in it.
    assert sorted(rest) == sorted(
        ["README.md", "data", "docker", "ds_configs", "launcher", "pyproject.toml", "runs", "setup.py", "sparse_mlp_ds"]
        + ["train.py"]
    )


def test_a_build_is_sent_what_an_image_needs_and_nothing_else(built, tmp_path):
    wanted = {
        "train.py",
        "requirements.txt",
        "sparse_mlp_ds/cli/main.py",
        "ds_configs/moe.json",
        "docker/entrypoint.sh",
        "launcher/kubernetes/pod.sh",
    }
    unwanted = {
        ".git/config",
        "runs/a",
        "data/a.tar",
        ".venv/bin/python",
        "key",
        "launcher/hostfile",
        "sparse_mlp_ds/cli/__pycache__/main.pyc",
    }
    for name in wanted | unwanted:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".dockerignore").write_text((REPOSITORY / ".dockerignore").read_text())
    (tmp_path / "docker/all").write_text("FROM localhost/base\nCOPY . /sent\nRUN cd /sent && find . -type f\n")
    said = built.buildah("build", "--isolation", "chroot", "--file", tmp_path / "docker/all", tmp_path)
    assert {line[2:] for line in said.splitlines() if line.startswith("./")} == wanted


@pytest.mark.parametrize("image", DOCKERFILES)
def test_the_smoke_part_of_the_tests_passes_inside(built, image):
    files = [f"tests/unit/{name}.py" for name in SMOKE]
    tests = {REPOSITORY / "tests": f"{WORKDIR}/tests:ro"}
    done = inside(built.start(image, "python", "-m", "pytest", "-q", *files, volumes=tests))
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


def test_deepspeed_told_that_it_runs_on_cuda_starts_without_a_compiler(built):
    """What training asks of it before anything else; it looks for nvcc there, next to CUDA's libraries."""
    look = "import deepspeed.ops as ops, deepspeed; ops.__compatible_ops__; print(deepspeed.get_accelerator()._name)"
    command = built.start("cuda", "python", "-c", look, DS_ACCELERATOR="cuda", CUDA_HOME="/usr/local/cuda")
    done = inside(command)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["cuda"]), done.stdout + done.stderr


@pytest.mark.parametrize(("size", "code"), [("64m", 0), ("256k", 2)])
def test_a_small_shared_memory_is_said_at_once_and_refused_only_if_too_small(built, size, code):
    check = built.start("cpu", "python", "train.py", "--ds_config", "ds_configs/moe.json", "--check")
    done = inside(check, before=f"mount -t tmpfs -o size={size} tmpfs /dev/shm")
    free = {"64m": 64, "256k": 0}[size]
    warning, *rest = done.stderr.splitlines()
    assert warning == f"warning: /dev/shm: {free} MiB are free; start the container with --shm-size=1g"
    assert done.returncode == code, done.stderr
    assert bool(code) == any(line.startswith("error: /dev/shm") and "--shm-size=1g" in line for line in rest)


def test_an_sshd_without_a_key_says_which_is_missing(built):
    done = inside(built.start("cpu", "sshd"))
    assert done.returncode == 2
    assert "\nerror: /home/trainer/.ssh/authorized_keys: cannot be read; mount" in f"\n{done.stderr}"


def _volumes(service: dict, folder: Path) -> dict[Path, str]:
    """Return compose's volumes of a service, the named ones as folders below `folder`."""
    volumes = {}
    for volume in service["volumes"]:
        source, target = volume.split(":", 1)
        here = REPOSITORY / "docker" / source if source.startswith("./") else folder / source
        if not here.exists():
            here.mkdir(mode=0o700)
            os.chown(here, 1000, 1000)  # a new volume takes the owner of the folder that it covers
        volumes[here] = target
    return volumes


def test_two_containers_train_as_two_nodes(built, tmp_path):
    """What compose.yaml says, its commands and volumes, on hosts of a network of our own; one image is one node."""
    services = yaml.safe_load((REPOSITORY / "docker/compose.yaml").read_text())["services"]
    volumes = _volumes(services["node1"], tmp_path)
    container = {"node1": "cpu", "node2": "cuda"}
    key = inside(built.start("cpu", *services["key"]["command"], volumes=volumes))
    assert key.returncode == 0, key.stderr

    with hosts.FourHosts(tmp_path / "lab", count=2) as lab:

        def on(node: str, *command: str, seconds: float = 60, **env: str) -> tuple[int, str]:
            line = shlex.join(built.start(container[node], *command, volumes=volumes, **env))
            return lab.run("ssh", node, line, cwd=tmp_path, seconds=seconds)

        # A shell on the host goes on when its container's sshd listens, as compose does.
        health = shlex.join(services["node2"]["healthcheck"]["test"][1:])
        waiting = f"timeout 30 sh -c 'until {health}; do sleep 0.2; done'"
        serve = built.start("cuda", *services["node2"]["command"], volumes=volumes, WANDB_API_KEY=SECRET, RANK="7")
        in_background = f"{shlex.join(serve)} >{tmp_path}/node2.log 2>&1 &"
        assert lab.run("ssh", "node2", in_background, cwd=tmp_path) == (0, "")
        assert on("node2", "sh", "-c", waiting)[0] == 0, (tmp_path / "node2.log").read_text()

        # What the container was given for training reaches a session; what belongs to a launch does not.
        code, said = on("node1", "ssh", "node2", "id -un; printenv WANDB_API_KEY; ! printenv RANK")
        assert (code, said.splitlines()[-2:]) == (0, ["trainer", SECRET]), said
        code, said = on("node1", "ssh", "-o", "PubkeyAuthentication=no", "node2", "true")
        assert code == 255 and "Permission denied (publickey)" in said

        train = (*services["node1"]["command"], "--set", "train.max_steps=2")
        code, said = on("node1", *train, seconds=400, WANDB_API_KEY=SECRET)
    said += (tmp_path / "node2.log").read_text()
    assert code == 0, said
    assert "quoted" not in said, "a secret was printed"
    summary = json.loads((tmp_path / "runs/digits/summary.json").read_text())
    assert (summary["world_size"], summary["ep_size"]) == (2, 2)
    assert [stage["name"] for stage in summary["stages"]] == ["pretrain", "finetune", "evaluate"]
    assert {path.stat().st_uid for path in (tmp_path / "runs").rglob("*")} == {1000}
