"""Adaptive integration of the probability-flow ODE; `ode_solve` is the solve itself.

The ODE is equation (2) of `process`, dx/dt = alpha' x0_hat + sigma' eps_hat with eps_hat = (x -
alpha x0_hat) / sigma, which is finite where alpha = 0. At sigma = 0, where x is data and tells
nothing about the noise, E[eps | x] = 0 for every distribution that has a density.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import jax.numpy as jnp

from scorediff.diffusion.process import Process
from scorediff.errors import UserError, check_choice
from scorediff.solvers.step_control import (
    RUNGE_KUTTA_RULES,
    Adaptive,
    check_options,
    denoised,
    solve_samples,
)
from scorediff.types import Array, Cond, DenoiseFn

Field = Callable[[Any, Array, Cond], Any]
Pair = Literal["dopri5", "tsit5", "bosh3", "dopri8"]
Control = Literal["standard", "scipy", "torchdiffeq"]


def adaptive_ode(
    denoise: DenoiseFn,
    process: Process,
    x: Array,
    *,
    t_start: float | None = None,
    t_end: float | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    solver: Pair = "dopri5",
    control: Control = "standard",
    coupled: bool = False,
    to_data: bool = False,
    cond: Cond = None,
    max_evaluations: int = 10_000,
) -> Adaptive:
    """Carry x [b, *d] along the probability-flow ODE from t_start to t_end, up or down in t.

    The ends default to the process's t_max and t_min. By default each sample has its own steps, so
    it does not depend on the batch; with `coupled` the batch has one step size, from the error over
    all of it, which is what scipy and torchdiffeq do with a batch. `to_data` ends with one more
    evaluation, x0_hat at t_end.

    control: "standard"; or as "scipy" (its RK45) or "torchdiffeq" (its dopri5, which steps past
    t_end and interpolates) do, with solver="dopri5" and coupled=True.

    Song et al., arXiv 2011.13456, section 4.3. Raises UserError for options that make no sense;
    samples that need more than max_evaluations come back as NaN (`step_control.check_finished`).
    """
    t_start = process.t_max if t_start is None else t_start
    t_end = process.t_min if t_end is None else t_end
    if to_data and not t_end < t_start:
        raise UserError(
            f"adaptive_ode: to_data needs t_end < t_start, got t_start={t_start}, t_end={t_end}"
        )
    out = integrate(
        probability_flow(denoise, process),
        x,
        t_start=t_start,
        t_end=t_end,
        rtol=rtol,
        atol=atol,
        solver=solver,
        control=control,
        coupled=coupled,
        cond=cond,
        max_evaluations=max_evaluations,
    )
    return denoised(denoise, out, t_end, cond) if to_data else out


def probability_flow(denoise: DenoiseFn, process: Process) -> Field:
    """dx/dt of the probability-flow ODE as a function of (x [b, *d], t [b] or [], cond)."""

    def slope(x: Array, t: Array, cond: Cond) -> Array:
        m = process(t).expand(x)
        x0_hat = denoise(x, t, cond)
        at_data = m.sigma == 0
        eps_hat = (x - m.alpha * x0_hat) / jnp.where(at_data, 1.0, m.sigma)
        return m.dalpha * x0_hat + m.dsigma * jnp.where(at_data, 0.0, eps_hat)

    return slope


def integrate(
    field: Field,
    x: Any,
    *,
    t_start: float,
    t_end: float,
    rtol: float,
    atol: float,
    solver: Pair = "dopri5",
    control: Control = "standard",
    coupled: bool = False,
    cond: Cond = None,
    max_evaluations: int = 10_000,
) -> Adaptive:
    """Integrate dx/dt = field(x, t, cond) for any pytree x whose leaves are [b, ...].

    For an ODE that carries more than the state, as a likelihood does. Options as in `adaptive_ode`.
    `field` sees batches: [1, ...] where each sample has its own steps (they are vmapped), else all.
    """
    check_options("adaptive_ode", rtol=rtol, atol=atol, max_evaluations=max_evaluations)
    check_choice("adaptive_ode: solver", solver, get_args(Pair))
    check_choice("adaptive_ode: control", control, tuple(RUNGE_KUTTA_RULES))
    if control != "standard" and solver != "dopri5":
        raise UserError(f"adaptive_ode: control={control!r} needs solver='dopri5', got {solver!r}")
    if t_start == t_end:
        raise UserError(f"adaptive_ode: t_start and t_end must differ, both are {t_start}")
    from scorediff.solvers.ode_solve import PAIRS, Solve  # see there

    solve = Solve(
        field=field,
        pair=PAIRS[solver](),
        rule=RUNGE_KUTTA_RULES[control],
        t_start=t_start,
        t_end=t_end,
        rtol=rtol,
        atol=atol,
        max_evaluations=max_evaluations,
    )
    return solve_samples(solve, x, cond, coupled=coupled)
