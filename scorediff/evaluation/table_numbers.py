"""A table as the numbers that a search may move, and back.

Two things are free: at which noise level each row asks the network, and every coefficient by which
one register follows, with a history of all rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scorediff.diffusion.process import Process
from scorediff.solvers import StepTable
from scorediff.solvers.grid import DATA, nodes_at
from scorediff.solvers.table import NOISE, in_one_register
from scorediff.types import Array

_MARGIN = 1e-2  # of the range of log(alpha/sigma) that a start keeps from its ends
_FARTHEST = 10.0  # what stands for log(alpha/sigma) = +-infinity at the ends


class Numbers(NamedTuple):
    """A table of n rows as a search sees it: what may move, and what stays."""

    place: Array  # [n], logit of the share of the way from t_max to t_min in log(alpha/sigma)
    e: Array  # [n, 3 + n], as in StepTable
    ends: Array  # [2], log(alpha/sigma) at t_max and t_min
    prior: Array  # [], sigma at t_max, from which sampling starts


def numbers_of(table: StepTable, process: Process) -> Numbers:
    """A table without noise as a starting point."""
    low, high = _ends(process)
    n = table.nfe
    with np.errstate(divide="ignore"):
        logsnr_half = np.log(table.alpha[:n]) - np.log(table.sigma[:n])
    return numbers_at(process, (logsnr_half - low) / (high - low), in_one_register(table).e)


def numbers_at(process: Process, share: np.ndarray, e: np.ndarray) -> Numbers:
    """Rows [n, 3 + n] at shares [n] of the way from t_max to t_min in log(alpha/sigma)."""
    share = np.clip(share, _MARGIN, 1 - _MARGIN)
    prior = nodes_at(process, np.array([process.t_max]))[0].sigma
    return Numbers(np.log(share) - np.log1p(-share), e, _ends(process), np.array(prior))


def _ends(process: Process) -> np.ndarray:
    nodes = nodes_at(process, np.array([process.t_max, process.t_min]))
    return np.clip([node.logsnr_half for node in nodes], -_FARTHEST, _FARTHEST)


def differentiable_table(numbers: Numbers, process: Process) -> StepTable:
    """The table of these numbers, in JAX. Its start turns noise of t_max into its first level."""
    low, high = numbers.ends
    logsnr_half = low + (high - low) * jax.nn.sigmoid(numbers.place)
    ratios = jnp.exp(jnp.minimum(logsnr_half, 0)), jnp.exp(-jnp.maximum(logsnr_half, 0))
    t = process.when(*ratios)
    m, n = process(t), t.shape[0]
    return StepTable(
        t=jnp.append(t, DATA.t),
        alpha=jnp.append(m.alpha, DATA.alpha),
        sigma=jnp.append(m.sigma, DATA.sigma),
        keep=jnp.tile(jnp.array([0.0, 1.0]), (n, 1)),
        e=numbers.e,
        b=jnp.zeros_like(numbers.e),
        over=jnp.full((n, 2), jnp.nan),
        start=jnp.stack([m.sigma[0] / numbers.prior, jnp.zeros_like(m.sigma[0])]),
    )


def table_of(numbers: Numbers, process: Process) -> StepTable:
    """The same in float64 NumPy, with the process at its times to the last digit."""
    table = differentiable_table(numbers, process)
    table = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), table)
    nodes = [*nodes_at(process, table.t[:-1]), DATA]
    return table._replace(
        alpha=np.array([node.alpha for node in nodes]),
        sigma=np.array([node.sigma for node in nodes]),
        start=np.array([nodes[0].sigma / float(numbers.prior), 0.0]),
    )


def free_of(numbers: Numbers) -> np.ndarray:
    """Where in (place, e), flattened, the numbers are that matter: history that exists by then."""
    n, columns = numbers.e.shape
    column, row = np.arange(columns), np.arange(n)[:, None]
    exists = (column == 0) | ((column > NOISE) & (column <= NOISE + 1 + row))
    return np.flatnonzero(np.concatenate([np.ones(n, bool), exists.ravel()]))


def moved(numbers: Numbers, free: Array, by: Array) -> Numbers:
    """`by` added to the numbers that are free."""
    n = len(numbers.place)
    flat = jnp.concatenate([numbers.place, jnp.ravel(numbers.e)]).at[free].add(by)
    return numbers._replace(place=flat[:n], e=flat[n:].reshape(numbers.e.shape))
