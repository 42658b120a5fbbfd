#!/usr/bin/env bash
# Train under Open MPI's mpirun: `launcher/mpi.sh HOSTFILE --ds_config ds_configs/moe.json`, in the repository's folder,
# with its environment active. HOSTFILE has a line `HOST slots=RANKS` per host; the rest goes to train.py. mpirun only
# starts the ranks, they talk over NCCL or gloo.
set -euo pipefail
. launcher/environment.sh

[ -f "${1:-}" ] || { echo "usage: $0 HOSTFILE [argument of train.py]..." >&2; exit 2; }
hostfile=$1
shift

export MASTER_ADDR=${MASTER_ADDR:-$(awk '/^[^#]/ { print $1; exit }' "$hostfile")} # where mpirun puts rank 0
export MASTER_PORT=${MASTER_PORT:-$((10000 + RANDOM % 20000))}
forward=(-x PATH -x MASTER_ADDR -x MASTER_PORT)
for name in $(forwarded); do forward+=(-x "$name"); done # the names alone are on the command line

# By default mpirun ties each rank, with all its threads and loaders, to one core.
exec mpirun --hostfile "$hostfile" --bind-to none --tag-output "${forward[@]}" python -u train.py "$@"
