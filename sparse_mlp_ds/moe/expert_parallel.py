"""The MoE layer with its experts spread over ranks, with DeepSpeed's process groups and its treatment of experts.

The layer derives from DeepSpeed's `MoE`, because engine and ZeRO recognise experts by that class and by two attributes
of their parameters; router, dispatch and experts are ours. Rows travel by an all-to-all with exact counts, without
padding, so ranks with different numbers of items, or with none, neither hang nor waste work.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.moe.layer import MoE as DeepSpeedMoE
from deepspeed.utils import groups as deepspeed_groups
from torch import Tensor, nn

from sparse_mlp_ds.distributed.comm import exchange
from sparse_mlp_ds.moe.layer import MoELayer, Routing
from sparse_mlp_ds.moe.routes import Routes


class ExpertParallelMoE(MoELayer, DeepSpeedMoE):
    """An `MoELayer` with E / ep_size experts on each rank.

    Ranks r with equal r // ep_size form an expert-parallel group, which holds one full set of experts.
    """

    def __init__(
        self,
        dim: int,
        experts: int,
        top_k: int,
        make_expert: Callable[[], nn.Module],
        routing: Routing = Routing(),
        keyed_experts: bool = False,
        *,
        ep_size: int,
    ):
        """Build the experts of this rank. Needs an initialised process group.

        Arguments are those of `MoELayer` and ep_size, the ranks of one expert-parallel group. Raises ValueError if
        ep_size does not divide both `experts` and the world size.
        """
        if experts % ep_size or dist.get_world_size() % ep_size:
            raise ValueError(f"ep_size {ep_size} must divide {experts} experts and {dist.get_world_size()} ranks")
        # The names DeepSpeed's engine reads.
        self.ep_size = ep_size
        self.num_local_experts = experts // ep_size
        self.expert_group_name = f"ep_size_{ep_size}"
        super().__init__(dim, experts, top_k, make_expert, routing, keyed_experts)
        self.group: dist.ProcessGroup | None = None
        for parameter in self.experts.parameters():
            tagged: Any = parameter  # with the two attributes that DeepSpeed looks for
            tagged.allreduce = False
            tagged.group_name = self.expert_group_name

    def local_ids(self) -> range:
        """Return the global ids of this rank's experts.

        DeepSpeed forms expert-parallel groups of consecutive ranks, which keeps them inside a host.
        """
        first = (dist.get_rank() % self.ep_size) * self.num_local_experts
        return range(first, first + self.num_local_experts)

    def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
        """Join the expert-parallel group, which is created on first use. The engine calls this on every MoE layer."""
        if self.expert_group_name not in deepspeed_groups._get_expert_parallel_group_dict():
            deepspeed_groups._create_expert_and_data_parallel(
                self.ep_size, use_data_before_expert_parallel_=use_data_before_expert_parallel_
            )
        self.group = deepspeed_groups._get_expert_parallel_group(self.expert_group_name)
        # The engine has just cast every parameter to bf16 or fp16, and builds the optimizer next, so the router must go
        # back to float32 here. (DeepSpeed's keep_in_fp32_modules concerns buffers only.)
        self.router.float()

    def run_experts(self, items: Tensor, routes: Routes, keys: Tensor | None) -> tuple[Tensor, Routes]:
        """Send rows to the ranks of their experts, run these, and send the results back; see `MoELayer`."""
        if self.ep_size == 1:
            return super().run_experts(items, routes, keys)
        assert self.group is not None, "set_deepspeed_parallelism comes before the first forward pass"
        # 1. Counts first, so that every rank knows how many rows each rank sends to each of its experts. The host waits
        # for the device here and nowhere else.
        counts = routes.counts
        arriving = torch.empty_like(counts)
        dist.all_to_all_single(arriving, counts, group=self.group)
        sent, arrived = torch.stack([counts, arriving]).view(2, self.ep_size, -1).tolist()  # [rank][local expert]
        sent_to, arrived_from = [sum(c) for c in sent], [sum(c) for c in arrived]

        # 2. The rows, and their keys.
        routes = routes.first(sum(sent_to))
        rows = items.index_select(0, routes.item)
        here = exchange(rows, sent_to, arrived_from, self.group)
        keys_here = None if keys is None else exchange(keys[: len(rows)], sent_to, arrived_from, self.group)

        # 3. The rows arrive sorted by (source rank, expert); the experts need them by (expert, source rank).
        counts_here = arriving.view(self.ep_size, -1)  # [source rank, expert]
        order = _by_expert(counts_here, len(here))
        keys_here = None if keys_here is None else keys_here[order]
        sizes = [sum(c) for c in zip(*arrived, strict=True)]
        done = self.local_experts(here.index_select(0, order), counts_here.sum(dim=0), sizes, keys_here)
        here = torch.empty_like(done).index_copy(0, order, done)

        # 4. The results go back; the same splits in the opposite direction restore the order of `rows`.
        return exchange(here, arrived_from, sent_to, self.group), routes


def _by_expert(counts: Tensor, rows: int) -> Tensor:
    """Return the row numbers [rows] that sort blocks (rank, expert) of the sizes `counts` by expert, then by rank."""
    ranks, experts = counts.shape
    expert = torch.arange(experts, device=counts.device).repeat(ranks)
    return expert.repeat_interleave(counts.flatten(), output_size=rows).argsort(stable=True)
