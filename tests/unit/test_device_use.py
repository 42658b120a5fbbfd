"""GPU memory and MFU in a log record: which peak counts, what an image costs, and nothing on a CPU."""

from types import SimpleNamespace

import pytest
import torch

from sparse_mlp_ds.config.loading import load_recipe
from sparse_mlp_ds.distributed import process_group
from sparse_mlp_ds.models import cost
from sparse_mlp_ds.train.device_use import DeviceUse, peak

RECIPE = load_recipe("digits")


def job(precision="bf16", world=4):
    return SimpleNamespace(recipe=RECIPE, world=world, ds_config=SimpleNamespace(precision=precision))


@pytest.mark.parametrize(
    ("name", "half", "single"),
    [
        ("NVIDIA H200", 989, 67),
        ("NVIDIA H100 80GB HBM3", 989, 67),
        ("NVIDIA H100 PCIe", 756, 51),
        ("NVIDIA A100-SXM4-80GB", 312, 19.5),
        ("NVIDIA A10", 125, 31.2),
        ("NVIDIA L40S", 362, 91.6),
        ("Tesla V100-SXM2-32GB", 125, 15.7),
    ],
)
def test_a_gpu_is_known_by_its_name(name, half, single):
    assert (peak(name, "bf16"), peak(name, "float32")) == (half * 1e12, single * 1e12)


@pytest.mark.parametrize("name", ["NVIDIA GH200 480GB", "NVIDIA A1000", "AMD Instinct MI300X", "emulated GPU"])
def test_an_unknown_gpu_has_no_peak(name):
    assert peak(name, "bf16") is None


def test_a_cpu_has_no_figures():
    assert DeviceUse(job(), "finetune").figures(1000.0) == {}


@pytest.mark.parametrize(("name", "passes"), [("pretrain", 8), ("finetune", 3)])
def test_the_mfu_is_that_of_all_ranks(monkeypatch, name, passes):
    monkeypatch.setattr(process_group, "device", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 3 * 2**30)
    found = DeviceUse(job(), name).figures(1e6)
    expected = 1e6 * passes * 2 * cost.cost(RECIPE.spec).macs / (4 * 312e12)
    assert found == {"gpu/memory_gib": 3.0, "gpu/mfu": pytest.approx(expected)}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU of tomorrow")
    assert DeviceUse(job(), name).figures(1e6) == {"gpu/memory_gib": 3.0}
