"""From what the hosts say of themselves to what is wrong with them: nothing is asked or read here."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sparse_mlp_ds import alike
from sparse_mlp_ds.doctor.ask import Answer
from sparse_mlp_ds.doctor.facts import ABSENT, Facts

GIB = 2**30
ROOM = GIB
"""Bytes of /dev/shm without which no loader works; Docker gives 64 MiB."""
FREE = GIB
"""Bytes on the disk below which a warning is due; what a checkpoint takes the pre-flight knows."""
OPEN_FILES = 4096


@dataclass(frozen=True)
class Findings:
    """One line each, with the fix; hosts of which the same is to be said share one."""

    problems: list[str]
    """What ends a run, or keeps it from starting."""
    warnings: list[str]


def find(answers: Sequence[Answer], asking: str, files: Mapping[str, str], port: int) -> Findings:
    """Return what is wrong.

    asking: what the host that asked calls itself. files: what to do, by file, where it is not the same everywhere.
    port: on which rank 0, on the first host, would listen.
    """
    facts = {answer.host.name: answer.facts for answer in answers if answer.facts}
    problems = [(answer.host.name, answer.error) for answer in answers if not answer.facts]
    warnings: list[tuple[str, str]] = []
    for answer in answers:
        if answer.facts:
            problems += ((answer.host.name, text) for text in _problems(answer.facts, answer.host.slots))
            warnings += ((answer.host.name, text) for text in _warnings(answer.facts, answer.host.slots))
    first = answers[0]
    if first.facts and first.facts.port_taken:
        warnings.append(
            (first.host.name, f"port {port} is taken, where rank 0 is to listen; give another with --master_port")
        )
    takes_part = any(one.host == asking for one in facts.values())
    for name, one in facts.items():
        if one.call_error:
            (problems if takes_part else warnings).append((name, _unreachable(one, asking)))
    return Findings(
        [*_joined(problems), *_several_names(facts), *_differences(facts, files), *_clocks(answers)], _joined(warnings)
    )


def _problems(facts: Facts, slots: int | None) -> Iterator[str]:
    if facts.torch_error:
        yield f"torch cannot be imported ({facts.torch_error}); install requirements.txt"
    if missing := _missing(facts):
        yield f"without {', '.join(missing)}; install requirements.txt"
    if slots and 0 < facts.devices < slots:
        yield alike.few_devices(slots, facts.devices)
    if facts.shared_memory is not None and facts.shared_memory < ROOM:
        yield _more_shared_memory(facts)
    if facts.marker_seen is False:
        yield "its folder of this name is another one; mount the shared one there, or runs/ in it"
    if not facts.writable:
        yield "the folder of the runs cannot be written; make it yours, or mount it for writing"


def _warnings(facts: Facts, slots: int | None) -> Iterator[str]:
    if facts.blind:
        yield "there are devices, but torch sees none; look at nvidia-smi and CUDA_VISIBLE_DEVICES"
    if slots and not facts.devices and slots > facts.cores:
        yield f"{slots} ranks on {facts.cores} cores take turns; lower its slots"
    if facts.shared_memory is not None and ROOM <= facts.shared_memory < _room(facts):
        yield _more_shared_memory(facts)
    if facts.disk < FREE:
        yield f"{facts.disk / 2**20:.0f} MiB are free in the folder of the runs; make room for checkpoints"
    if facts.open_files is not None and facts.open_files < OPEN_FILES:
        yield f"a process may open {facts.open_files} files; raise it (ulimit -n 65536, or limits.conf)"


def _more_shared_memory(facts: Facts) -> str:
    room = _room(facts) // GIB
    return (
        f"/dev/shm holds {facts.shared_memory / 2**20:.0f} MiB, loaders hand batches over there; start its container "
        f"with --shm-size={room}g (no container: mount -o remount,size={room}g /dev/shm)"
    )


def _room(facts: Facts) -> int:
    """Return what /dev/shm should have: 2 GiB per device, 1 GiB without, as the images ask for."""
    return 2 * GIB * facts.devices or ROOM


def _missing(facts: Facts) -> list[str]:
    items = (item.split(" ", 1) for item in facts.packages.split(", "))
    return [item[0] for item in items if item[1:] == [alike.MISSING]]


def _unreachable(facts: Facts, asking: str) -> str:
    fix = "let the firewall pass TCP between the hosts on all ports"
    return f"cannot reach {asking} at {facts.caller} ({facts.call_error}); {fix}"


def _several_names(facts: Mapping[str, Facts]) -> Iterator[str]:
    names: dict[str, list[str]] = {}
    for name, one in facts.items():
        names.setdefault(one.host, []).append(name)
    for own, several in names.items():
        if len(several) > 1:
            yield f"{', '.join(several)}: all call themselves {own}; give each host one line, and a name of its own"


def _differences(facts: Mapping[str, Facts], files: Mapping[str, str]) -> Iterator[str]:
    for what in ("python", "packages", "code", "device"):
        # a missing package has been named already
        values = [(n, getattr(one, what)) for n, one in facts.items() if what != "packages" or not _missing(one)]
        yield from alike.differences(what, values, alike.FIXES[what])
    for path, fix in files.items():
        values = [(name, one.files.get(path, ABSENT)) for name, one in facts.items()]
        if values and all(value == ABSENT for _, value in values):
            yield f"{path}: on none of the hosts; {fix}"
        yield from alike.differences(path, values, fix)


def _clocks(answers: Sequence[Answer]) -> list[str]:
    found = [answer for answer in answers if answer.facts]
    ahead = {answer.host.name: answer.ahead for answer in found}
    unsure = {answer.host.name: answer.unsure for answer in found}
    return alike.clocks(ahead, unsure, votes=[0.0])  # this host's own


def _joined(found: Sequence[tuple[str, str]]) -> list[str]:
    """Return one line per text, with all the hosts that it is about."""
    hosts_of: dict[str, list[str]] = {}
    for host, text in found:
        hosts_of.setdefault(text, []).append(host)
    return [f"{', '.join(hosts)}: {text}" for text, hosts in hosts_of.items()]
