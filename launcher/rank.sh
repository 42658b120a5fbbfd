#!/usr/bin/env bash
# Runs a command as a rank of a job that srun or mpirun has started, under the names that DeepSpeed's launcher gives.
# MASTER_ADDR and MASTER_PORT come from whoever started it. mpirun first: in a Slurm job its ranks have the names of both.
set -euo pipefail

if [ -n "${OMPI_COMM_WORLD_RANK:-}" ]; then
    export RANK=$OMPI_COMM_WORLD_RANK WORLD_SIZE=$OMPI_COMM_WORLD_SIZE
    export LOCAL_RANK=$OMPI_COMM_WORLD_LOCAL_RANK LOCAL_SIZE=$OMPI_COMM_WORLD_LOCAL_SIZE
elif [ -n "${SLURM_STEP_NUM_TASKS:-}" ]; then
    export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_STEP_NUM_TASKS
    export LOCAL_RANK=$SLURM_LOCALID LOCAL_SIZE=$((SLURM_STEP_NUM_TASKS / SLURM_STEP_NUM_NODES))
else
    echo "error: $0: neither srun nor mpirun started this" >&2
    exit 2
fi
exec "$@"
