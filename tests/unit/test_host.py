"""What a rank asks of its host, in a process of its own: it is not to be taken back."""

import subprocess
import sys

import pytest

KEEP = """
import torch
from sparse_mlp_ds.distributed import host
host.keep_freed_memory()

def size():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) >> 10

small, before = [], size()
for step in range(8):
    bucket = torch.empty(1000 << 20, dtype=torch.uint8)  # as ZeRO makes one in every step, and fills its beginning
    small.append(torch.ones(1 << 16))
    del bucket
    small.append(torch.ones(1 << 16))
print(size() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_bucket_in_every_step_does_not_make_the_process_grow():
    done = subprocess.run([sys.executable, "-c", KEEP], capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) < 1500, "MiB, for eight buckets of 1000 one after the other"


HOLES = """
import random, psutil, torch
from sparse_mlp_ds.distributed import host
host.keep_freed_memory()
size = lambda: psutil.Process().memory_info().rss >> 20
rows = lambda count: [torch.ones(random.randint(1 << 18, 1 << 20)) for _ in range(count)]
used = rows(100)
kept = host.KeptMemory()
assert not kept.look()
more = rows(800)
last = more.pop()
del more  # a hole, as `last` lies behind it
grown = size()
print(grown, kept.look(), size(), sum(x.nbytes for x in used) >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_a_process_that_has_grown_gives_back_what_is_free():
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, timeout=120, check=True)
    grown, gave, left, used = done.stdout.split()
    assert gave == "True" and int(used) < int(left) < int(grown) / 2, done.stdout
