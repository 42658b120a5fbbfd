"""The user's environment variables on every rank.

Through ssh, DeepSpeed passes on few variables, and those on command lines that every user of a host can read. Here the
variables of DECLARED travel over the process group instead, as soon as it is joined. They appear in no command line, no
file and no log.
"""

import os

from sparse_mlp_ds.distributed import comm, deepspeed_command, process_group, processes

DECLARED = ("WANDB_", "NCCL_", "TORCH_NCCL_", "GLOO_", "OMP_", "HF_", "DS_")
"""Prefixes of the variables that are shared. NCCL reads its variables at its first use, which comes later."""
_HOST_ONLY = "GLOO_SOCKET_IFNAME"  # a network interface of rank 0's host means nothing on other hosts


def share() -> None:
    """Give every rank the declared variables of the user's `deepspeed` command, or else those of rank 0. Collective.

    A variable that a host has set itself keeps its value.
    """
    given = comm.gather_objects(_given(), process_group.control_group())
    for name, value in next((variables for variables in given if variables is not None), {}).items():
        os.environ.setdefault(name, value)


def _given() -> dict[str, str] | None:
    """Return the variables of the `deepspeed` command if it runs on this host, else rank 0's own, else None."""
    command = deepspeed_command.find() if process_group.local_rank() == 0 else None
    if command and (variables := processes.variables(command)):
        return _declared(variables)
    return _declared(dict(os.environ)) if process_group.rank() == 0 else None


def _declared(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(DECLARED) and name != _HOST_ONLY}
