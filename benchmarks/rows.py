"""How many rows of tokens a core reads: `python -m benchmarks.rows --data FOLDER` with a text data set's folder.

The loader reads one row after the other at its offset, in the random order of training, in this process. Processor time
counts, so other programs disturb little.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from sparse_mlp_ds.data import index as index_file
from sparse_mlp_ds.data import loader
from sparse_mlp_ds.data.order import Part, TrainingOrder, micro_batches

BATCH = 32


def main() -> None:
    """Measure and print rows per second of processor time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of tars of rows")
    parser.add_argument("--rows", type=int, default=20_000, help="per measurement (20000)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    torch.set_num_threads(1)
    index = index_file.load(args.data)
    order = TrainingOrder((Part(tuple(len(shard) for shard in index.shards), len(index)),), BATCH, 0)
    order.batch_indices(0, 0, 1)  # the epoch's order is computed once
    rates = [_rate(index, order, args.rows // BATCH) for _ in range(args.rounds)]
    tokens = sum(len(shard) for shard in index.shards) * index.text.row_bytes
    result = {
        "rows_per_second": statistics.median(rates),
        "lowest": min(rates),
        "highest": max(rates),
        "bytes_over_tokens": sum(shard.bytes for shard in index.shards) / tokens,
    }
    if args.json:
        print(json.dumps(result))
        return
    print(
        f"{result['rows_per_second']:.0f} ({result['lowest']:.0f} .. {result['highest']:.0f}) rows of "
        f"{index.text.length} tokens per second of processor time; the tars are "
        f"{100 * result['bytes_over_tokens'] - 100:.1f} % larger than the tokens"
    )


def _rate(index: index_file.Index, order: TrainingOrder, steps: int) -> float:
    dataset = loader.ShardDataset(index, None, None, order=order)
    started = time.process_time()
    count = sum(
        len(batch.inputs) for batch in loader.load(dataset, micro_batches(order, range(steps), range(BATCH)), 0)
    )
    return count / (time.process_time() - started)


if __name__ == "__main__":
    main()
