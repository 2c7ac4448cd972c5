"""Counting network evaluations, through branches, nested counts and derivatives."""

import jax
import jax.numpy as jnp
import pytest

from scorediff.counting import counted, either, record
from scorediff.errors import UserError


def evaluations(n, batch=4):
    """A function that makes n evaluations of a batch."""

    def call():
        for _ in range(n):
            record(batch)
        return jnp.ones(())

    return call


def test_batches_count_by_their_size():
    assert counted(evaluations(3), batch=4)[1] == 3
    assert counted(evaluations(1, batch=8), batch=4)[1] == 2
    record(5)  # outside of any count: nobody hears it


def test_a_function_that_records_nothing_is_one_evaluation():
    assert counted(lambda: 7, batch=4) == (7, 1)
    assert counted(lambda: record(0), batch=4)[1] == 0


def test_an_outer_count_holds_the_inner_one():
    def both():
        record(4)
        return counted(evaluations(2), batch=4)[1], counted(lambda: 0, batch=4)[1]

    assert counted(both, batch=4) == ((2, 1), 4)


def test_a_failure_leaves_no_count_behind():
    def broken():
        record(4)
        raise RuntimeError("network")

    def outer():
        with pytest.raises(RuntimeError):
            counted(broken, batch=4)
        record(4)

    assert counted(outer, batch=4)[1] == 1


def test_a_count_that_is_lost_in_a_compiled_function_is_named():
    def call():
        return jax.jit(lambda t: either(t > 1, evaluations(2), evaluations(1), batch=4))(0.5)

    with pytest.raises(UserError, match=r"leave out its own jax\.jit"):
        counted(call, batch=4)


def test_only_the_branch_that_runs_counts():
    """Also a branch in a branch, under jit, grad and vmap."""

    def inner(t):
        return either(t > 2, evaluations(5), evaluations(3), batch=4)

    def count(t):
        def call():
            return either(t > 1, lambda: inner(t), evaluations(1), batch=4)

        return counted(call, batch=4)[1]

    times, wanted = (0.5, 1.5, 2.5), [1, 3, 5]
    compiled = jax.jit(count)
    assert [float(compiled(t)) for t in times] == wanted
    assert jax.vmap(count)(jnp.array(times)).tolist() == wanted

    def slope(t):
        return counted(lambda: jax.grad(lambda x: x * inner(t))(2.0), batch=4)

    assert [float(out) for out in jax.jit(slope)(2.5)] == [1, 5]
