"""What `doctor --network` concludes from measurements; that it measures is tested on four hosts."""

from itertools import combinations

import pytest

from sparse_mlp_ds.cli import main
from sparse_mlp_ds.distributed.network_model import Collective
from sparse_mlp_ds.doctor.ask import Answer
from sparse_mlp_ds.doctor.hostfile import Host
from sparse_mlp_ds.doctor.measure import _rounds
from sparse_mlp_ds.doctor.network import Measured, Pair, Timing, assumed, show, slow_hosts


def _measured(hosts: int, slow: int | None, trip: float = 1.0, rate: float = 1.0) -> Measured:
    """All pairs have 0.1 ms and 100 MB/s, those of a slow host multiples of it."""
    pairs = [
        Pair(a, b, 1e-4 * (trip if slow in (a, b) else 1), 1e8 * (rate if slow in (a, b) else 1))
        for a, b in combinations(range(hosts), 2)
    ]
    return Measured(pairs, [Timing(Collective("rows", "all_to_all", hosts, 1, 1000), 2e-4)])


@pytest.mark.parametrize("hosts", range(2, 10))
def test_all_pairs_meet_once_and_no_host_meets_two_at_a_time(hosts):
    met = [pair for opponents in _rounds(hosts) for pair in opponents.items()]
    assert sorted(met) == sorted((a, b) for a in range(hosts) for b in range(hosts) if a != b)


@pytest.mark.parametrize("hosts", [3, 4, 9])
@pytest.mark.parametrize(
    ("trip", "rate", "named"),
    [
        (1, 1, False),
        (3, 1, False),  # 0.3 ms is chance
        (30, 1, True),
        (1, 0.4, True),
        (1, 0.6, False),
        (0.5, 2, False),  # faster than all others
    ],
)
def test_the_slow_host_alone_is_named(hosts, trip, rate, named):
    names = [f"node{number}" for number in range(hosts)]
    lines = slow_hosts(_measured(hosts, 1, trip, rate), names)
    assert [line.split(":")[0] for line in lines] == ["node1"] * named


def test_two_hosts_do_not_say_whose_fault_it_is():
    assert slow_hosts(_measured(2, 0, 1000, 0.001), ["a", "b"]) == []


def test_the_tables_show_every_host_and_collective(capsys):
    answers = [Answer(Host(name, 1), None) for name in ("a", "b", "c")]
    measured = _measured(3, None)
    cluster, source = assumed(answers, measured)
    assert (cluster.far, cluster.far_latency, source) == (1e8, 1e-4, "the pairs of hosts")
    show(answers, measured)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["a", "1", "0.10", "ms", "100", "MB/s"] in rows
    # 2 thirds of 1,000 bytes leave a rank
    assert ["rows", "all-to-all", "3", "1,000", "0.20", "ms", "0.11", "ms", "1.9"] in rows


@pytest.mark.parametrize("text", [None, "node1 slots=2\n"])
def test_a_network_needs_two_hosts(tmp_path, capsys, text):
    (tmp_path / "hostfile").write_text(text or "")
    flags = [] if text is None else ["--hostfile", str(tmp_path / "hostfile")]
    with pytest.raises(SystemExit) as ended:
        main.main(["doctor", "--network", *flags])
    assert ended.value.code == 2 and "two or more" in capsys.readouterr().err
