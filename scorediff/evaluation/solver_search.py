"""The search of a better table: levels are drawn, the best tables refined, and measured on new
noise beside the best hand-made solvers.

The comparison is honest since both sides choose on one set of noises and are measured on another:
the table is fitted and the hand-made solvers are ranked on the first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scorediff.errors import UserError
from scorediff.evaluation.path_fit import evolved, paths_of
from scorediff.evaluation.solver_bench import Bench, Candidate, best_hand_made
from scorediff.evaluation.table_search import (
    Numbers,
    Problem,
    Progress,
    least_squares,
    numbers_of,
    quasi_newton,
    table_of,
)
from scorediff.solvers import StepTable
from scorediff.solvers.found import Found
from scorediff.solvers.grid import Spacing
from scorediff.solvers.sample import Solver

_FINALISTS = 16  # hand-made settings, the best on fitted noises, measured on held-back ones


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much a search may spend.

    fitted, held_back: samples of the problem and of the last measurement.
    few: so many of the fitted ones rank the hand-made solvers, and judge levels.
    tuned: on so many spacings, its best, each hand-made solver also gets tuned ends.
    drawn, population, rounds: choices of levels drawn, and how many of them evolve how long.
    starts: so many of what they become, the best on a quarter of all samples, are refined.
    steps: of least squares for each of these, on twice the few.
    kept: so many of the best of these make as many steps of L-BFGS on a quarter of all samples.
    last_steps: of L-BFGS at most, for the best of them on all.
    """

    fitted: int = 8192
    held_back: int = 4096
    few: int = 128
    tuned: int = 2
    drawn: int = 400
    population: int = 50
    rounds: int = 16
    starts: int = 8
    steps: int = 10
    kept: int = 3
    last_steps: int = 16


FOR_RUNS = Effort()
FOR_BEDS = Effort(fitted=16384, held_back=16384, few=1024, steps=25, last_steps=60)


class Outcome(NamedTuple):
    """The found table and its error, and the best hand-made solver's, both on held-back noise."""

    found: Found
    error: float
    hand_made: Candidate

    @property
    def gain(self) -> float:
        return self.hand_made.error / self.error


def search(
    bench: Bench,
    reference: StepTable,
    solvers: Mapping[str, Solver],
    spacings: Mapping[str, Spacing],
    nfe: int,
    *,
    effort: Effort,
    start: StepTable | None = None,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Outcome:
    """A table of exactly nfe rows to data, and how it compares with the best hand-made one.

    With a `start`, say the table of an earlier search, that one is refined, on all samples at once.
    Raises UserError where no hand-made solver without noise fits.
    """
    model = bench.model
    problem = bench.problem(reference, effort.fitted, seed=2 * seed)
    few = problem.part(0, effort.few)
    ranked = best_hand_made(bench, solvers, spacings, nfe, few, tune=effort.tuned)
    if not ranked:
        raise UserError(f"no solver without noise fits into nfe={nfe} on {model.process!r}")
    say(f"best hand-made of {len(ranked)}: {ranked[0]}, RMS {ranked[0].error:.5f}")
    if start is None:
        tables = _evolved(bench, reference, few, nfe, effort, seed, say)
        numbers = _best_start(bench, tables, problem, effort, say)
    else:
        numbers = numbers_of(start, model.process)
    numbers = _refined(bench, numbers, problem, effort.last_steps, say)
    table = table_of(numbers, model.process)
    held_back = bench.problem(reference, effort.held_back, seed=2 * seed + 1)
    hand_made = bench.measured(ranked[:_FINALISTS], held_back)[0]
    error = bench.error(table, held_back)
    how = {
        "start": "drawn levels" if start is None else "an earlier table",
        "fitted to": f"{effort.fitted} noises, {reference.nfe} evaluations as the reference",
        "best hand-made": str(hand_made),
    }
    errors = {"found": error, "best hand-made": hand_made.error}
    kept = Found(table=table, process=repr(model.process), how=how, errors=errors)
    return Outcome(kept, error, hand_made)


def _evolved(
    bench: Bench,
    reference: StepTable,
    few: Problem,
    nfe: int,
    effort: Effort,
    seed: int,
    say: Callable[[str], None],
) -> list[Numbers]:
    """Tables fitted to the reference's paths from a few noises, with levels that suit them."""
    fits = evolved(
        bench,
        paths_of(bench, reference, few),
        nfe,
        drawn=effort.drawn,
        population=effort.population,
        rounds=effort.rounds,
        seed=seed,
    )
    say(f"{len(fits)} choices of levels, the best fitted to {len(few)} paths: {fits[0].error:.5f}")
    return [fit.numbers for fit in fits]


def _best_start(
    bench: Bench,
    tables: Sequence[Numbers],
    problem: Problem,
    effort: Effort,
    say: Callable[[str], None],
) -> Numbers:
    """The best tables refined on some samples, the best of those on more, and of those the best."""
    some, quarter = problem.part(0, 2 * effort.few), problem.part(0, effort.fitted // 4)
    starts = _best(bench, tables, quarter)[: effort.starts]
    tried = [_tried(bench, numbers, some, effort.steps, say) for numbers in starts]
    kept = [
        _refined(bench, numbers, quarter, effort.steps, say)
        for numbers in _best(bench, tried, quarter)[: effort.kept]
    ]
    return _best(bench, kept, problem)[0]


def _best(bench: Bench, tables: Sequence[Numbers], problem: Problem) -> list[Numbers]:
    """The best first."""
    process = bench.model.process
    return sorted(tables, key=lambda numbers: bench.error(table_of(numbers, process), problem))


def _tried(
    bench: Bench, numbers: Numbers, some: Problem, steps: int, say: Callable[[str], None]
) -> Numbers:
    """So many steps of least squares on some samples."""
    model = bench.model
    path = list(least_squares(model.denoise, model.process, numbers, some, steps=steps))
    errors = f"RMS {path[0].error:.5f} to {path[-1].error:.5f}"
    say(f"  {len(some)} noises, {path[-1].steps} steps: {errors}")
    return path[-1].numbers


def _refined(
    bench: Bench, numbers: Numbers, problem: Problem, steps: int, say: Callable[[str], None]
) -> Numbers:
    """So many steps of L-BFGS on these samples."""
    model = bench.model

    def seen(at: Progress) -> None:
        say(f"  {len(problem)} noises, step {at.steps}: RMS {at.error:.5f}")

    last = quasi_newton(model.denoise, model.process, numbers, problem, steps=steps, seen=seen)
    return last.numbers
