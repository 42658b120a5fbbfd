#!/usr/bin/env bash
# Train on hosts reached over ssh: `launcher/ssh.sh HOSTFILE --ds_config ds_configs/moe.json`, on one of them, in the
# repository's folder, with its environment active. HOSTFILE has a line `HOST slots=RANKS` per host; the rest goes to
# train.py. DeepSpeed's own launcher does the work; this gives it what it would leave out without a word: the environment,
# and an end if a host of the list is not part of the job.
set -euo pipefail
. launcher/environment.sh

[ -f "${1:-}" ] || { echo "usage: $0 HOSTFILE [argument of train.py]..." >&2; exit 2; }
hostfile=$1
shift
hosts=$(grep -cE '^[^#[:space:]]+[[:space:]]+slots=[1-9]' "$hostfile")

# A file that DeepSpeed reads, as its values end up on pdsh's command line: the secrets stay here.
DS_ENV_FILE=$(mktemp --tmpdir "environment-XXXXXX")
trap 'rm -f "$DS_ENV_FILE"' EXIT
for name in $(forwarded | not_secrets); do echo "$name=${!name}"; done >"$DS_ENV_FILE"
[ -z "$(forwarded | secrets)" ] ||
    echo "not forwarded, being secrets: $(forwarded | secrets | xargs); other hosts need ~/.netrc or the like" >&2
export DS_ENV_FILE

code=0
deepspeed --log_level warning --hostfile "$hostfile" --num_nodes "$hosts" --master_port "${MASTER_PORT:-29500}" train.py "$@" || code=$?
[ "$code" != 85 ] || echo "stopped on request; start again with the same command"
exit "$code"
