"""What holds for all tests: what `make test` leaves out is said at the end, and no test changes what others find."""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

_CLUSTER = Path(__file__).with_name("cluster")
_left_out: Counter[str] = Counter()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(_CLUSTER):
            item.add_marker(pytest.mark.long)


def pytest_collection_finish():
    """The emulated GPU changes torch for good: only processes of their own may import it."""
    assert "tests.gpu_emulated.device" not in sys.modules, "a test imports the emulated GPU into pytest's process"


@pytest.fixture(autouse=True)
def _same_environment_for_all() -> Iterator[None]:
    """Put variables back as they were: one that joins a process group sets RANK, and starts of later tests had it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def store(monkeypatch):
    """An object store on this machine, which s3:// leads to in this process and those that it starts."""
    pytest.importorskip("moto")  # which images do without
    from tests.helpers.object_store import ObjectStore

    with ObjectStore() as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        yield store


def pytest_deselected(items):
    _left_out.update(item.nodeid.partition("::")[0] for item in items if item.get_closest_marker("long"))


def pytest_terminal_summary(terminalreporter):
    if _left_out:
        terminalreporter.section("left out because they take long; `make test-all` runs them")
        for file, number in sorted(_left_out.items()):
            terminalreporter.line(f"{number:>4}  {file}")
