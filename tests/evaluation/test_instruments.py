"""The instruments for solvers, on beds whose flow is known: orders, comparison, search."""

import csv
import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import solvers as command
from scorediff.diffusion import VPLinear
from scorediff.diffusion.guidance import classifier_free
from scorediff.errors import UserError
from scorediff.evaluation import solver_names as names
from scorediff.evaluation.solver_bench import (
    BEDS,
    HAND_MADE,
    SPACINGS,
    Bench,
    Model,
    bed_model,
    reference_table,
)
from scorediff.evaluation.solver_compare import compare, save_rows, text_table
from scorediff.evaluation.solver_order import measure_orders, nominal_order, weak_error
from scorediff.evaluation.solver_search import FOR_BEDS, Effort, search
from scorediff.evaluation.table_numbers import numbers_of, table_of
from scorediff.evaluation.table_search import (
    Problem,
    least_squares,
    quasi_newton,
    rms,
    samples,
)
from scorediff.solvers import Sampler, ancestral, ddim, dpmpp_multistep, logsnr, quadratic
from scorediff.solvers.found import found, read
from scorediff.solvers.table import in_one_register

pytestmark = pytest.mark.slow  # compilation; make test has no minute left for it

PROCESS = VPLinear()


def bed_bench(nfe=200):
    return Bench(bed_model("A", PROCESS), rows=nfe, batch=512)


@pytest.fixture(scope="module")
def bench():
    return bed_bench()


def test_names_become_functions_with_their_options():
    made = names.parse_solvers("ddim, dpmpp_multistep:order=3:lower_order_final=false")
    assert list(made) == ["ddim", "dpmpp_multistep:order=3:lower_order_final=false"]
    assert made["ddim"] is ddim
    assert made.popitem()[1].keywords == {"order": 3, "lower_order_final": False}
    (spacing,) = names.parse_spacings("karras:rho=5").values()
    assert spacing.keywords == {"rho": 5.0}
    (process,) = names.parse_processes("VPLinear:beta_max=15").values()
    assert process == VPLinear(beta_max=15.0)


def test_an_option_that_is_a_tuple_keeps_its_commas():
    made = names.parse_solvers("dpm_singlestep:orders=(2,1),ddim")
    assert list(made) == ["dpm_singlestep:orders=(2,1)", "ddim"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dimm", "no solver is called 'dimm'; did you mean ddim"),
        ("", "no solver is named"),
        ("ddim:order=3", "ddim:order=3: no option 'order'"),
        ("dpmpp_multistep:order", "no option"),
        ("dpmpp_multistep:order=two", "order expects int, got 'two'"),
        ("dpmpp_multistep:order=__import__('os')", "order expects int"),
        ("found", "no solver is called 'found'"),
        ("Sampler", "no solver is called 'Sampler'"),
    ],
)
def test_a_name_that_is_no_solver_is_one_clear_line(text, message):
    with pytest.raises(UserError, match=message):
        names.parse_solvers(text)


def test_every_hand_made_solver_and_spacing_exists_and_carries_its_options():
    assert len(names.parse_solvers(HAND_MADE)) > 20
    assert set(names.parse_spacings(SPACINGS)) >= {
        "uniform",
        "quadratic",
        "logsnr",
        "karras",
        "beta",
    }


def test_measured_orders_are_those_of_the_papers(x64):
    text = "ddim,dpmpp_multistep:order=2,dpmpp_multistep:order=3:lower_order_final=false"
    solvers, grids = names.parse_solvers(text), {"logsnr": logsnr}
    curves = list(measure_orders("A", solvers, grids, {"VP": PROCESS}, (64, 128, 256), points=16))
    assert [curve.nominal for curve in curves] == [1, 2, 3]
    for curve in curves:
        # 16 points at steps of 0.03 to 0.1 in log(alpha/sigma): next powers of the step still show
        assert curve.slope == pytest.approx(curve.nominal, abs=0.35)
        assert curve.kind == "flow"


def test_a_last_step_of_first_order_limits_the_order_to_two():
    assert nominal_order(functools.partial(dpmpp_multistep, order=3)) == 2


def test_the_weak_error_of_a_noisy_solver_falls_with_its_order():
    """Ancestral sampling is of first order in distribution."""
    (curve,) = measure_orders(
        "B", {"ancestral": ancestral}, {"logsnr": logsnr}, {"VP": PROCESS}, (64, 128, 256)
    )
    assert (curve.kind, curve.nominal) == ("weak", None)
    assert curve.slope == pytest.approx(1, abs=0.1)


def test_noise_on_a_mixture_is_refused_since_no_moments_are_known_there():
    table = Sampler(solver=ancestral, nfe=4).table(PROCESS)
    with pytest.raises(UserError, match="--bed=B"):
        weak_error("A", table)


def test_a_bench_takes_noise_where_the_exact_flow_does(bench):
    reference = reference_table(PROCESS, 200)
    problem = bench.problem(reference, 8, seed=0)
    last = PROCESS.host(np.array([PROCESS.t_max]))
    start = (float(last.alpha[0]), float(last.sigma[0]))
    exact = BEDS["A"].flow(np.asarray(problem.x), start, (1.0, 0.0))
    assert rms(problem.target, exact) < 2e-3  # x0_hat at t_min stands for the flow's last bit


def test_a_table_as_numbers_of_a_search_is_still_that_table(bench):
    """Within the range of noise levels that a search lets it have."""
    sampler = Sampler(solver=dpmpp_multistep, grid=quadratic, nfe=5, t_start=0.9, t_end=0.05)
    table = in_one_register(sampler.table(PROCESS))
    again = table_of(numbers_of(table, PROCESS), PROCESS)
    for name in ("alpha", "sigma", "e", "b", "keep"):
        # t is found from float32 log(alpha/sigma) here
        np.testing.assert_allclose(getattr(again, name), getattr(table, name), rtol=1e-4)
    assert again.sigma[0] / again.start[0] == pytest.approx(
        float(PROCESS.host(np.array([1.0])).sigma[0])
    )


def short_problem(bench):
    """64 noises, and where to start."""
    table = Sampler(solver=dpmpp_multistep, grid=quadratic, nfe=3).table(PROCESS)
    problem = bench.problem(reference_table(PROCESS, 200), 64, seed=0)
    return numbers_of(table, PROCESS), problem


def test_least_squares_only_ever_improve_and_start_with_the_hand_made_table(bench):
    (numbers, problem), denoise = short_problem(bench), bench.model.denoise
    path = list(least_squares(denoise, PROCESS, numbers, problem, steps=6))
    errors = [at.error for at in path]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.9 * errors[0]
    here = samples(denoise, table_of(path[-1].numbers, PROCESS), problem)
    assert rms(here, problem.target) == pytest.approx(errors[-1], rel=1e-2)


def test_quasi_newton_steps_only_ever_improve_from_where_least_squares_stopped(bench):
    (numbers, problem), path = short_problem(bench), []
    denoise = bench.model.denoise
    *_, first = least_squares(denoise, PROCESS, numbers, problem, steps=4)
    last = quasi_newton(denoise, PROCESS, first.numbers, problem, steps=12, seen=path.append)
    assert [at.steps for at in path] == list(range(1, len(path) + 1))
    errors = [first.error, *(at.error for at in path)]
    assert errors == sorted(errors, reverse=True)
    assert last.error == errors[-1] < errors[0]
    here = samples(denoise, table_of(last.numbers, PROCESS), problem)
    assert rms(here, problem.target) == pytest.approx(last.error, rel=1e-2)


def test_samples_of_twice_the_weight_count_as_two(bench):
    """Half of them, with the others left out or without weight, are one problem."""
    (numbers, problem), denoise = short_problem(bench), bench.model.denoise
    some = problem.part(0, 32)
    weight = jnp.where(jnp.arange(64) < 32, 2.0, 0.0)
    weighted = Problem(problem.x, problem.cond, problem.target, weight)
    left_out, without_weight = (
        list(least_squares(denoise, PROCESS, numbers, part, steps=1)) for part in (some, weighted)
    )
    for one, other in zip(left_out, without_weight, strict=True):
        assert one.error == pytest.approx(other.error, rel=1e-5)
        np.testing.assert_allclose(one.numbers.e, other.numbers.e, rtol=1e-3, atol=1e-4)
    half = rms(problem.x[:32], problem.target[:32])
    assert rms(problem.x, problem.target, weight) == pytest.approx(half, rel=1e-6)


EFFORT = Effort(
    fitted=8192,
    held_back=8192,
    few=512,
    tuned=0,
    drawn=60,
    population=10,
    rounds=4,
    starts=2,
    steps=10,
    kept=1,
    last_steps=20,
)


def test_a_short_search_beats_the_hand_made_solvers_and_its_table_is_kept(bench, tmp_path):
    solvers = names.parse_solvers("ddim,dpmpp_multistep:order=3")
    short = functools.partial(
        search,
        bench,
        reference_table(PROCESS, 200),
        solvers,
        {"quadratic": quadratic, "logsnr": logsnr},
        5,
        effort=EFFORT,
        say=lambda line: None,
    )
    outcome = short()
    assert outcome.gain > 2
    path = tmp_path / "best.json"
    path.write_text(outcome.found.to_json())
    table = Sampler(solver=functools.partial(found, path=str(path)), nfe=5).table(PROCESS)
    held_back = bench.problem(reference_table(PROCESS, 200), EFFORT.held_back, seed=1)
    assert bench.error(table, held_back) == pytest.approx(outcome.error, rel=1e-6)
    assert read(path).errors["found"] == outcome.error
    again = short(start=table)
    assert again.error <= outcome.error * 1.01  # on noises that it was not fitted to
    assert again.found.how["start"] == "an earlier table"


def test_a_search_with_nothing_to_beat_is_refused(bench):
    with pytest.raises(UserError, match="no solver without noise fits into nfe=5"):
        search(
            bench,
            reference_table(PROCESS, 200),
            names.parse_solvers("ancestral"),
            {"quadratic": quadratic},
            5,
            effort=Effort(fitted=64, few=64, tuned=0),
        )


def test_a_comparison_counts_guided_evaluations_and_compiles_once(tmp_path):
    bed = BEDS["A"]

    def denoise(x, t, cond):
        return classifier_free(bed.denoiser(PROCESS), null_cond={"label": 1}, scale=2.0)(x, t, cond)

    model = Model(denoise, PROCESS, (2,), lambda index: {"label": np.zeros(len(index), np.int32)})
    solvers = names.parse_solvers("ddim,dpmpp_multistep")
    rows = compare(model, solvers, {"quadratic": quadratic}, (5, 20), samples=32, reference=60)
    assert [(row.solver, row.rows) for row in rows] == [
        *(("ddim", 5), ("ddim", 20)),
        *(("dpmpp_multistep", 5), ("dpmpp_multistep", 20)),
    ]
    assert all(row.error < 0.5 for row in rows)
    errors = {(row.solver, row.rows): row.error for row in rows}
    assert errors["ddim", 20] < errors["ddim", 5]
    assert errors["dpmpp_multistep", 20] < errors["ddim", 20]
    assert text_table(rows).count("\n") == 2
    picture = save_rows(tmp_path, rows, title="bed A")
    assert Image.open(picture).size[0] > 500
    with open(tmp_path / "compare.csv", newline="") as file:
        assert [float(row["error"]) for row in csv.DictReader(file)] == [r.error for r in rows]


def test_solvers_with_noise_are_no_part_of_a_comparison_with_the_flow():
    model = bed_model("A", PROCESS)
    with pytest.raises(UserError, match="ancestral adds noise"):
        compare(model, {"ancestral": ancestral}, {"logsnr": logsnr}, (5,))


def test_a_bench_compiles_once_for_all_tables(bench):
    x = jnp.zeros((4, 2))
    for nfe in (3, 7):
        bench(Sampler(solver=ddim, nfe=nfe).table(PROCESS), x, None)
    assert bench._run._cache_size() == 1


def test_the_order_command_writes_its_table_its_numbers_and_its_picture(tmp_path, capsys):
    out = tmp_path / "orders"
    command.main(["order", "--bed=B", "--solvers=ddim", "--nfe=4,8", f"--out={out}"])
    assert "ddim on logsnr" in capsys.readouterr().out
    (curve,) = json.loads((out / "orders.json").read_text())
    assert curve["nfe"] == [4, 8]
    assert {path.name for path in out.iterdir()} == {"orders.csv", "orders.json", "orders.png"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "none of order, compare, search"),
        (["ordr"], "'ordr' is none of"),
        (["order", "--bed=C"], "the beds are A, B"),
        (["order", "--nfe=0"], "whole numbers from 1"),
        (["order", "--processes=VPLiner"], "did you mean VPLinear"),
        (["order", "--processes=VPLinear:beta_max=-1"], "beta_min"),
        (["search"], "either --workdir=FOLDER or --bed=A"),
        (["search", "--bed=A", "--nfe=many"], "whole numbers from 1"),
        (["search", "--bed=Z"], "the beds are A, B"),
        (["search", "--bed=A", "--start=/nowhere"], "/nowhere: No such file"),
        (["compare"], "--workdir=FOLDER is missing"),
        (["compare", "--workdir=/nowhere", "--spacings=even"], "no spacing is called"),
        (["compare", "--workdir=/nowhere"], "not a run folder"),
    ],
)
def test_what_a_user_mistypes_is_one_clear_line(argv, message):
    with pytest.raises(UserError, match=message):
        command.main(argv)


@pytest.mark.parametrize("nfe", [5, 8, 10])
def test_a_search_beats_every_hand_made_solver_twofold(nfe, x64):
    """Over all hand-made solvers, spacings and tuned ends, on noise that nothing was fitted to."""
    bench = Bench(bed_model("A", PROCESS), rows=200, batch=1024)
    outcome = search(
        bench,
        reference_table(VPLinear(t_min=1e-5), 200),
        names.parse_solvers(HAND_MADE),
        names.parse_spacings(SPACINGS),
        nfe,
        effort=FOR_BEDS,
    )
    assert outcome.gain > 2
