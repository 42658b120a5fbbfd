"""Permissions that bind: the superuser, as whom tests often run, may read and write whatever it likes."""

import contextlib
import ctypes
import os
import sys

_OVERRIDES = 0b1110
"""Linux's capabilities 1 to 3: to write, read or own whatever the permissions say."""
_SET_SECUREBITS, _NO_ROOT = 28, 1


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Capabilities(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


@contextlib.contextmanager
def bound():
    """Take from this thread, and what it starts, the superuser's right to pass over permissions."""
    if os.geteuid() != 0:
        yield
        return
    assert sys.platform == "linux", why_not()
    libc = ctypes.CDLL(None, use_errno=True)
    header, held = _Header(0x20080522, 0), (_Capabilities * 2)()
    assert libc.capget(ctypes.byref(header), held) == 0, os.strerror(ctypes.get_errno())
    before = held[0].effective
    assert libc.prctl(_SET_SECUREBITS, _NO_ROOT, 0, 0, 0) == 0, "a program that is started would get them back"
    held[0].effective &= ~_OVERRIDES
    assert libc.capset(ctypes.byref(header), held) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        held[0].effective = before
        libc.prctl(_SET_SECUREBITS, 0, 0, 0, 0)
        assert libc.capset(ctypes.byref(header), held) == 0, os.strerror(ctypes.get_errno())


def why_not() -> str:
    """Return why permissions cannot bind this process, or an empty text."""
    binds = os.geteuid() != 0 or sys.platform == "linux"
    return "" if binds else "the superuser's rights can be laid down on Linux only"
