import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from training.allocator import keep_freed_memory

def faults(work):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def steps():
    for _ in range(20):  # a block that no longer fits, for what was put into it since, is made once more
        torch.zeros(1 << 24).add_(1.0)  # 64 MiB, freed again

kept = sys.argv[1] == "kept" and keep_freed_memory()
steps()
print(kept, faults(steps))
"""


def run(how):
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc is Linux's")
def test_what_a_step_frees_is_there_for_the_next_ones():
    kept, faults = run("kept")
    if not kept:
        pytest.skip("this C library has no mallopt")
    _, without = run("not kept")
    assert faults < without / 4
