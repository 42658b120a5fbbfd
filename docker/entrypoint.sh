#!/bin/sh
# Every container starts here: `COMMAND...` runs it, `sshd [COMMAND...]` lets the job's other nodes in first.
set -eu

# Loader processes hand batches over through /dev/shm, of which Docker gives 64 MiB. What a run needs is known once its
# recipe is read, and train.py refuses a run that does not fit; this is said before anything is loaded. Twice what 8
# loader processes prepare of 128 images in two views of 224 pixels is 2 GiB; the embedded recipe needs next to nothing.
gpus=$(find /dev -maxdepth 1 -name 'nvidia[0-9]*' | wc -l)
wanted=$((gpus ? 2 * gpus : 1))
free=$(($(df --output=avail -k /dev/shm | tail -n 1) / 1024))
if [ "$free" -lt $((wanted * 1024 * 9 / 10)) ]; then
    echo "warning: /dev/shm: $free MiB are free; start the container with --shm-size=${wanted}g" >&2
fi

if [ "${1-}" = sshd ]; then
    shift
    exec "$(dirname "$0")/sshd.sh" "$@"
fi
exec "$@"
