#!/usr/bin/env bash
# One pod of a run on Kubernetes: `pod.sh [argument of train.py]...`, in the folder of train.py. The manifests beside this
# file call it with PET_NNODES (pods), PET_NPROC_PER_NODE (ranks of a pod), MASTER_ADDR (name of the first pod), POD_IP
# (address of this one) and JOB_COMPLETION_INDEX or RANK (its number, from 0).
#
# Kubernetes signals this shell alone, and torchrun makes 1 of every exit code but 0. So SIGTERM is passed on to the ranks,
# which save in the middle of the epoch, on all pods alike; and the pod ends as its ranks did, by which Kubernetes decides
# what comes next: 0 done, 2 bad input, 85 stopped with a checkpoint on disk, anything else a failure.
set -euo pipefail

STOPPED=85 BAD_INPUT=2 A_DAY=86400

# Runs a command to its end, whatever signals come, and leaves its exit code in $code. SIGTERM calls $1.
run() {
    local again=yes on_term=$1
    shift
    trap 'again=yes; "$on_term"' TERM
    "$@" &
    child=$!
    while [ "$again" ]; do
        again='' code=0
        wait "$child" || code=$?
    done
}

# What Kubernetes sends goes to torchrun, and from there to the ranks.
from_kubernetes() {
    touch "$STATE/stop"
    kill -TERM "$child" || true
}

# torchrun also sends it, to whole sessions, when another pod has ended: ranks that are left know better how to end.
from_torchrun() {
    [ ! -e "$STATE/stop" ] || kill -TERM "$child" || true
}

# What torchrun starts for each rank: training, whose exit code it leaves in a file.
rank() {
    run from_torchrun setsid python -u train.py "$@"
    echo "$code" >"$STATE/rank.$LOCAL_RANK"
    exit "$code"
}

index=${JOB_COMPLETION_INDEX:-$RANK} STATE=$(mktemp -d)
export STATE
export -f run from_torchrun rank
[ "$index" = 0 ] && first=true || first=false
# Pods that have found room wait for the others, which may take long. Nor does torchrun limit how long ranks save, since
# Kubernetes does.
run from_kubernetes torchrun --local_addr "$POD_IP" --shutdown_timeout "$A_DAY" \
    --rdzv_backend c10d --rdzv_endpoint "$MASTER_ADDR:${MASTER_PORT:-29400}" --rdzv_id run \
    --rdzv_conf "is_host=$first,join_timeout=$A_DAY,read_timeout=$A_DAY" \
    --no-python bash -c 'rank "$@"' rank "$@"

ended=$(cat "$STATE"/rank.* 2>/dev/null || true)
if grep -qx "$BAD_INPUT" <<<"$ended"; then
    code=$BAD_INPUT
elif grep -qx "$STOPPED" <<<"$ended"; then
    code=$STOPPED
elif [ -e "$STATE/stop" ] && ! grep -qvxE '(143)?' <<<"$ended"; then
    code=$STOPPED # before training began
elif [ "$(grep -cx 0 <<<"$ended")" = "$PET_NPROC_PER_NODE" ]; then
    code=0 # torchrun may have lost the first pod, which was done earlier
fi
rm -r "$STATE"
echo "pod $index: exit code $code"
exit "$code"
