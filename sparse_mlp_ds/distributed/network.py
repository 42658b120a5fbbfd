"""What this host can say about its ports and addresses, without torch."""

import contextlib
import errno
import ipaddress
import socket


def free_port() -> int:
    """Return a port that no process on this host listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def is_free(port: int) -> bool:
    """Return whether a run could listen on a port of this host."""
    try:
        # The run's own listener allows reuse too, so connections of a run that has just ended are no obstacle.
        listen(port).close()
    except OSError:
        return False
    return True


def listen(port: int = 0, backlog: int | None = None) -> socket.socket:
    """Listen on a port, at all addresses of this host, also those of IPv6 where it exists. Raises OSError.

    port: 0 takes a free one. backlog: connections that wait to be accepted; None takes the system's default.
    """
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True)
        except OSError as error:
            if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):  # IPv6 is switched off
                raise
    return socket.create_server(("", port), backlog=backlog)


def own_address() -> str:
    """Return the address at which other hosts reach this host, of IPv4 if it has one.

    It is the address of the default route; on a host without one, the address that the host's name resolves to. Raises
    OSError if there is none.
    """
    for reserved in ("192.0.2.1", "2001:db8::1"):  # for documentation (RFC 5737, 3849): only default routes lead there
        with contextlib.suppress(OSError):
            return address_towards(reserved)
    return str(socket.getaddrinfo(socket.gethostname(), None)[0][4][0])


def address_towards(host: str) -> str:
    """Return this host's address on the route to another host, of IPv4 or IPv6.

    host: name or address. Raises OSError if it does not resolve or if no route leads there.
    """
    problem = OSError(f"{host} has no address")
    for family, kind, _, _, address in socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM):
        try:
            with socket.socket(family, kind) as probe:
                probe.connect(address)  # sends nothing, but makes the kernel choose a route
                return str(probe.getsockname()[0])
        except OSError as error:
            problem = error
    raise problem


def is_loopback(address: str) -> bool:
    """Return whether an address of IPv4 or IPv6 leads to the host itself."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
