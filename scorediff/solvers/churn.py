"""Churn: fresh noise raises the noise level sigma/alpha just before a step.

Karras et al., arXiv 2206.00364, algorithm 2. From a node with noise level s the state moves to
s (1 + gamma), gamma = min(amount / n, sqrt(2) - 1) over n steps, where s lies in [low, high]:

    x <- (alpha_hat / alpha) x + noise sqrt(sigma_hat^2 - (alpha_hat sigma / alpha)^2) z.       (1)

The step then starts at the raised node. In a table, (1) belongs to the row before the step, or to
the table's start.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scorediff.errors import UserError
from scorediff.solvers.grid import Grid, Node, nodes_at
from scorediff.solvers.table import NOISE, OFF_PATH, Row, StepTable, linear, make_table


class Churn(NamedTuple):
    """How much, between which noise levels, and the factor on the noise (their S_noise)."""

    amount: float = 0.0
    low: float = 0.0
    high: float = math.inf
    noise: float = 1.0


def raise_nodes(grid: Grid, churn: Churn) -> list[Node]:
    """Where each step starts, once its noise level is raised; the same node where it is not."""
    if not churn.amount >= 0:
        raise UserError(f"churn must not be negative, got {churn.amount}")
    starts = list(grid.nodes[:-1])
    gain = min(churn.amount / len(grid), math.sqrt(2) - 1)
    chosen = [k for k, node in enumerate(starts) if gain and _within(node, churn)]
    if chosen:
        alpha, sigma = np.array([(starts[k].alpha, starts[k].sigma) for k in chosen]).T
        t = grid.process.host_when(alpha, sigma * (1 + gain))
        for k, node in zip(chosen, nodes_at(grid.process, t), strict=True):
            starts[k] = node
    return starts


def churned_table(
    grid: Grid, starts: Sequence[Node], steps: Sequence[list[Row]], noise: float
) -> StepTable:
    """The steps' rows, one list a step, as a table; each step k starts at starts[k]."""
    first = _churned(Row(grid.nodes[0], e=linear(e=1.0)), grid.nodes[0], starts[0], noise)
    rows = list(steps[0])
    for now, raised, step in zip(grid.nodes[1:], starts[1:], steps[1:], strict=False):
        rows[-1] = _churned(rows[-1], now, raised, noise)
        rows += step
    return make_table(rows, grid.nodes[-1], start=(first.e[0], first.e[NOISE]))


def _within(node: Node, churn: Churn) -> bool:
    return node.alpha > 0 and churn.low <= node.sigma / node.alpha <= churn.high


def _churned(row: Row, node: Node, raised: Node, noise: float) -> Row:
    """A row whose result, at `node`, is scaled and noised to be at `raised`: equation (1)."""
    if raised is node:
        return row
    scale = raised.alpha / node.alpha
    added = math.sqrt(raised.sigma**2 - (scale * node.sigma) ** 2)
    update = row.e * scale
    update[NOISE] = np.hypot(update[NOISE], noise * added)
    return row._replace(e=update, over=OFF_PATH)
