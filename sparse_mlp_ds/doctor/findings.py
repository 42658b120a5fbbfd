"""What is wrong with the hosts, concluded from their answers alone: nothing is asked or read here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sparse_mlp_ds.distributed import consistency
from sparse_mlp_ds.doctor.ask import Answer
from sparse_mlp_ds.doctor.facts import ABSENT, HostFacts

GIB = 2**30
LEAST_SHARED_MEMORY = GIB
"""Bytes of /dev/shm below which loader processes cannot hand over batches; Docker's default is 64 MiB."""
LEAST_FREE_DISK = GIB
"""Free bytes in the folder of the runs below which a warning is due; the pre-flight knows a checkpoint's real size."""
LEAST_OPEN_FILES = 4096
"""Number of files that a process may have open, below which a warning is due."""


@dataclass(frozen=True)
class Findings:
    """Problems and warnings, one line each, with the fix; hosts with the same problem share a line."""

    problems: list[str]
    """What ends a run, or keeps it from starting."""
    warnings: list[str]
    """What may end a run, or slow it down."""


def find(answers: Sequence[Answer], asking: str, files: Mapping[str, str], port: int) -> Findings:
    """Return what is wrong with the hosts.

    Args:
        answers: What the hosts answered, in the order of the hostfile.
        asking: Name that the host which asked calls itself.
        files: Files that must be the same on all hosts; by path, what to do about a difference.
        port: Port at which rank 0 would listen, on the first host.
    """
    answered = [(answer.host.name, answer.facts, answer.host.slots) for answer in answers if answer.facts]
    facts = {name: host_facts for name, host_facts, _ in answered}
    problems = [(answer.host.name, answer.error) for answer in answers if not answer.facts]
    warnings: list[tuple[str, str]] = []
    for name, host_facts, slots in answered:
        problems += ((name, text) for text in _problems(host_facts, slots))
        warnings += ((name, text) for text in _warnings(host_facts, slots))
    first = answers[0]
    if first.facts and first.facts.port_taken:
        warnings.append(
            (first.host.name, f"port {port} is taken, where rank 0 would listen; give a free one with --master_port")
        )
    takes_part = any(host_facts.host == asking for host_facts in facts.values())
    for name, host_facts in facts.items():
        if host_facts.call_error:
            (problems if takes_part else warnings).append((name, _unreachable(host_facts, asking)))
    return Findings(
        [*_joined(problems), *_several_names(facts), *_differences(facts, files), *_clocks(answers)], _joined(warnings)
    )


def _problems(facts: HostFacts, slots: int | None) -> Iterator[str]:
    """Yield what is wrong with one host. slots: number of ranks that it is to run."""
    if facts.torch_error:
        yield f"torch cannot be imported ({facts.torch_error}); install requirements.txt"
    if missing := _missing(facts):
        yield f"without {', '.join(missing)}; install requirements.txt"
    if slots and 0 < facts.devices < slots:
        yield consistency.few_devices(slots, facts.devices)
    if facts.shared_memory is not None and facts.shared_memory < LEAST_SHARED_MEMORY:
        yield _more_shared_memory(facts.shared_memory, facts.devices)
    if facts.marker_seen is False:
        yield "its folder of this name is not the shared one; mount the shared one there, or runs/ in it"
    if not facts.writable:
        yield "the folder of the runs cannot be written to; become its owner, or mount it for writing"


def _warnings(facts: HostFacts, slots: int | None) -> Iterator[str]:
    """Yield what may go wrong on one host. slots: number of ranks that it is to run."""
    if facts.blind:
        yield "there are devices, but torch sees none; look at nvidia-smi and CUDA_VISIBLE_DEVICES"
    if slots and not facts.devices and slots > facts.cores:
        yield f"{slots} ranks on {facts.cores} cores take turns; lower its slots"
    enough = _enough_shared_memory(facts.devices)
    if facts.shared_memory is not None and LEAST_SHARED_MEMORY <= facts.shared_memory < enough:
        yield _more_shared_memory(facts.shared_memory, facts.devices)
    if facts.disk < LEAST_FREE_DISK:
        yield f"{facts.disk / 2**20:.0f} MiB are free in the folder of the runs; make room for checkpoints"
    if facts.open_files is not None and facts.open_files < LEAST_OPEN_FILES:
        yield f"a process may open {facts.open_files} files; raise the limit (ulimit -n 65536, or limits.conf)"


def _more_shared_memory(size: int, devices: int) -> str:
    """Return the message about a /dev/shm of `size` bytes on a host with a number of devices."""
    enough = _enough_shared_memory(devices) // GIB
    return (
        f"/dev/shm holds {size / 2**20:.0f} MiB, through which loaders hand over batches; start its container with "
        f"--shm-size={enough}g (no container: mount -o remount,size={enough}g /dev/shm)"
    )


def _enough_shared_memory(devices: int) -> int:
    """Return the bytes that /dev/shm should have: 2 GiB per device, 1 GiB on a host without devices."""
    return 2 * GIB * devices or LEAST_SHARED_MEMORY


def _missing(facts: HostFacts) -> list[str]:
    """Return the names of packages that a host lacks."""
    items = (item.split(" ", 1) for item in facts.packages.split(", "))
    return [item[0] for item in items if item[1:] == [consistency.MISSING]]


def _unreachable(facts: HostFacts, asking: str) -> str:
    fix = "let the firewall pass TCP between the hosts on all ports"
    return f"cannot reach {asking} at {facts.caller} ({facts.call_error}); {fix}"


def _several_names(facts: Mapping[str, HostFacts]) -> Iterator[str]:
    """Yield a line for each host that the hostfile has under several names."""
    names: dict[str, list[str]] = {}
    for name, host_facts in facts.items():
        names.setdefault(host_facts.host, []).append(name)
    for own, several in names.items():
        if len(several) > 1:
            yield f"{', '.join(several)}: all call themselves {own}; give each host one line, and a name of its own"


def _differences(facts: Mapping[str, HostFacts], files: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each property and file that is not the same on all hosts; arguments as in `find`."""
    for what in ("python", "packages", "code", "device"):
        # A host that lacks a package is left out: that has its own line.
        compared = {name: host for name, host in facts.items() if what != "packages" or not _missing(host)}
        values = [(name, getattr(host, what)) for name, host in compared.items()]
        yield from consistency.differences(what, values, consistency.FIXES[what])
    for path, fix in files.items():
        values = [(name, host.files.get(path, ABSENT)) for name, host in facts.items()]
        if values and all(value == ABSENT for _, value in values):
            yield f"{path}: on none of the hosts; {fix}"
        yield from consistency.differences(path, values, fix)


def _clocks(answers: Sequence[Answer]) -> list[str]:
    answered = [answer for answer in answers if answer.facts]
    ahead = {answer.host.name: answer.ahead for answer in answered}
    uncertainty = {answer.host.name: answer.unsure for answer in answered}
    return consistency.clocks(ahead, uncertainty, votes=[0.0])  # the vote of this host's own clock


def _joined(lines: Sequence[tuple[str, str]]) -> list[str]:
    """Return one line per text, with all the hosts that it is about. lines: pairs of host and text."""
    hosts_of: dict[str, list[str]] = {}
    for host, text in lines:
        hosts_of.setdefault(text, []).append(host)
    return [f"{', '.join(hosts)}: {text}" for text, hosts in hosts_of.items()]
