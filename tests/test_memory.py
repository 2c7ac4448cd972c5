"""What is freed is kept, seen in the page faults of a second run."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from scorediff.memory import keep_memory
keep_memory()
import jax, jax.numpy as jnp

@jax.jit
def work(x):  # 64 MiB: below 32, glibc itself learns to keep
    return jnp.outer(x, x)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

x = jnp.ones(4096)
for _ in range(15):  # until the heap has room between what stays
    work(x).block_until_ready()
before = faults()
for _ in range(5):
    work(x).block_until_ready()
print(faults() - before)
"""


def faults(**env: str) -> int:
    own = ("MALLOC_", "GLIBC_TUNABLES")
    clean = {name: text for name, text in os.environ.items() if not name.startswith(own)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**clean, **env, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's mallopt")
def test_what_a_computation_frees_it_takes_again_without_page_faults():
    taken_anew = faults(MALLOC_ARENA_MAX="8")  # the user's own settings stand
    assert taken_anew > 0.9 * 5 * 4096 * 4096 * 4 / 4096  # the result of every run
    assert faults() < taken_anew / 2  # it may still grow a little
