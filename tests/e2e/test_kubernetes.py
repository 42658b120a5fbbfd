"""What the manifests for Kubernetes run, started here as their pods would start it: ranks, stops, exit codes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from sparse_mlp_ds.distributed import processes
from sparse_mlp_ds.distributed.network import free_port
from sparse_mlp_ds.errors import DONE, STOPPED, USAGE
from tests.helpers.launcher import REPOSITORY, small_recipe

MANIFESTS = REPOSITORY / "launcher/kubernetes"
POLICY = {USAGE: "FailJob", STOPPED: "Ignore"}

pytestmark = pytest.mark.timeout(600)
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root may give processes a host name of their own")


def _documents(name: str) -> dict[str, dict]:
    return {document["kind"]: document for document in yaml.safe_load_all((MANIFESTS / name).read_text())}


JOB = _documents("job.yaml")
POD = JOB["Job"]["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
ENVIRONMENT = {entry["name"]: entry.get("value") for entry in CONTAINER["env"]}


def _of_job(index: int, pods: dict[str, str]) -> dict[str, str]:
    """Variables that an Indexed Job sets by itself."""
    return {"JOB_COMPLETION_INDEX": str(index)}


def _of_operator(index: int, pods: dict[str, str]) -> dict[str, str]:
    """Variables that the training operator sets besides those that job.yaml sets, too."""
    first = {f"PET_{name}": pods[name] for name in ("MASTER_ADDR", "MASTER_PORT")}
    return first | {"RANK": str(index), "PET_NODE_RANK": str(index), "WORLD_SIZE": pods["PET_NNODES"]}


class Pods:
    """The containers of one Job on this machine: each a process with the arguments and the environment of the manifest.

    The image's folder is `folder`, one rank takes the place of the GPUs, and this machine's address that of the pods'
    names. Each has a host name of its own, as pods do.
    """

    def __init__(self, folder: Path, pods: int, recipe: str, started: tuple[int, ...] = (), operator: bool = False):
        for name in ("train.py", "ds_configs", "launcher"):
            if not (folder / name).exists():
                (folder / name).symlink_to(REPOSITORY / name)
        arguments = [f"--recipe={recipe}" if a.startswith("--recipe=") else a for a in CONTAINER["args"]]
        own = {"PET_NNODES": str(pods), "PET_NPROC_PER_NODE": "1", "MASTER_ADDR": "127.0.0.1", "POD_IP": "127.0.0.1"}
        assert own.keys() == ENVIRONMENT.keys()
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        own["MASTER_PORT"] = str(free_port())
        number = _of_operator if operator else _of_job
        self.log = folder / f"pods-{len(list(folder.glob('pods-*')))}.log"
        with self.log.open("wb") as log:
            self.processes = [
                subprocess.Popen(
                    ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', f"sparse-mlp-{i}", *arguments],
                    cwd=folder, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                    env=os.environ | own | {"PATH": path} | number(i, own),
                )
                for i in started or range(pods)
            ]  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for process in self.processes:
            if process.poll() is None:
                for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        one.kill()
            process.wait()

    def codes(self, seconds: float = 300) -> list[int]:
        """Return the exit codes of all pods."""
        return [process.wait(seconds) for process in self.processes]

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_until(self, happened, seconds: float = 200) -> None:
        deadline = time.monotonic() + seconds
        while not happened():
            assert all(p.poll() is None for p in self.processes) and time.monotonic() < deadline, self.output()
            time.sleep(0.05)

    def torchrun_is_there(self) -> bool:
        children = psutil.Process(self.processes[0].pid).children()
        return any("torchrun" in word for child in children for word in processes.command(child))


def _steps(folder: Path) -> list[int]:
    records = folder / "runs/digits/metrics.jsonl"
    lines = records.read_text().splitlines() if records.exists() else []
    return [record["step"] for record in map(json.loads, lines) if "loss" in record]


@needs_root
@pytest.mark.long
def test_a_pod_that_is_told_to_go_stops_all_and_new_pods_go_on(tmp_path):
    recipe = small_recipe(tmp_path, epochs=3)
    with Pods(tmp_path, 2, recipe) as pods:
        pods.wait_until(lambda: len(_steps(tmp_path)) > 2)
        pods.processes[1].send_signal(signal.SIGTERM)  # which Kubernetes sends to the container's first process alone
        assert pods.codes() == [STOPPED, STOPPED], pods.output()
    steps = _steps(tmp_path)
    assert 2 < len(steps) < 42
    with Pods(tmp_path, 2, recipe) as pods:
        assert pods.codes() == [DONE, DONE], pods.output()
        assert "resuming from" in pods.output()
    assert _steps(tmp_path) == list(range(1, 43))


@needs_root
def test_a_pod_that_waits_for_others_goes_at_once(tmp_path):
    with Pods(tmp_path, 2, small_recipe(tmp_path), started=(1,)) as pods:
        pods.wait_until(pods.torchrun_is_there)
        time.sleep(10)  # torchrun has begun to wait
        pods.processes[0].send_signal(signal.SIGTERM)
        assert pods.codes(20) == [STOPPED], pods.output()


@needs_root
@pytest.mark.parametrize("operator", [False, True], ids=["Job", "PyTorchJob"])
def test_bad_input_ends_every_pod_with_the_code_that_ends_the_job(tmp_path, operator):
    with Pods(tmp_path, 2, "nosuch.yaml", operator=operator) as pods:
        assert pods.codes() == [USAGE, USAGE], pods.output()
        assert "nosuch.yaml" in pods.output()


def test_the_job_knows_the_exit_codes():
    rules = JOB["Job"]["spec"]["podFailurePolicy"]["rules"]
    by_code = {code: rule["action"] for rule in rules for code in rule.get("onExitCodes", {}).get("values", ())}
    assert by_code == POLICY
    assert {rule["onExitCodes"]["containerName"] for rule in rules if "onExitCodes" in rule} == {CONTAINER["name"]}


def test_numbers_and_names_of_the_job_agree():
    job, service = JOB["Job"], JOB["Service"]
    spec, name = job["spec"], job["metadata"]["name"]
    assert {spec["completions"], spec["parallelism"]} == {int(ENVIRONMENT["PET_NNODES"])}
    assert CONTAINER["resources"]["limits"]["nvidia.com/gpu"] == int(ENVIRONMENT["PET_NPROC_PER_NODE"])
    assert service["metadata"]["name"] == POD["subdomain"] and service["spec"]["clusterIP"] == "None"
    assert ENVIRONMENT["MASTER_ADDR"] == f"{name}-0.{POD['subdomain']}"
    assert service["spec"]["selector"].items() <= spec["template"]["metadata"]["labels"].items()


def test_both_kinds_of_job_run_the_same_container():
    replicas = _documents("pytorchjob.yaml")["PyTorchJob"]["spec"]["pytorchReplicaSpecs"]
    claim = _documents("storage.yaml")["PersistentVolumeClaim"]["metadata"]["name"]
    for pod in (POD, *(replica["template"]["spec"] for replica in replicas.values())):
        container = pod["containers"][0]
        assert all(container[key] == CONTAINER[key] for key in ("image", "args", "resources", "volumeMounts"))
        assert pod["volumes"] == POD["volumes"]
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim
        assert pod["terminationGracePeriodSeconds"] == POD["terminationGracePeriodSeconds"]
    assert 1 + replicas["Worker"]["replicas"] == JOB["Job"]["spec"]["completions"]
