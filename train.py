"""Train a recipe: `deepspeed --num_gpus 2 train.py --ds_config ds_configs/moe.json`.

Parse, find this rank's place, check, join the process group, run. Exit codes: 0 done, 2 bad configuration or input, 85
stopped on request (a complete checkpoint is on disk), anything else a crash.
"""

import argparse
import os
import sys
import time
import warnings

from sparse_mlp_ds import discovery, dist
from sparse_mlp_ds.config import DEFAULT_RECIPE
from sparse_mlp_ds.errors import STOPPED, ReportedError, RunError, UserError


def parse(arguments: list[str]) -> argparse.Namespace:
    """Return the command line's flags; these are all there are, everything else belongs to the recipe or the JSON."""
    parser = argparse.ArgumentParser(
        description="Train, fine-tune and evaluate what a recipe says.", allow_abbrev=False
    )
    parser.add_argument("--recipe", default=DEFAULT_RECIPE, help="shipped recipe's name, or a YAML file")
    parser.add_argument("--ds_config", help="DeepSpeed JSON, for example ds_configs/moe.json")
    parser.add_argument("--out", help="run folder (default: runs/<recipe>)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a recipe key (dotted)"
    )
    parser.add_argument("--resume", default="auto", help="auto, never, or a checkpoint's path (default: auto)")
    parser.add_argument(
        "--check", action="store_true", help="resolve and validate everything, print the plan, and stop"
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher gives it
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run and return the exit code."""
    args = parse(arguments)
    try:
        discovery.announce(os.environ)
    except ReportedError:
        time.sleep(3)  # a launcher that sees one exit kills the rest at once, the one that explains among them
        return 2
    except UserError as error:
        return explain(error)
    # DeepSpeed 0.19.8 calls collectives by names that torch 2.13 is about to retire.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    from sparse_mlp_ds import environment, front_end, rendezvous
    from sparse_mlp_ds.job import plan, resolve
    from sparse_mlp_ds.train import loop, preflight, run_folder, watchdog
    from sparse_mlp_ds.train.stop import StoppedError

    try:
        job = resolve(args.recipe, args.ds_config, args.set, args.out, args.resume, dist.world_size())
        run_folder.check(job)
    except UserError as error:
        if dist.local_rank() == 0:  # every rank of this host found the same
            if shortfall := front_end.shortfall():  # then a batch that does not divide is but a consequence
                explain(shortfall)
            explain(error)
        if not args.check:
            rendezvous.decline(dist.rank(), dist.world_size())
        time.sleep(3 if dist.local_rank() else 0)
        return 2
    except Exception:
        rendezvous.decline(dist.rank(), dist.world_size())
        raise
    if args.check:
        if dist.rank() == 0:
            print(plan(job))
        return 0
    try:
        limit = job.recipe.train.timeout_seconds
        # The watchdog knows more than a collective that gives up, so it speaks first.
        with dist.process_group(limit + 60):
            environment.share()
            with watchdog.watch(limit) as watch:
                preflight.check(job)
                loop.run(job, watch)
        return 0
    except StoppedError as stopped:
        if dist.rank() == 0:
            print(f"{stopped}; start again with the same command", flush=True)
        return STOPPED
    except ReportedError:
        time.sleep(3)
        return 2
    except UserError as error:
        return explain(error)
    except RunError as error:  # empty where another rank says it
        explain(error)
        return 1


def explain(error: Exception) -> int:
    """Print what the user has to mend, one line per problem, and return the exit code."""
    for line in str(error).splitlines():
        print(f"error: {line}", file=sys.stderr, flush=True)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
