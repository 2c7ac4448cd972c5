"""wl-zhao/UniPC: bh1, bh2 and vary_coeff, on x0_hat and on eps_hat."""

from scorediff.solvers.table import join
from scorediff.solvers.unipc import unipc
from tests.solver_vectors.dpm_solver import to_data
from tests.solver_vectors.replay import VP, Recorded, Replayed, recorded_grid, run_table


def replay(run: dict, file: Recorded) -> Replayed:
    grid = recorded_grid(file.arrays[run["grid"]], VP)  # the nodes are all that a multistep needs
    variant = run["variant"]
    table = unipc(
        grid,
        order=run["order"],
        variant="vary_coeff_published" if variant == "vary_coeff" else variant,
        prediction="x0" if run["alg"] == "data_prediction" else "eps",
        lower_order_final=run["lower_order_final"],
    )
    if run["denoise_to_zero"]:
        table = join(table, to_data(grid))
    bed = file.bed(run)
    return run_table(table, bed, bed.z)
