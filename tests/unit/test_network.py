"""Ports and addresses of this host, of IPv4 and IPv6."""

import socket

import pytest

from sparse_mlp_ds.distributed import network

FAMILIES = {"127.0.0.1": socket.AF_INET, "::1": socket.AF_INET6}


def _has_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


loopback = pytest.mark.parametrize(
    "address",
    ["127.0.0.1", pytest.param("::1", marks=pytest.mark.skipif(not _has_ipv6(), reason="this host has no IPv6"))],
)


@loopback
def test_a_listener_is_reached_at_every_address(address):
    with network.listen() as listener:
        socket.create_connection((address, listener.getsockname()[1]), 5).close()


@loopback
def test_a_port_that_is_taken_at_one_address_is_not_free(address):
    with socket.create_server((address, 0), family=FAMILIES[address]) as other:
        assert not network.is_free(other.getsockname()[1])
    assert network.is_free(network.free_port())


@loopback
def test_the_route_to_the_host_itself_is_the_loopback(address):
    assert network.address_towards(address) == address and network.is_loopback(address)


def test_a_host_without_an_address_is_an_error():
    with pytest.raises(OSError):
        network.address_towards("no-such-host.invalid")


def test_addresses_with_a_zone_can_be_told_from_the_loopback():
    assert not network.is_loopback("fe80::1%eth0") and network.is_loopback("127.0.1.1")


def test_ipv6_that_is_switched_off_is_done_without(monkeypatch):
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with network.listen() as listener:
        assert listener.family == socket.AF_INET
