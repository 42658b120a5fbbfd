"""What DeepSpeed measures itself, where its JSON asks for it, is printed."""

import contextlib
import io

import pytest

from tests.helpers import harness, tiny


def _printed(section: dict | None) -> tuple[str, str]:
    """Take two steps; return what the summary prints, and what DeepSpeed's logger shows."""
    from deepspeed.utils import logger

    from sparse_mlp_ds.train import engine as engines

    shown, summary = io.StringIO(), io.StringIO()
    logger.handlers[0].setStream(shown)
    built = tiny.build_engine(2, 1, **({} if section is None else {"comms_logger": section}))
    for number in range(2):
        tiny.step(built, number)
    with contextlib.redirect_stdout(summary):
        engines.end(built)
    return summary.getvalue(), shown.getvalue()


@pytest.mark.parametrize(
    ("section", "summary", "messages"),
    [
        (None, False, False),
        ({"enabled": False, "verbose": True}, False, False),
        ({"enabled": True}, True, False),
        ({"enabled": True, "verbose": True}, True, True),
    ],
)
def test_comms_logger(section, summary, messages):
    (printed, shown), (other, _) = harness.run(2, _printed, section)
    assert ("Message Size" in printed and "all_reduce" in printed) == summary
    assert ("comm op: all_reduce" in shown) == messages
    assert "Message Size" not in other, "one rank prints"
