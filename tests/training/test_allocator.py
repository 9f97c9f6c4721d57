"""Freed memory stays: taking a large block again and again costs few page faults. Each case in a process of its own."""

import subprocess
import sys

import pytest

COUNT = """
import resource, sys
from recmtl.training.allocator import keep_freed_memory
import torch
agreed = keep_freed_memory() if sys.argv[1] == "keep" else None
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(agreed, sum([faults() for _ in range(20)][10:]))
"""


def run(what, **environment):
    command = [sys.executable, "-c", COUNT, what]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PATH": "", **environment})
    agreed, faults = done.stdout.split()
    return agreed, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="about glibc's allocator")
def test_a_block_freed_and_taken_again_costs_few_page_faults():
    agreed, kept = run("keep")
    if agreed == "False":
        pytest.skip("this C library is not glibc")
    _, given_back = run("leave")
    assert kept < given_back / 2


def test_the_environments_own_wishes_are_left_alone():
    assert run("keep", MALLOC_MMAP_MAX_="1000")[0] == "False"
