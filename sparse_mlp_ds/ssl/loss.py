"""The contrastive loss of MoCo v3 (InfoNCE over the global batch, algorithm 1)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_mlp_ds.distributed import comm, process_group


def symmetric_info_nce(queries: Tensor, keys: Tensor, temperature: float, images: Sequence[int] = ()) -> Tensor:
    """Return ctr(q1, k2) + ctr(q2, k1), a scalar: the mean over this rank's images.

    Each query is contrasted with the keys of all ranks' images in the opposite view: ctr(q, k) = 2 T x
    cross-entropy(q k / T, own image), for queries and keys of length 1.

    Args:
        queries: [2, B, D], the online network's outputs for two views of B images.
        keys: [2, B, D], the momentum encoder's outputs for the same views. They carry no gradient.
        temperature: T.
        images: B of every rank; may be left out if all ranks have the same B.
    """
    queries = F.normalize(queries.float(), dim=-1)
    keys = F.normalize(keys.float(), dim=-1)
    batch, rank = queries.shape[1], process_group.rank()
    first = sum(images[:rank]) if images else rank * batch
    targets = torch.arange(first, first + batch, device=queries.device)
    loss = queries.new_zeros(())
    for query, key in ((queries[0], keys[1]), (queries[1], keys[0])):
        logits = query @ comm.all_gather(key, images).T / temperature  # [B, all ranks' B]
        loss = loss + F.cross_entropy(logits, targets) * (2 * temperature)
    return loss
