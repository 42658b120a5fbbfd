import pytest

from sparse_mlp_ds.shards.digits import make
from tests.gpu_emulated.runs import links_to


@pytest.fixture(scope="session")
def digits_data(tmp_path_factory):
    """The digits as shards, for all runs."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    make(folder)
    return folder


@pytest.fixture
def workplace(digits_data, tmp_path):
    """A folder for one run."""
    return links_to(digits_data, tmp_path)
