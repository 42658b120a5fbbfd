"""The user's environment on every rank.

Through ssh, DeepSpeed passes few variables on, and those on command lines that every user of a host can read. Here the
declared ones travel over the process group instead, right after it is joined: to no command line, no file and no log.
"""

import os

import psutil

from sparse_mlp_ds import dist, front_end

DECLARED = ("WANDB_", "NCCL_", "TORCH_NCCL_", "GLOO_", "OMP_", "HF_", "DS_")
"""What names start with. NCCL reads its own when it is first used, which comes later."""


def share() -> None:
    """Give every rank the declared variables of the user's `deepspeed` command, or of rank 0. Collective.

    What a host has set for itself stays.
    """
    told = dist.gather_objects(_given(), dist.control_group())
    for name, value in next((one for one in told if one is not None), {}).items():
        os.environ.setdefault(name, value)


def _given() -> dict[str, str] | None:
    """Return the command's declared variables if it runs on this host, rank 0's own if not, None on other ranks."""
    if dist.local_rank() == 0 and (command := front_end.find()):
        try:
            return _declared(command.environ())
        except psutil.Error:
            pass
    return _declared(dict(os.environ)) if dist.rank() == 0 else None


def _declared(environment: dict[str, str]) -> dict[str, str]:
    own = "GLOO_SOCKET_IFNAME"  # an interface of rank 0's host means nothing elsewhere
    return {name: value for name, value in environment.items() if name.startswith(DECLARED) and name != own}
