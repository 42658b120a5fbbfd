#!/bin/sh
# sshd.sh [COMMAND...]: an sshd on port 2222 for the image's own user, then the command; without one, the sshd alone.
set -eu
umask 077

# A user's keys are mounted; all else is this container's own and as old as it.
keys=$HOME/.ssh/authorized_keys
if ! [ -r "$keys" ]; then
    echo "error: $keys: cannot be read; mount there the public key that the job's nodes log in with" >&2
    exit 2
fi
folder=$HOME/.sshd
rm -rf "$folder"
mkdir "$folder"
# A copy, because sshd refuses a file that another user may write, as a mounted one may be.
cp "$keys" "$folder/authorized_keys"
ssh-keygen -q -t ed25519 -N '' -f "$folder/host_key"

# A session gets its environment from sshd's configuration alone, and DeepSpeed's launcher forwards little. So what was
# given to the container for training goes in here, by name: not RANK and its like, which belong to a launch. It stays
# in a file that only this user reads, off every command line and log.
names='PATH|LD_LIBRARY_PATH|LANG|LC_ALL|TZ|TMPDIR|SSL_CERT_FILE|(HTTPS?|NO|ALL|https?|no|all)_(PROXY|proxy)'
kinds='AWS|CUDA|DS|FI|GLOO|GOOGLE|HF|MKL|NCCL|NVIDIA|OMP|PYTHON|PYTORCH|TORCH|UCX|WANDB'
environment=$(env --null | grep --null-data --extended-regexp "^($names|($kinds)[A-Z0-9_]*)=" |
    tr '\n\0' ' \n' | sed 's/[\\"]/\\&/g; s/.*/ "&"/' | tr -d '\n')

cat >"$folder/config" <<END
Port 2222
HostKey $folder/host_key
AuthorizedKeysFile $folder/authorized_keys
AuthenticationMethods publickey
UsePAM no
PidFile none
SetEnv$environment
END

if [ $# = 0 ]; then
    exec /usr/sbin/sshd -D -e -f "$folder/config"
fi
/usr/sbin/sshd -E "$folder/log" -f "$folder/config"
exec "$@"
