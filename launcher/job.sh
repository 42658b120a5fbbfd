# Runs one training inside a Slurm job and puts the job back into the queue until it is done; the *.sbatch files source it
# in the repository's folder and call `train`.
#
# A stop, by the time limit or by preemption, reaches this shell as USR1 or TERM. It becomes the file RUN/stop, which the
# trainer looks for: it saves in the middle of an epoch and exits with 85, on all nodes alike. Nothing depends on what a
# signal does to the processes in between.

STOPPED=85 BAD_INPUT=2
say() { echo "$(date '+%F %T') job $SLURM_JOB_ID: $*"; }

# The step of the newest checkpoint of the run folder, 0 without one.
newest_step() {
    local manifest step newest=0
    for manifest in "$OUT"/checkpoints/step_*/manifest.json; do
        [ -e "$manifest" ] || continue
        step=${manifest%/manifest.json} step=${step##*/step_}
        case $step in *[!0-9]*) continue ;; esac # step_3_best or step_3.bak is the user's
        [ "$step" -le "$newest" ] || newest=$step
    done
    echo "$newest"
}

# Counts, in RUN/restarts, the starts from the same step; what an earlier job counted is no concern of a new one.
count_start() {
    local step=none starts=0
    [ "${SLURM_RESTART_COUNT:-0}" = 0 ] || read -r step starts 2>/dev/null <"$OUT/restarts" || true
    from=$(newest_step)
    [ "$step" = "$from" ] || starts=0
    restarts_in_vain=$starts
    echo "$from $((starts + 1))" >"$OUT/restarts"
}

# Ends the job if $1 restarts or more have been in vain.
end_if_over() {
    [ "$restarts_in_vain" -ge "$1" ] && [ "$(newest_step)" = "$from" ] || return 0
    say "ends: $restarts_in_vain restarts brought no checkpoint after step $from (MAX_RESTARTS=$MAX_RESTARTS)." \
        "The reason is in $OUT; sbatch starts it again."
    exit 1
}

# Puts this job back into the queue, unless somebody has cancelled it or has put it there already.
requeue() {
    # Without the task, the number of an array's last task means the whole array.
    local job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
    job=${job:-$SLURM_JOB_ID}
    [ "$(squeue --noheader --jobs="$job" --format=%T)" = RUNNING ] || return 0
    [ "$code" = "$STOPPED" ] || say "WARNING: that was no stop; back into the queue all the same"
    scontrol requeue "$job"
    sleep 60 # Slurm ends this shell now
}

# Runs "$@" until it ends, whatever signals come.
run_to_end() {
    local signalled=yes
    code=0
    trap 'signalled=yes; say "asked to stop"; touch "$OUT/stop"' USR1 TERM
    "$@" &
    while [ "$signalled" ]; do
        signalled=
        code=0
        wait $! || code=$?
    done
    trap - USR1 TERM
}

# Runs "$@" in the run folder $OUT, from wherever an earlier start of this job got to.
restartable() {
    mkdir -p "$OUT"
    rm -f "$OUT/stop"
    count_start
    end_if_over $((MAX_RESTARTS + 1)) # those that Slurm made after the death of a node are counted here
    say "on $SLURM_JOB_NODELIST, $OUT, from step $from"
    run_to_end "$@"
    rm -f "$OUT/stop"
    say "exit code $code after step $(newest_step)"
    [ "$code" != 0 ] && [ "$code" != "$BAD_INPUT" ] || exit "$code"
    end_if_over "$MAX_RESTARTS"
    requeue
    exit "$code"
}

# Trains on all nodes of the job, one task per rank; "$@" goes to train.py.
train() {
    # A restart goes on, whatever the first start was told to do with an earlier run.
    [ "${SLURM_RESTART_COUNT:-0}" = 0 ] || set -- "$@" --resume auto

    # Slurm runs this shell on the first node, where rank 0 will be. Jobs that share it have other numbers.
    export MASTER_ADDR=$SLURMD_NODENAME MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
    while (: <"/dev/tcp/$MASTER_ADDR/$MASTER_PORT") 2>/dev/null; do MASTER_PORT=$((MASTER_PORT + 1)); done

    mkdir -p "$OUT/logs"
    # srun does not take this over from sbatch.
    [ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
    # --wait: once a rank has ended the others have a minute. All that stop or finish do so within seconds, while those
    # whose peer is dead would wait for it as long as train.timeout_seconds.
    # shellcheck disable=SC2086 # the container's command is words
    restartable srun --wait=60 --label --open-mode=append --output="$OUT/logs/%N.log" \
        ${CONTAINER:-} python -u train.py --out "$OUT" "$@"
}

# Runs what an array's task number means of the sweep $1, whose table is in $2; the rest goes to `sparse-mlp-ds sweep`.
sweep() {
    local command=("sparse-mlp-ds" sweep "$1" --out "$2" "${@:3}")
    # shellcheck disable=SC2206
    command=(${CONTAINER:-} "${command[@]}")
    OUT=$2/$("${command[@]}" --list | awk -v task="$SLURM_ARRAY_TASK_ID" '$1 == task { print $NF }')
    restartable "${command[@]}" --only "$SLURM_ARRAY_TASK_ID"
}
