"""What takes noise to samples: a table, two tables with learned variance, or an adaptive solver.

A solver of the first two kinds is a function of a grid. An adaptive solver places its own steps, so
it needs two times in the place of a grid; it is a function like `adaptive_ode`,

    solve(denoise, process, x, *, t_start, t_end, to_data, cond, ...) -> Adaptive,

whose first argument tells it from the others. All three become a pytree of numbers, `Program`, that
a compiled function takes as an argument: no table of equal length compiles again, and no tolerance.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scorediff.diffusion.process import Process
from scorediff.errors import UserError
from scorediff.solvers.learned_variance import VarianceTables
from scorediff.solvers.sample import prior_noise, sample_prior
from scorediff.solvers.step_control import Adaptive
from scorediff.solvers.table import StepTable
from scorediff.types import Array, Cond, DenoiseFn, Key

ENDS = ("t_start", "t_end", "to_data", "cond")  # of an adaptive solver: whoever runs it gives them
_TOLERANCES = ("rtol", "atol")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("tolerances",),
    meta_fields=("solve", "options", "process", "t_start", "t_end", "to_data"),
)
@dataclass(frozen=True, kw_only=True)
class Driver:
    """An adaptive solver with its options, between two times; `make_driver` makes and checks it.

    to_data: ends with x0_hat at t_end, one more evaluation. tolerances: rtol and atol, by name.
    """

    solve: Callable[..., Adaptive]
    options: tuple[tuple[str, Any], ...]
    process: Process
    t_start: float
    t_end: float
    to_data: bool
    tolerances: Mapping[str, float]

    def __call__(self, denoise: DenoiseFn, x: Array, *, cond: Cond = None) -> Adaptive:
        """From x [b, *d] at t_start; what did not arrive is NaN (`step_control.check_finished`)."""
        return self.solve(
            denoise,
            self.process,
            x,
            t_start=self.t_start,
            t_end=self.t_end,
            to_data=self.to_data,
            cond=cond,
            **dict(self.options),
            **self.tolerances,
        )


Program = StepTable | VarianceTables | Driver


def is_adaptive(solver: Callable) -> bool:
    """Whether a solver takes a denoiser, and not a grid."""
    return next(iter(inspect.signature(solver).parameters), None) == "denoise"


def make_driver(
    solver: Callable,
    process: Process,
    *,
    t_start: float | None = None,
    t_end: float | None = None,
    to_data: bool = True,
) -> Driver:
    """An adaptive solver, perhaps with options bound to it, from t_start (t_max) to t_end (t_min).

    Raises UserError for options that the solver refuses or that are not its own to choose.
    """
    bound = solver.keywords if isinstance(solver, functools.partial) else {}
    given = {name: p.default for name, p in inspect.signature(solver).parameters.items()}
    taken = [name for name in ENDS if bound.get(name)]
    if taken:
        raise UserError(f"{taken[0]} of an adaptive solver is that of the sampling; set it there")
    driver = Driver(
        solve=solver.func if isinstance(solver, functools.partial) else solver,
        options=tuple(sorted((k, v) for k, v in bound.items() if k not in (*ENDS, *_TOLERANCES))),
        process=process,
        t_start=process.t_max if t_start is None else t_start,
        t_end=process.t_min if t_end is None else t_end,
        to_data=to_data,
        tolerances={name: given[name] for name in _TOLERANCES if name in given},
    )
    # A trial without numbers, on a denoiser that costs nothing: the solver sees what it is given.
    jax.eval_shape(lambda x: driver(lambda x, t, cond: x, x), jnp.zeros((1, 1)))
    return driver


def prior(program: Program, keys: Key, shape: tuple[int, ...]) -> Array:
    """What a program starts from, [b, *shape] float32; see `sample_prior`."""
    if isinstance(program, Driver):
        sigma = program.process.host(np.array([program.t_start])).sigma[0]
        return prior_noise(sigma, keys, shape)
    return sample_prior(_one(program), keys, shape)


def times(program: Program) -> np.ndarray:
    """The times at which a program evaluates the network, or both ends of them."""
    if isinstance(program, Driver):
        return np.array([program.t_start, program.t_end])
    return _one(program).t[:-1]


def rows(program: Program) -> int | None:
    """The number of evaluations of the guided denoiser that is known before; None if it is not."""
    return None if isinstance(program, Driver) else _one(program).nfe


def _one(program: StepTable | VarianceTables) -> StepTable:
    return program.small if isinstance(program, VarianceTables) else program
