# Which variables of this shell ranks on other hosts should have too; ssh.sh and mpi.sh source it.

# Prints their names, one a line.
forwarded() {
    compgen -e | grep -E '^(CUDA|DS|GLOO|HF|MKL|NCCL|OMP|PYTHON|TORCH|UCX|WANDB)_?[A-Z0-9_]*$' || true
}

# Keeps the names of secrets. They do not belong on a command line, where every user of a host can read them.
secrets() { grep -E '(KEY|TOKEN|SECRET|PASSWORD)' || true; }
not_secrets() { grep -vE '(KEY|TOKEN|SECRET|PASSWORD)' || true; }
