"""Solvers that step in the process's own time t: Euler, Heun and Euler-Maruyama.

The probability-flow ODE is dx/dt = alpha' x0_hat + sigma' eps_hat = p x + q x0_hat with

    p = sigma'/sigma,    q = alpha' - alpha sigma'/sigma.
    (1)

A step runs over h = t' - t < 0. These solvers follow the path exactly only where alpha and sigma
are straight in t (EDM, flow matching); on curved processes their marginals are off by the order of
the method.
"""

import math

import numpy as np

from scorediff.errors import UserError
from scorediff.solvers.grid import Grid, Node, nodes_at
from scorediff.solvers.table import (
    NOISE,
    OFF_PATH,
    Row,
    StepTable,
    denoise_to_data,
    linear,
    make_table,
)


def euler(grid: Grid) -> StepTable:
    """Euler's method on the probability-flow ODE: x' = x + h (p x + q x0_hat)."""

    def step(now: Node, new: Node) -> Row:
        if new.is_data:
            return denoise_to_data(now)
        h, (p, q) = new.t - now.t, _velocity(now)
        return Row(now, e=linear(e=1 + h * p, m=(h * q,)))

    return make_table([step(*nodes) for nodes in grid.steps()], grid.nodes[-1])


def euler_maruyama(grid: Grid, *, eta: float = 1.0) -> StepTable:
    """Euler-Maruyama on dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dw, backwards in time.

    Song et al., arXiv 2011.13456, eq. 6 (eta = 1) and eq. 13 (eta = 0, Euler's method); the
    score is (alpha x0_hat - x) / sigma^2.
    """
    if grid.nodes[0].alpha < 1e-10:
        raise UserError(
            "euler_maruyama: the reverse SDE is singular where alpha = 0, at t="
            f"{grid.nodes[0].t:g} of {type(grid.process).__name__}; start at a smaller t_start"
        )

    def step(now: Node, new: Node) -> Row:
        if new.is_data:
            return denoise_to_data(now)
        h = new.t - now.t
        f = now.dalpha / now.alpha
        g2 = 2 * now.sigma * (now.dsigma - f * now.sigma)
        pull = 0.5 * (1 + eta**2) * g2 / now.sigma**2
        toward_x, toward_x0 = 1 + h * (f + pull), -h * pull * now.alpha
        return Row(now, e=linear(e=toward_x, m=(toward_x0,), z=eta * math.sqrt(-h * g2)))

    return make_table([step(*nodes) for nodes in grid.steps()], grid.nodes[-1])


def heun(
    grid: Grid,
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
) -> StepTable:
    """Heun's method with churn (Karras et al., arXiv 2206.00364, algorithm 2).

    Two rows a step: Euler to the new node, then the trapezoid from the base point; the step to data
    is a single evaluation, so n steps to data cost 2n - 1. Before a step whose noise level
    sigma/alpha lies in [churn_min, churn_max], noise raises that level by the factor 1 + min(churn
    / n, sqrt(2) - 1).
    """
    gain = min(churn / len(grid), math.sqrt(2) - 1)
    nodes = grid.nodes
    raised = [_raise(grid, node, gain, churn_min, churn_max) for node in nodes[:-1]]
    rows = []
    for k, (now, new) in enumerate(zip(raised, nodes[1:], strict=True)):
        rows += [denoise_to_data(now)] if new.is_data else _heun_step(now, new)
        if k + 1 < len(raised):
            rows[-1] = _churned(rows[-1], new, raised[k + 1], churn_noise)
    first = _churned(Row(nodes[0], e=linear(e=1.0)), nodes[0], raised[0], churn_noise)
    return make_table(rows, nodes[-1], start=(first.e[0], first.e[NOISE]))


def _velocity(node: Node) -> tuple[float, float]:
    """p and q of equation (1)."""
    p = node.dsigma / node.sigma
    return p, node.dalpha - node.alpha * p


def _heun_step(now: Node, new: Node) -> list[Row]:
    h = new.t - now.t
    (p, q), (p2, q2) = _velocity(now), _velocity(new)
    predict = Row(now, e=linear(e=1 + h * p, m=(h * q,)), b=linear(e=1.0))
    half = 0.5 * h
    correct = Row(new, e=linear(b=1 + half * p, e=half * p2, m=(half * q2, half * q)))
    return [predict, correct]


def _raise(grid: Grid, node: Node, gain: float, low: float, high: float) -> Node:
    """The node at (1 + gain) times this node's noise level, if that is within the bounds."""
    if gain == 0 or node.alpha == 0 or not low <= node.sigma / node.alpha <= high:
        return node
    t = grid.process.host_when([node.alpha], [node.sigma * (1 + gain)])
    return nodes_at(grid.process, t)[0]


def _churned(row: Row, node: Node, raised: Node, churn_noise: float) -> Row:
    """A row whose result, at `node`, is scaled and noised to be at `raised`."""
    if raised is node:
        return row
    scale = raised.alpha / node.alpha
    added = math.sqrt(raised.sigma**2 - (scale * node.sigma) ** 2)
    update = row.e * scale
    update[NOISE] = np.hypot(update[NOISE], churn_noise * added)
    return row._replace(e=update, over=OFF_PATH)
