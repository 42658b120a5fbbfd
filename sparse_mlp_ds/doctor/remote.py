"""The command that a host is given over ssh, and what its answer means, or the lack of one."""

import json
import os
import shlex
import sys
from dataclasses import asdict
from typing import Any, TypeVar

from sparse_mlp_ds.doctor.facts import MARK, HostFacts

T = TypeVar("T")
CONNECT_SECONDS = 5
"""Longest time for ssh to connect."""
MODULE = __package__
"""Module that a host runs to examine itself."""
_NO_FOLDER, _NO_PYTHON, _SSH_FAILED = 101, (126, 127), 255  # exit codes
_SSH_ERRORS = {
    # text in the output of ssh -> what is wrong, and what to do
    "Could not resolve hostname": "its name does not resolve; correct the hostfile, or add it to DNS or /etc/hosts",
    "REMOTE HOST IDENTIFICATION HAS CHANGED": "its host key is not the known one; if the host was installed anew, "
    "`ssh-keygen -R {name}`",
    "Permission denied": "ssh takes no key there; put yours there (ssh-copy-id {name}): `ssh {name} true` has to work "
    "without a question",
    "Host key verification failed": "its host key is not known; log in once (ssh {name}) and confirm it",
    "Connection refused": "refuses ssh; start its sshd, or give its port in ~/.ssh/config",
    "timed out": "does not answer to ssh within {seconds} s; is it up, and does a firewall let port 22 through?",
    "not responding": "stopped answering; is it up, and its network?",
    "No route to host": "cannot be reached, no route to host; is it up, and its network?",
    "Network is unreachable": "cannot be reached, network is unreachable; is this host's network up?",
}


def command(module: str, request: Any) -> str:
    """Return the command for a host's shell: this Python in this folder, with the variables that DeepSpeed passes.

    module: what Python runs. request: a dataclass, which the module gets as JSON.
    """
    variables = [f"{name}={value}" for name, value in os.environ.items() if name.startswith("PYTHON")]
    words = ["env", *variables, sys.executable, "-m", module, json.dumps(asdict(request))]
    return f"cd {shlex.quote(os.getcwd())} || exit {_NO_FOLDER}; exec {shlex.join(words)}"


def parse(output: str) -> HostFacts:
    """Return the facts in a host's output, into which a login may have printed as well.

    Raises ValueError whose message says what is wrong with the output, with the fix.
    """
    facts = answer(output, HostFacts)
    texts = [value for value in asdict(facts).values() if isinstance(value, str)]
    if not all(text.isprintable() for text in (*texts, *facts.files, *facts.files.values())):
        raise ValueError("its answer cannot be read (control characters); bring it to the same version of this folder")
    return facts


def answer(output: str, kind: type[T]) -> T:
    """Return the dataclass in a host's output, behind MARK. Raises ValueError like `parse`."""
    from pydantic import TypeAdapter, ValidationError

    _, mark, line = output.rpartition(MARK)
    if not mark:
        raise ValueError("ended without an answer; look at what its ~/.bashrc, or sshd's ForceCommand, starts")
    try:
        return TypeAdapter(kind).validate_json(line.partition("\n")[0], strict=True)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "no JSON"
        raise ValueError(f"its answer cannot be read ({_plain(where)}); bring it to the same version of this folder")


def why(name: str, code: int, errors: str) -> str:
    """Return why a host did not answer, with the fix.

    name: of the host. code: exit code of ssh. errors: what ssh and the host printed to standard error.
    """
    if code == _NO_FOLDER:
        return f"has no folder {os.getcwd()}; mount it there too, or start where all hosts have one"
    if code in _NO_PYTHON:
        return f"has no {sys.executable}; install the same environment there, under the same path"
    if "No module named 'sparse_mlp_ds" in errors or "No module named sparse_mlp_ds" in errors:
        return "this version of sparse_mlp_ds is not there; bring it to the same version of this folder"
    last = _plain((errors.strip().splitlines() or [f"exit code {code}"])[-1])
    if code == _SSH_FAILED:
        for pattern, text in _SSH_ERRORS.items():
            if pattern in errors:
                return text.format(name=name, seconds=CONNECT_SECONDS)
        return f"ssh fails: {last}; `ssh {name} true` has to work without a question"
    return f"cannot answer: {last}; run `python -m {MODULE}` there"


def _plain(text: str) -> str:
    """Return the text without control characters, shortened."""
    return "".join(c if c.isprintable() else " " for c in text)[:200].strip()
