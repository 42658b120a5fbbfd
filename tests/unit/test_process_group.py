"""Which GPU is a rank's own, as told by what torch sees; no GPU is needed for that."""

import pytest
import torch

from sparse_mlp_ds.distributed import process_group
from sparse_mlp_ds.errors import UserError


@pytest.fixture
def host(monkeypatch):
    """Return a function that makes this process one of several ranks of a host that shows it some GPUs."""

    def make(local_rank, ranks, gpus):
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)

    return make


@pytest.mark.parametrize(
    "local_rank, ranks, gpus, expected",
    [(0, 2, 0, "cpu"), (3, 4, 8, "cuda:3"), (3, 4, 1, "cuda:0"), (0, 1, 1, "cuda:0")],
)
def test_a_rank_takes_the_gpu_of_its_number_or_the_only_one(host, local_rank, ranks, gpus, expected):
    host(local_rank, ranks, gpus)
    assert str(process_group.device()) == expected
    process_group.check_devices()


@pytest.mark.parametrize(
    "precision, capability, said",
    [
        ("bf16", (8, 0), None),
        ("bf16", (7, 5), "bf16.enabled: this machine's Tesla T4 does not train in bf16; use fp16"),
        ("fp16", (7, 5), None),
        ("fp16", (6, 1), "fp16.enabled: this machine's Tesla T4 does not train in fp16; use float32"),
        ("float32", (3, 5), None),
    ],
)
def test_a_precision_that_a_gpu_lacks_is_said_before_any_rank_waits(host, monkeypatch, precision, capability, said):
    host(0, 1, 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    if said is None:
        process_group.check_precision(precision)
        return
    with pytest.raises(UserError, match=said):
        process_group.check_precision(precision)


def test_a_cpu_trains_in_bf16_and_in_fp16_where_torch_has_its_kernels():
    process_group.check_precision("bf16")
    if torch.ops.mkldnn._is_mkldnn_fp16_supported():
        process_group.check_precision("fp16")
        return
    with pytest.raises(UserError, match=r"fp16\.enabled: this machine's cpu does not train in fp16; use bf16"):
        process_group.check_precision("fp16")


def test_a_rank_on_a_cpu_has_its_share_of_the_hosts_memory(host):
    host(0, 1, 0)
    whole = process_group.device_memory()
    host(0, 4, 0)
    assert 0 < process_group.device_memory() == whole // 4


def test_fewer_gpus_than_ranks_are_said_before_any_rank_waits(host):
    host(0, 4, 2)
    with pytest.raises(UserError, match="4 ranks but 2 visible devices; lower its slots"):
        process_group.check_devices()
