"""What is said to a host over ssh, and what its answer, or the lack of one, means."""

import json
import os
import shlex
import sys
from dataclasses import asdict

from sparse_mlp_ds.doctor.facts import MARK, Facts, Request

CONNECT_SECONDS = 5
"""For ssh to connect."""
_NO_FOLDER, _NO_PYTHON, _SSH_FAILED = 101, (126, 127), 255
# What ssh says -> what is wrong, and what mends it.
_SAID = {
    "Could not resolve hostname": "its name does not resolve; correct the hostfile, or add it to DNS or /etc/hosts",
    "REMOTE HOST IDENTIFICATION HAS CHANGED": "its host key is another than the known one; if it was installed anew, "
    "`ssh-keygen -R {name}`",
    "Permission denied": "ssh takes no key there; put yours there (ssh-copy-id {name}): `ssh {name} true` has to work "
    "without a question",
    "Host key verification failed": "its host key is not known; log in once (ssh {name}) and confirm it",
    "Connection refused": "refuses ssh; start its sshd, or give its port in ~/.ssh/config",
    "timed out": "does not answer to ssh within {seconds} s; is it up, and does a firewall let port 22 through?",
    "not responding": "fell silent; is it up, and its network?",
    "No route to host": "cannot be reached, no route to host; is it up, and its network?",
    "Network is unreachable": "cannot be reached, network is unreachable; is this host's network up?",
}


def command(request: Request) -> str:
    """Return what a host's shell is to run: this Python in this folder, with the variables that DeepSpeed passes on."""
    variables = [f"{name}={value}" for name, value in os.environ.items() if name.startswith("PYTHON")]
    words = ["env", *variables, sys.executable, "-m", "sparse_mlp_ds.doctor", json.dumps(asdict(request))]
    return f"cd {shlex.quote(os.getcwd())} || exit {_NO_FOLDER}; exec {shlex.join(words)}"


def parse(output: str) -> Facts:
    """Return the facts in a host's output, in which a login may have printed other things. Raises ValueError."""
    from pydantic import TypeAdapter, ValidationError

    _, mark, line = output.rpartition(MARK)
    if not mark:
        raise ValueError("ended without an answer; look at what its ~/.bashrc, or sshd's ForceCommand, starts")
    try:
        facts = TypeAdapter(Facts).validate_json(line.partition("\n")[0], strict=True)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "no JSON"
        raise ValueError(f"its answer cannot be read ({_plain(where)}); bring it to the same version of this folder")
    texts = [value for value in asdict(facts).values() if isinstance(value, str)]
    if not all(text.isprintable() for text in (*texts, *facts.files, *facts.files.values())):
        raise ValueError("its answer cannot be read (control characters); bring it to the same version of this folder")
    return facts


def why(name: str, code: int, errors: str) -> str:
    """Return why asking a host ended with an exit code, and the fix. errors: what ssh and the host printed."""
    if code == _NO_FOLDER:
        return f"has no folder {os.getcwd()}; mount it there too, or start where all hosts have one"
    if code in _NO_PYTHON:
        return f"has no {sys.executable}; install the same environment there, under the same path"
    if "No module named 'sparse_mlp_ds" in errors or "No module named sparse_mlp_ds" in errors:
        return "this version of sparse_mlp_ds is not there; bring it to the same version of this folder"
    last = _plain((errors.strip().splitlines() or [f"exit code {code}"])[-1])
    if code == _SSH_FAILED:
        for said, text in _SAID.items():
            if said in errors:
                return text.format(name=name, seconds=CONNECT_SECONDS)
        return f"ssh fails: {last}; `ssh {name} true` has to work without a question"
    return f"cannot examine itself: {last}; run `python -m sparse_mlp_ds.doctor` there"


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:200].strip()
