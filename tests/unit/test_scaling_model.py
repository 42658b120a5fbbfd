"""The scaling model on numbers that can be checked by hand; its counts are checked in tests/ranks."""

import dataclasses

import pytest

from benchmarks import scaling, scaling_model, scaling_report
from benchmarks.scaling_model import predict
from sparse_mlp_ds.distributed.network_model import Cluster, Collective, seconds
from sparse_mlp_ds.models import registry
from sparse_mlp_ds.train.step_collectives import Mixture, mixtures, supervised

# 8 GPUs per node; 100 bytes/s near, 10 far; a launch is 1 s, a hop 0.1 s near and 0.5 s far.
CLUSTER = Cluster(
    near=100, far=10, reached=1.0, launch=1.0, near_latency=0.1, far_latency=0.5, peak=1e12, efficiency=0.5
)
B = registry.preset("sparse_mlp_b16")
PUBLISHED = {"moe_s": 8, "moe_c": 4}


@pytest.mark.parametrize(
    ("kind", "ranks", "stride", "size", "calls", "expected"),
    [
        # launch + hop; 7 eighths of 800 bytes go over NVLink
        ("all_to_all", 8, 1, 800, 1, 1 + 0.1 + 700 / 100),
        # 4 calls; of 1600 bytes, 7 sixteenths stay in the node and 8 sixteenths leave it, which takes longer
        ("all_to_all", 16, 1, 1600, 4, 4 * (1 + 0.5) + 800 / 10),
        # up and down 3 levels; twice 7 eighths of the bytes
        ("all_reduce", 8, 1, 800, 1, 1 + 2 * 3 * 0.1 + 2 * 700 / 100),
        # 3 levels in each node, 1 between the two; 8 cards have 80 bytes/s, less than NVLink
        ("all_reduce", 16, 1, 1600, 1, 1 + 2 * (3 * 0.1 + 0.5) + 2 * 1500 / 80),
        # the same expert on two nodes: one rank in each, one card
        ("all_reduce", 2, 8, 100, 1, 1 + 2 * 0.5 + 2 * 50 / 10),
        # the same expert twice in each of two nodes
        ("all_gather", 4, 4, 100, 1, 1 + 0.1 + 0.5 + 300 / 20),
    ],
)
def test_a_collective_takes_latency_and_bytes(kind, ranks, stride, size, calls, expected):
    assert seconds(Collective("", kind, ranks, stride, size, calls), CLUSTER) == pytest.approx(expected)


def test_the_layers_of_sparse_b():
    s, c = Mixture("moe_s", 384, 392, 8, 1), Mixture("moe_c", 392, 384, 4, 2)
    assert mixtures(B) == [s, c, s, c]
    assert (s.row_bytes(8, 2), c.row_bytes(8, 2)) == (8 * 384 * 392 * 2, 8 * 392 * 2 * 384 * 2)
    # 8 x 384 / 8 = 384 rows per expert, and 5 % more: 403.2
    assert s.padded_bytes(8, 2, 1.05) == 8 * 404 * 392 * 2


def test_gradients_and_weights_of_sparse_b():
    found = supervised(B, 0, 32, PUBLISHED, 128, 2)
    gradients = {c.ranks: c.bytes for c in found if c.what.endswith("gradients")}
    experts_s, experts_c = 2 * (2 * 392 * 768 + 768 + 392), 2 * (2 * 384 * 1536 + 1536 + 384)  # of one per layer
    dense = 69_977_000 - 8 * experts_s - 4 * experts_c
    assert gradients[32] == pytest.approx(2 * dense, rel=1e-4)
    assert (gradients[4], gradients[8]) == (2 * experts_s, 2 * experts_c)
    gathered = sum(c.bytes * c.ranks for c in found if c.kind == "all_gather" and c.what == "experts weights")
    assert gathered == pytest.approx(2 * (experts_s + experts_c), rel=1e-4)


def test_a_step_is_the_sum_of_its_parts():
    step = predict(B, "supervised", 32, PUBLISHED, 4096, CLUSTER)
    assert step.compute == pytest.approx(3 * 2 * 128 * 13.53e9 / 0.5e12, rel=1e-3)
    assert step.seconds == pytest.approx(step.compute + sum(step.parts.values()))
    assert set(step.parts) == {"rows", "gradients", "weights", "small"}
    hidden = predict(B, "supervised", 32, PUBLISHED, 4096, CLUSTER, hidden=1.0)
    assert hidden.seconds == pytest.approx(step.seconds - step.parts["gradients"])
    lazy = predict(B, "supervised", 32, PUBLISHED, 4096, dataclasses.replace(CLUSTER, efficiency=0.25))
    assert lazy.compute == pytest.approx(2 * step.compute)


def test_a_single_gpu_sends_nothing():
    assert predict(B, "pretrain", 1, {"moe_s": 1, "moe_c": 1}, 8).parts == {}


def test_the_experts_of_a_layout_divide():
    for _, spec, ep in scaling_model.layouts():
        assert all(spec.experts[kind].experts % ranks == 0 for kind, ranks in ep.items())


def _found() -> dict:
    """One round in which two hosts take 0.75 of one host's time, and 0.1 s more per step with a delay of 10 ms."""
    steps = [
        {"round": 0, "hosts": n, "delay": d, "images": i, "seconds": [t + (n > 1) * d / 100], "cpu": 1.0}
        for d in (0, 10)
        for n, i, t in ((1, 64, 1.0), (1, 32, 0.5), (2, 32, 0.75))
    ]
    single = [
        {"hosts": 2, "delay": d, "kind": kind, "bytes": size, "seconds": 0.001 + size / 1e8 + 2 * d / 1000}
        for d in (0, 10)
        for kind in ("all_to_all", "all_reduce", "all_gather")
        for size in (8, 2 << 20)
    ]
    call = {"kind": "all_to_all", "ranks": 2, "bytes": 1000, "sent": 600, "integers": False}
    alone = call | {"kind": "all_reduce", "ranks": 1}
    rank = {"step": [call] * 5 + [alone], "forward": [call], "rows": [[1, 1, 1, 1]] * 2}
    counts = [{"hosts": 2, "images": 32, "ranks": [rank, rank]}]
    about = {"model": "sparse_mlp_t4", "cores": 2, "strong": 64, "weak": 32}
    return about | {"steps": steps, "collectives": single, "counts": counts}


def test_the_report_sets_hosts_against_one(capsys):
    found = _found()
    rows = {(row["mode"], row["hosts"], row["delay"]): row for row in scaling_report.throughput(found)}
    assert rows["strong", 2, 0]["speedup"] == pytest.approx([1 / 0.75])
    assert rows["weak", 2, 0]["efficiency"] == pytest.approx([0.5 * 2 / 0.75 / 2])
    (added,) = scaling_report.added(found)
    # A call on one rank alone waits for nobody.
    assert (added["calls"], added["hops"], added["measured"]) == (5, pytest.approx(0.1), pytest.approx([0.1]))
    assert added["predicted"] == pytest.approx(5 * 0.02)
    assert [row["bandwidth"] for row in scaling_report.single(found)] == pytest.approx([1e8] * 4 + [5e7] * 2)
    assert scaling_report.traffic(found)[0]["sent"] == 2 * 5 * 600
    assert scaling_report.quiet(found) == pytest.approx(1.5)  # of 1 / 1 and 1 / 0.5, half way
    scaling_report.show(found)
    assert "strong" in capsys.readouterr().out


def test_without_namespaces_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(scaling, "why_not", lambda: "only root may make network namespaces")
    monkeypatch.setattr("sys.argv", ["scaling"])
    with pytest.raises(SystemExit) as left:
        scaling.main()
    assert left.value.code == 2
    assert capsys.readouterr().err == "benchmarks.scaling: only root may make network namespaces\n"
