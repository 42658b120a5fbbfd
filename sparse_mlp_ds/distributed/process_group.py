"""This process's rank and device, and how it joins and leaves the process group of the run.

Rank and world size come from the environment, where `discovery.announce` has put them; without them the process is a
world of one rank.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import psutil
import torch
import torch.distributed as torch_dist
from torch._C._distributed_c10d import HashStore
from torch.distributed import distributed_c10d

from sparse_mlp_ds.distributed import consistency, host, network, rendezvous, threads
from sparse_mlp_ds.errors import UserError


def world_size() -> int:
    """Return the number of ranks of this run; works before the process group is joined."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rank() -> int:
    """Return the rank of this process; works before the process group is joined."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """Return the number of this rank among the ranks of its host, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_world_size() -> int:
    """Return the number of this run's ranks on this host."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", world_size())))


def on_gpu() -> bool:
    """Return whether the ranks of this host train on GPUs."""
    return torch.cuda.is_available()


def device() -> torch.device:
    """Return the device that this rank trains on: the host's GPU with this rank's number, or the only visible GPU.

    Under Slurm's `--gpus-per-task=1`, or with CUDA_VISIBLE_DEVICES set for each rank, a rank sees only its own GPU.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank() if torch.cuda.device_count() > 1 else 0)


def check_devices() -> None:
    """Raise UserError if this host shows several GPUs but fewer than it has ranks.

    Ranks that see one GPU each are compared later, in the pre-flight.
    """
    visible = torch.cuda.device_count()
    if 1 < visible < local_world_size():
        raise UserError(f"{socket.gethostname()}: {consistency.few_devices(local_world_size(), visible)}")


def check_precision(precision: str) -> None:
    """Raise UserError if this rank's device does not train in a precision: float32, bf16 or fp16."""
    if precision == "float32":
        return
    if on_gpu():
        name, needed = torch.cuda.get_device_name(device()), (8, 0) if precision == "bf16" else (7, 0)
        able = torch.cuda.get_device_capability(device()) >= needed
        advice = "use fp16" if precision == "bf16" else "use float32"
    else:
        name, advice = "cpu", "use bf16"
        able = precision == "bf16" or torch.ops.mkldnn._is_mkldnn_fp16_supported()
    if not able:
        where = f"--ds_config: {precision}.enabled: this machine's {name}"
        raise UserError(f"{where} does not train in {precision}; {advice}")


def device_memory() -> int:
    """Return the bytes of memory that this rank may use: its GPU's, or its share of what this host lets it have."""
    if on_gpu():
        return torch.cuda.get_device_properties(device()).total_memory
    return host.memory() // local_world_size()


@contextmanager
def join(timeout_seconds: float = 600) -> Iterator[None]:
    """Join the run's process group (NCCL on GPUs, otherwise gloo), and leave it at the end of the `with` block.

    timeout_seconds: limit of every collective, in this group and in groups made later.
    Raises UserError if ranks are missing or the master cannot be reached, RunError if rank 0 has ended.
    """
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(network.free_port())
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    else:
        host.keep_freed_memory()
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    _choose_interface(os.environ["MASTER_ADDR"])  # also beside NCCL, where the control groups use gloo
    timeout = timedelta(seconds=timeout_seconds)
    for default in ("default_pg_timeout", "default_pg_nccl_timeout"):
        # Default timeout of groups created without one, such as DeepSpeed's; torch's own default is 30 minutes.
        setattr(distributed_c10d, default, timeout)
    # A single rank has nobody to meet, so nothing listens and no address has to be right.
    store = rendezvous.join(rank(), world_size()) if world_size() > 1 else HashStore()
    store.set_timeout(timeout)  # new groups meet in the store, which so far had the timeout of joining
    torch_dist.init_process_group(backend, store=store, rank=rank(), world_size=world_size(), timeout=timeout)
    if not torch.cuda.is_available():
        threads.share(store, local_rank(), local_world_size())
    try:
        yield
    finally:
        torch_dist.destroy_process_group()


def control_group() -> torch_dist.ProcessGroup | None:
    """Return a new gloo group of all ranks, for messages that must not mix with those of training. Collective.

    Returns None for a single rank. Messages of the group are in host memory, so a GPU never waits for them.
    """
    if not torch_dist.is_initialized() or torch_dist.get_world_size() == 1:
        return None
    return torch_dist.new_group(backend="gloo")


def _choose_interface(master: str) -> None:
    """Let gloo use the network interface that leads to the master, unless the user has chosen one.

    By default gloo takes the address of the host's name, which Debian sets to 127.0.1.1, which no other host reaches.
    On the master's host, the master's name may lead there too; with ranks on several hosts, that host then takes the
    interface of its default route.
    """
    try:
        own = network.address_towards(master)
    except OSError as error:
        where = f"MASTER_ADDR {master}: does not resolve, or no route leads there, from {socket.gethostname()}"
        raise UserError(f"{where} ({error.strerror or error}); correct it") from None
    if network.is_loopback(own) and local_world_size() < world_size():
        own = network.own_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address.partition("%")[0] == own.partition("%")[0] for address in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
