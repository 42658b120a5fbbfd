"""Collectives over real ranks."""

import torch

from sparse_mlp_ds.distributed import comm, process_group
from sparse_mlp_ds.errors import UserError
from tests.helpers import harness


def _on_rank_zero() -> list[str]:
    """What a result, a second result and an error of rank 0 are on this rank."""
    seen = [comm.on_rank_zero(lambda: f"from rank {process_group.rank()}"), comm.on_rank_zero(list)]

    def fail() -> None:
        raise UserError("a recipe: mend it")

    try:
        comm.on_rank_zero(fail)
    except UserError as error:
        seen.append(f"{type(error).__name__}: {error}")
    return seen


def test_what_rank_zero_finds_is_known_to_all_and_its_error_is_printed_once():
    first, *others = harness.run(3, _on_rank_zero)
    assert first == ["from rank 0", [], "UserError: a recipe: mend it"]
    assert others == [["from rank 0", [], "ReportedError: a recipe: mend it"]] * 2


def _exchange() -> tuple[list[float], list[float]]:
    """Rank r sends r + 1 rows to rank 0 and one row to rank 1; gradients come back twice, as from a kept graph."""
    rank = process_group.rank()
    rows = torch.full((rank + 2, 2), float(rank), requires_grad=True)
    receives = [1, 2] if rank == 0 else [1, 1]
    received = comm.exchange(rows, [rank + 1, 1], receives, torch.distributed.group.WORLD)
    loss = (received * (10.0 + rank)).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    return received[:, 0].tolist(), rows.grad[:, 0].tolist()


def test_rows_travel_to_other_ranks_and_their_gradients_back_each_time():
    assert harness.run(2, _exchange) == [([0.0, 1.0, 1.0], [20.0, 22.0]), ([0.0, 1.0], [20.0, 20.0, 22.0])]


def _refused() -> str:
    try:
        comm.on_rank_zero(lambda: open("/nowhere/file"))  # noqa: SIM115
    except UserError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def test_what_the_system_refuses_on_rank_zero_reaches_every_rank():
    reason = "/nowhere/file: No such file or directory"
    assert harness.run(2, _refused) == [f"UserError: {reason}", f"ReportedError: {reason}"]
