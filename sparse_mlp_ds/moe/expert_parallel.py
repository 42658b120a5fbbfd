"""The MoE layer with its experts spread over ranks, on DeepSpeed's groups and under DeepSpeed's treatment of experts.

It derives from DeepSpeed's `MoE` because the engine and ZeRO recognise experts by that class and by two tags on their
parameters; gate, dispatch and experts are ours. Rows travel by an all-to-all with exact counts: no padding, so ranks
with other numbers of items, or with none, neither hang nor waste work.
"""

from collections.abc import Callable
from itertools import accumulate

import torch
import torch.distributed as dist
from deepspeed.moe.layer import MoE as DeepSpeedMoE
from deepspeed.utils import groups as deepspeed_groups
from torch import Tensor, nn

from sparse_mlp_ds.dist import exchange
from sparse_mlp_ds.moe.layer import MoELayer, Routing


class ExpertParallelMoE(MoELayer, DeepSpeedMoE):
    """`MoELayer` whose rank holds E / ep_size of the experts: ranks r with equal r // ep_size share one full set."""

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
        """ep_size must divide `experts` and the world size. Needs an initialised process group."""
        if experts % ep_size or dist.get_world_size() % ep_size:
            raise ValueError(f"ep_size {ep_size} must divide {experts} experts and {dist.get_world_size()} ranks")
        # The names DeepSpeed's engine reads.
        self.ep_size = ep_size
        self.num_local_experts = experts // ep_size
        self.expert_group_name = f"ep_size_{ep_size}"
        super().__init__(dim, experts, top_k, make_expert, routing, keyed_experts)
        self.group: dist.ProcessGroup | None = None
        for parameter in self.experts.parameters():
            parameter.allreduce = False
            parameter.group_name = self.expert_group_name

    def local_ids(self) -> range:
        """DeepSpeed forms expert-parallel groups of consecutive ranks, which keeps them inside a host."""
        first = (dist.get_rank() % self.ep_size) * self.num_local_experts
        return range(first, first + self.num_local_experts)

    def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
        """Take the expert-parallel group, made on first use; the engine calls this on every MoE layer."""
        if self.expert_group_name not in deepspeed_groups._get_expert_parallel_group_dict():
            deepspeed_groups._create_expert_and_data_parallel(
                self.ep_size, use_data_before_expert_parallel_=use_data_before_expert_parallel_
            )
        self.group = deepspeed_groups._get_expert_parallel_group(self.expert_group_name)
        # The engine has just cast every parameter to bf16 or fp16, and builds the optimizer next: the moment to take
        # the router back to float32. (DeepSpeed's keep_in_fp32_modules concerns buffers only.)
        self.router.float()

    def run_experts(self, rows: Tensor, counts: Tensor, keys: Tensor | None) -> Tensor:
        """As in `MoELayer`, with the rows' journey to the ranks of their experts and back."""
        if self.ep_size == 1:
            return super().run_experts(rows, counts, keys)
        # 1. Counts first, so that every rank knows how many rows come from whom for each of its experts.
        arriving = torch.empty_like(counts)
        dist.all_to_all_single(arriving, counts, group=self.group)
        sent, arrived = torch.stack([counts, arriving]).view(2, self.ep_size, -1).tolist()  # [rank][local expert]
        sent_to, arrived_from = [sum(c) for c in sent], [sum(c) for c in arrived]

        # 2. The rows, and their keys.
        here = exchange(rows, sent_to, arrived_from, self.group)
        keys_here = None if keys is None else exchange(keys, sent_to, arrived_from, self.group)

        # 3. They lie by (source rank, expert); experts want them by (expert, source rank).
        order = _by_expert(arrived).to(rows.device)
        local_counts = torch.tensor(arrived).sum(dim=0)
        keys_here = None if keys_here is None else keys_here[order]
        done = super().run_experts(here.index_select(0, order), local_counts, keys_here)
        here = torch.empty_like(done).index_copy(0, order, done)

        # 4. Back where they came from; the same splits the other way round restore the order of `rows`.
        return exchange(here, arrived_from, sent_to, self.group)


def _by_expert(counts: list[list[int]]) -> Tensor:
    """Return the row numbers that sort blocks [rank][expert] of the given sizes by expert, then by rank."""
    sizes = [size for row in counts for size in row]
    starts = list(accumulate(sizes, initial=0))
    ranks, experts = len(counts), len(counts[0])
    blocks = [
        torch.arange(starts[r * experts + e], starts[r * experts + e] + counts[r][e])
        for e in range(experts)
        for r in range(ranks)
    ]
    return torch.cat(blocks)
