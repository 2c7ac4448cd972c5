"""Ancestral solvers: an ODE step to a lower noise level, then fresh noise back up to the new one.

In the frame y = x / alpha every process is y = x0 + s eps with s = sigma / alpha, and a step from s
to s' splits into (Song et al., arXiv 2010.02502, eq. 16, with eta = 1 the posterior's variance)

    s_up = min(s', eta s' sqrt(1 - r^2)),    s_down = sqrt(s'^2 - s_up^2),    r = s' / s.       (1)

The ODE dy/ds = (y - x0_hat) / s takes y to s_down, and y' = y_down + s_up z. With x0_hat held, the
ODE is solved exactly by

    y_down = (s_down / s) y + (1 - s_down / s) x0_hat.                                          (2)

In x this reads x' = (u sigma'/sigma) x + (alpha' - u sigma' alpha/sigma) x0_hat with u = s_down /
s', finite at alpha = 0 too. eta = 0 is the ODE; the step to data takes x0_hat. `noise_scale` (the
s_noise of k-diffusion, where these solvers come from) multiplies the noise.
"""

import math
from collections.abc import Callable

import numpy as np

from scorediff.errors import UserError
from scorediff.solvers.ddim import posterior_sigma
from scorediff.solvers.grid import Grid, Node, nodes_at
from scorediff.solvers.table import Row, StepTable, denoise_to_data, keep_eps, linear, make_table


def euler_ancestral(grid: Grid, *, eta: float = 1.0, noise_scale: float = 1.0) -> StepTable:
    """Equations (1) and (2): one evaluation a step; DDIM's own eta in every frame.

    eta may exceed 1 (more noise than the posterior's), until s_up reaches s' and x' is x0_hat
    noised afresh.
    """
    _check(eta)

    def step(now: Node, new: Node) -> Row:
        if new.is_data:
            return denoise_to_data(now)
        up, down = _split(now, new, eta)
        toward_x, toward_x0 = _toward(now, new, down)
        return Row(now, e=linear(e=toward_x, m=(toward_x0,), z=noise_scale * up * new.sigma))

    return make_table([step(*nodes) for nodes in grid.steps()], grid.nodes[-1])


def dpm2_ancestral(grid: Grid, *, eta: float = 1.0, noise_scale: float = 1.0) -> StepTable:
    """`dpm2` in the frame y down to s_down, then noise; two evaluations a step.

    k-diffusion's DPM2 a. The inner node is the middle of the way to s_down in log s.
    """

    def step(now: Node, middle: Node, new: Node, up: float, down: float) -> list[Row]:
        s, s_middle = _level(now), _level(middle)
        half, whole = s_middle - s, down * _level(new) - s
        first = linear(e=middle.alpha / now.alpha, m=(middle.alpha * half,))
        noise = noise_scale * up * new.sigma
        last = linear(b=new.alpha / now.alpha, m=(new.alpha * whole,), z=noise)
        return [
            Row(now, e=first, b=linear(e=1.0), keep=keep_eps(now)),
            Row(middle, e=last, keep=keep_eps(middle), over=(now, new)),
        ]

    return _two_stage(grid, "dpm2_ancestral", step, eta, noise_scale)


def dpmpp_2s_ancestral(grid: Grid, *, eta: float = 1.0, noise_scale: float = 1.0) -> StepTable:
    """DPM-Solver++(2S) (arXiv 2211.01095, algorithm 1, r = 1/2) to s_down, then noise.

    k-diffusion's DPM++ 2S a; two evaluations a step. Equation (2) leads to the middle in log s, and
    x0_hat from there makes the whole step.
    """

    def step(now: Node, middle: Node, new: Node, up: float, down: float) -> list[Row]:
        toward_x, toward_x0 = _toward(now, middle, 1.0)
        inner = Row(now, e=linear(e=toward_x, m=(toward_x0,)), b=linear(e=1.0))
        toward_x, toward_x0 = _toward(now, new, down)
        last = linear(b=toward_x, m=(toward_x0,), z=noise_scale * up * new.sigma)
        return [inner, Row(middle, e=last, over=(now, new))]

    return _two_stage(grid, "dpmpp_2s_ancestral", step, eta, noise_scale)


def dpmpp_sde(
    grid: Grid,
    *,
    r: float = 0.5,
    eta: float = 1.0,
    noise_scale: float = 1.0,
    independent: bool = False,
) -> StepTable:
    """An ancestral step to an inner node, whose x0_hat then serves the whole ancestral step.

    k-diffusion's DPM++ SDE (after arXiv 2211.01095, section 5); two evaluations a step, the second
    at the fraction r of the step in log s. The whole step extrapolates x0_hat linearly:
    (1 - 1/(2r)) x0_hat_1 + x0_hat_2 / (2r).

    Both rows have noise: z1 to the inner node, z2 for the whole step. The two are increments of
    one Brownian motion in s that overlap, so they correlate, z2 = rho z1 + sqrt(1 - rho^2) z, with
    rho^2 = (s - s_inner) / (s - s'). `independent=True` draws them separately, which is much less
    accurate, except on a noise source whose own increments overlap (`noise.brownian_path`).
    """
    if not 0 < r <= 1:
        raise UserError(f"dpmpp_sde: r must be in (0, 1], got {r}")
    _check(eta)
    steps = _noisy_steps(grid, "dpmpp_sde")
    inner = _nodes_at_levels(grid, [_level(a) ** (1 - r) * _level(b) ** r for a, b in steps])
    near = 0.5 / r
    rows = []
    for (now, new), middle in zip(steps, inner, strict=True):
        up, down = _split(now, middle, eta)
        toward_x, toward_x0 = _toward(now, middle, down)
        to_middle = linear(e=toward_x, m=(toward_x0,), z=noise_scale * up * middle.sigma)
        up, down = _split(now, new, eta)
        toward_x, toward_x0 = _toward(now, new, down)
        noise = noise_scale * up * new.sigma
        rho = 0.0 if independent else _correlation(now, middle, new)
        # b becomes what x and z1 contribute to the new state; z of the second row is fresh
        rows.append(Row(now, e=to_middle, b=linear(e=toward_x, z=rho * noise)))
        weights = (near * toward_x0, (1 - near) * toward_x0)
        whole = linear(b=1.0, m=weights, z=math.sqrt(1 - rho**2) * noise)
        rows.append(Row(middle, e=whole, over=(now, new) if independent else (middle, new)))
    return _finished(grid, rows)


_Step = Callable[[Node, Node, Node, float, float], list[Row]]


def _two_stage(grid: Grid, name: str, step: _Step, eta: float, noise_scale: float) -> StepTable:
    """step(now, middle, new, up, down) for every step; the middle halves log s down to s_down."""
    _check(eta)
    steps = _noisy_steps(grid, name)
    splits = [_split(now, new, eta) for now, new in steps]
    levels = [
        math.sqrt(_level(now) * down * _level(new))
        for (now, new), (_, down) in zip(steps, splits, strict=True)
    ]
    middles = _nodes_at_levels(grid, levels)
    rows = []
    for (now, new), (up, down), middle in zip(steps, splits, middles, strict=True):
        if down == 0:  # eta > 1: x0_hat, noised afresh
            rows.append(Row(now, e=linear(m=(new.alpha,), z=noise_scale * new.sigma)))
        else:
            rows += step(now, middle, new, up, down)
    return _finished(grid, rows)


def _split(now: Node, new: Node, eta: float) -> tuple[float, float]:
    """s_up and s_down of equation (1), in units of s'."""
    up = min(1.0, eta * posterior_sigma(now, new) / new.sigma)
    return up, math.sqrt(1 - up**2)


def _toward(now: Node, new: Node, down: float) -> tuple[float, float]:
    """Equation (2) in x: the weights of x and x0_hat in a step to s_down, scaled by alpha'."""
    toward_x = down * new.sigma / now.sigma
    return toward_x, new.alpha - toward_x * now.alpha


def _correlation(now: Node, inner: Node, new: Node) -> float:
    """rho of a Brownian motion's increments over now -> inner and now -> new."""
    return math.sqrt((_level(now) - _level(inner)) / (_level(now) - _level(new)))


def _level(node: Node) -> float:
    return node.sigma / node.alpha


def _noisy_steps(grid: Grid, name: str) -> list[tuple[Node, Node]]:
    """All steps but the one to data, which need sigma/alpha to be finite."""
    steps = [(now, new) for now, new in grid.steps() if not new.is_data]
    if grid.nodes[0].alpha < 1e-10:
        raise UserError(
            f"{name} needs alpha > 0, but alpha = 0 at t={grid.nodes[0].t:g}, where sigma/alpha is "
            "infinite; start at a smaller t_start, or use euler_ancestral"
        )
    return steps


def _nodes_at_levels(grid: Grid, levels: list[float]) -> tuple[Node, ...]:
    """The process where sigma/alpha has these values."""
    if not levels:
        return ()
    return nodes_at(grid.process, grid.process.host_when(np.ones(len(levels)), np.array(levels)))


def _finished(grid: Grid, rows: list[Row]) -> StepTable:
    """The rows and, where the grid ends in data, its last step."""
    last = [denoise_to_data(grid.nodes[-2])] if grid.nodes[-1].is_data else []
    return make_table([*rows, *last], grid.nodes[-1])


def _check(eta: float) -> None:
    if not eta >= 0:
        raise UserError(f"eta must not be negative, got {eta}")
