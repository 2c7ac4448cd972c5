"""The probability-flow ODE between two marginals, integrated to near machine precision on the host.

With theta = atan2(sigma, alpha) and u = x / sqrt(alpha^2 + sigma^2), every process walks the same
curve: x_t = alpha x0_hat + sigma eps gives

    du / dtheta = cos(theta) eps(u) - sin(theta) x0_hat(u),

both evaluated at (alpha, sigma) = (cos theta, sin theta). So the map from one marginal to another
does not depend on the schedule in between, and the angle runs over a bounded range for VP, VE and
flow matching alike.
"""

from collections.abc import Callable

import numpy as np
from scipy.integrate import solve_ivp

# The integrator controls the error averaged over what it integrates at once: few points, so that an
# easy majority cannot hide a hard one.
_POINTS_AT_ONCE = 16


def integrate_flow(means: Callable, x: np.ndarray, start: tuple, end: tuple) -> np.ndarray:
    """x [b, d] carried from `start` to `end`, both (alpha, sigma).

    `means(u, alpha, sigma, index)` gives (x0_hat, eps), both [n, d], for points number `index` [n].
    """
    chunks = np.split(np.arange(len(x)), range(_POINTS_AT_ONCE, len(x), _POINTS_AT_ONCE))
    return np.concatenate([_integrate(means, x[index], index, start, end) for index in chunks])


def _integrate(means, x, index, start, end) -> np.ndarray:
    def slope(theta, u):
        alpha, sigma = np.cos(theta), np.sin(theta)
        x0_hat, eps = means(u.reshape(x.shape), alpha, sigma, index)
        return (alpha * eps - sigma * x0_hat).ravel()

    (alpha0, sigma0), (alpha1, sigma1) = start, end
    span = np.arctan2(sigma0, alpha0), np.arctan2(sigma1, alpha1)
    u = x.ravel() / np.hypot(alpha0, sigma0)
    if x.size:
        result = solve_ivp(slope, span, u, method="DOP853", rtol=1e-13, atol=1e-14)
        if not result.success:
            raise ArithmeticError(f"probability flow from {start} to {end}: {result.message}")
        u = result.y[:, -1]
    return u.reshape(x.shape) * np.hypot(alpha1, sigma1)
