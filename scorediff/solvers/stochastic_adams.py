"""SA-Solver: an Adams predictor and corrector for the reverse SDE of any noise strength.

Xue et al., arXiv 2309.05019, sample dx = [f x - (1 + tau^2)/2 g^2 score] dt + tau g dw, whose
marginals do not depend on tau. With x0_hat its exact solution is equation (1) of `exponential` with
eta = tau^2 (their section 4). The predictor puts a polynomial through the last values, the
corrector one that includes the value at the predicted point, which the next step needs anyhow; both
use the same noise (their algorithm 1).
"""

from collections.abc import Callable

from scorediff.errors import UserError
from scorediff.solvers.exponential import Scheme, Step, data_step, multistep, step_orders
from scorediff.solvers.grid import Grid, Node
from scorediff.solvers.table import HISTORY, StepTable

Strength = float | Callable[[float], float]


def sa_solver(
    grid: Grid,
    *,
    tau: Strength = 1.0,
    predictor_order: int = 3,
    corrector_order: int = 3,
    lower_order_final: bool = True,
    noise_scale: float = 1.0,
) -> StepTable:
    """SA-Solver, one evaluation a step (Xue et al., arXiv 2309.05019, algorithm 1).

    tau: strength of the noise: 0 is the ODE, 1 the standard reverse SDE; or a function of the noise
      level sigma/alpha, held at its value at each step's start, such as the paper's, which is 0
      outside of an interval (see `noisy_between`).
    predictor_order, corrector_order: values that each uses, 1 to 4 and 0 to 5; the corrector's
      include the new one, and 0 is no corrector. Both warm up, and with `lower_order_final` fall to
      1 towards the end; the last step is not corrected.
    """
    solver = "sa_solver"
    if corrector_order not in range(HISTORY + 1):
        raise UserError(f"{solver}: corrector_order must be 0 to {HISTORY}, got {corrector_order}")
    ahead = step_orders(
        solver, grid, order=predictor_order, highest=4, lower_order_final=lower_order_final
    )
    n = len(grid)
    back = [min(corrector_order, k + 2, n - k if lower_order_final else n) for k in range(n)]

    def advance(now: Node, new: Node) -> Step:
        step = data_step(now, new, eta=_strength(solver, tau, now) ** 2)
        return step._replace(noise=noise_scale * step.noise)

    return multistep(grid, Scheme(advance=advance), ahead, back if corrector_order else None)


def noisy_between(low: float, high: float, *, tau: float = 1.0) -> Callable[[float], float]:
    """tau where the noise level sigma/alpha is within [low, high], 0 elsewhere, as in the paper."""
    return lambda level: tau if low <= level <= high else 0.0


def _strength(solver: str, tau: Strength, now: Node) -> float:
    level = now.sigma / now.alpha if now.alpha else float("inf")
    value = tau(level) if callable(tau) else tau
    if value < 0:
        raise UserError(f"{solver}: tau must be at least 0, got {value} at sigma/alpha={level:g}")
    return value
