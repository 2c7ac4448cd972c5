"""Every table solver by name, with the evaluations that a step costs: for tests of them all."""

from functools import partial

from scorediff import solvers
from scorediff.solvers import reverse_sde

ROWS = 12  # divisible by 1, 2, 3 and 4 evaluations a step

DETERMINISTIC = {
    "ddim": (solvers.ddim, 1),
    "euler": (solvers.euler, 1),
    "euler straight": (partial(solvers.euler, frame="straight"), 1),
    "midpoint": (solvers.midpoint, 2),
    "heun": (solvers.heun, 2),
    "heun 2/3": (partial(solvers.heun, alpha=2 / 3), 2),
    "heun straight": (partial(solvers.heun, frame="straight"), 2),
    "rk3": (solvers.rk3, 3),
    "rk4": (solvers.rk4, 4),
    "dpm2": (solvers.dpm2, 2),
    "dpmpp 1": (partial(solvers.dpmpp_multistep, order=1), 1),
    "dpmpp 2": (solvers.dpmpp_multistep, 1),
    "dpmpp 2 taylor": (partial(solvers.dpmpp_multistep, form="taylor"), 1),
    "dpmpp 3": (partial(solvers.dpmpp_multistep, order=3), 1),
    "dpmpp 3 published": (
        partial(solvers.dpmpp_multistep, order=3, third_order="published"),
        1,
    ),
    "dpm 2": (solvers.dpm_multistep, 1),
    "dpm 3": (partial(solvers.dpm_multistep, order=3), 1),
    "dpmpp 2S": (partial(solvers.dpm_singlestep, order=2), 2),
    "dpmpp 3S": (partial(solvers.dpm_singlestep, order=3), 3),
    "dpm 3S": (partial(solvers.dpm_singlestep, order=3, prediction="eps"), 3),
    "dpmpp fast": (solvers.dpm_singlestep_mixed, 1),
    "unipc 1": (partial(solvers.unipc, order=1), 1),
    "unipc 2 bh1": (partial(solvers.unipc, order=2, variant="bh1"), 1),
    "unipc 3": (solvers.unipc, 1),
    "unipc 4": (partial(solvers.unipc, order=4), 1),
    "unipc 3 vary": (partial(solvers.unipc, variant="vary_coeff"), 1),
    "unipc 2 eps": (partial(solvers.unipc, order=2, prediction="eps"), 1),
    "lms": (solvers.lms, 1),
    "deis t": (solvers.deis, 1),
    "deis rho": (partial(solvers.deis, variable="rho"), 1),
    "deis log rho": (partial(solvers.deis, variable="log_rho"), 1),
    "ipndm": (solvers.ipndm, 1),
    "sa ode": (partial(solvers.sa_solver, tau=0.0), 1),
}
STOCHASTIC = {
    "ddim eta 0.5": (partial(solvers.ddim, eta=0.5), 1),
    "ancestral": (solvers.ancestral, 1),
    "ancestral large": (partial(solvers.ancestral, variance="large"), 1),
    "euler ancestral": (solvers.euler_ancestral, 1),
    "euler-maruyama": (solvers.euler_maruyama, 1),
    "reverse diffusion": (solvers.reverse_diffusion, 1),
    "heun churned": (partial(solvers.heun, churn=3.0), 2),
    "dpm2 ancestral": (solvers.dpm2_ancestral, 2),
    "2S ancestral": (solvers.dpmpp_2s_ancestral, 2),
    "dpmpp sde": (solvers.dpmpp_sde, 2),
    "dpmpp 2M sde": (partial(solvers.dpmpp_multistep, eta=1.0), 1),
    "dpmpp 3M sde": (partial(solvers.dpmpp_multistep, order=3, eta=1.0), 1),
    "sa": (solvers.sa_solver, 1),
    "flow sde": (partial(solvers.flow_sde, diffusion=reverse_sde.proportional_to_sigma), 1),
    "flow stochastic": (solvers.flow_stochastic, 1),
}
ALL = DETERMINISTIC | STOCHASTIC


def table_of(name, process, spacing, rows=ROWS, **ends):
    """The named solver's table with exactly this many rows, which ends in noise (not data)."""
    solver, cost = ALL[name]
    return solver(solvers.make_grid(process, spacing, rows // cost, to_data=False, **ends))
