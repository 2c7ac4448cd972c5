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
from scorediff.evaluation.table_numbers import Numbers, numbers_of, table_of
from scorediff.evaluation.table_search import (
    Problem,
    Progress,
    least_squares,
    quasi_newton,
    square_errors,
)
from scorediff.solvers import StepTable
from scorediff.solvers.found import Found
from scorediff.solvers.grid import Spacing
from scorediff.solvers.sample import Solver

_FINALISTS = 16  # hand-made settings, the best on fitted noises, measured on held-back ones
_EVENLY = 0.3  # the part of their chances to be drawn that all samples have alike


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much a search may spend.

    fitted, held_back: samples of the problem and of the last measurement.
    few: so many of the fitted ones rank the hand-made solvers, and so many judge levels.
    tuned: on so many spacings, its best, each hand-made solver also gets tuned ends.
    drawn, population, rounds: choices of levels drawn, and how many of them evolve how long.
    first_steps: of least squares for all that they become, on the few.
    starts, steps: so many of the best of these make so many more, on twice the few.
    kept: so many of the best of those make as many steps of L-BFGS on a quarter of all samples.
    last_steps: of L-BFGS at most, for the best of them on all.
    """

    fitted: int = 8192
    held_back: int = 4096
    few: int = 128
    tuned: int = 2
    drawn: int = 400
    population: int = 50
    rounds: int = 16
    first_steps: int = 2
    starts: int = 12
    steps: int = 10
    kept: int = 3
    last_steps: int = 8


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
    first = problem.part(0, effort.few)
    ranked = best_hand_made(bench, solvers, spacings, nfe, first, tune=effort.tuned)
    if not ranked:
        raise UserError(f"no solver without noise fits into nfe={nfe} on {model.process!r}")
    say(f"best hand-made of {len(ranked)}: {ranked[0]}, RMS {ranked[0].error:.5f}")
    refining = _Refining(bench, problem, effort, say)
    if start is None:
        parts = _drawn(bench, ranked[0].table, problem, effort, seed)
        tables = _evolved(bench, reference, parts.few, nfe, effort, seed, say)
        numbers = refining.best_of(tables, parts)
    else:
        numbers = numbers_of(start, model.process)
    table = table_of(refining.quasi_newton(numbers, effort.last_steps, problem), model.process)
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
    say(f"{len(fits)} choices of levels, the best on {len(few)} paths: RMS {fits[0].error:.5f}")
    return [fit.numbers for fit in fits]


class _Parts(NamedTuple):
    """Some of a problem's samples: as many as `few`, twice that, and shares of all."""

    few: Problem
    some: Problem
    sixteenth: Problem
    quarter: Problem


def _drawn(bench: Bench, pilot: StepTable, problem: Problem, effort: Effort, seed: int) -> _Parts:
    """Drawn by about what each sample has of a mean square: its share of a hand-made table's.

    On the digits at 10 evaluations, one sample in a hundred had a fifth to a half of the mean
    square of the tables looked at, often the same one. Drawn so, few say as much of it as four to
    seven times as many drawn evenly.
    """
    squares = square_errors(bench(pilot, problem.x, problem.cond), problem.target)
    shares = _EVENLY / len(squares) + (1 - _EVENLY) * squares / squares.sum()
    sizes = effort.few, 2 * effort.few, effort.fitted // 16, effort.fitted // 4
    return _Parts(*(problem.drawn(shares, size, seed=seed) for size in sizes))


class _Refining(NamedTuple):
    """Tables made better on a problem and on parts of it."""

    bench: Bench
    problem: Problem
    effort: Effort
    say: Callable[[str], None]

    def best_of(self, tables: Sequence[Numbers], parts: _Parts) -> Numbers:
        """All refined a little, the best more, and so on.

        Where fitted levels lie says less of where refining ends than its first steps do.
        """
        effort = self.effort
        tables = [self.least_squares(table, effort.first_steps, parts.few) for table in tables]
        tables = self.sorted(tables, parts.sixteenth)[: effort.starts]
        tables = [self.least_squares(table, effort.steps, parts.some) for table in tables]
        tables = self.sorted(tables, parts.quarter)[: effort.kept]
        tables = [self.quasi_newton(table, effort.steps, parts.quarter) for table in tables]
        return self.sorted(tables, self.problem)[0]

    def sorted(self, tables: Sequence[Numbers], part: Problem) -> list[Numbers]:
        """The best first."""
        process = self.bench.model.process
        return sorted(
            tables, key=lambda numbers: self.bench.error(table_of(numbers, process), part)
        )

    def least_squares(self, numbers: Numbers, steps: int, part: Problem) -> Numbers:
        """After so many steps."""
        model = self.bench.model
        path = list(least_squares(model.denoise, model.process, numbers, part, steps=steps))
        self.say(f"  {len(part)} noises: RMS {path[0].error:.5f}, then {path[-1].error:.5f}")
        return path[-1].numbers

    def quasi_newton(self, numbers: Numbers, steps: int, part: Problem) -> Numbers:
        """After so many steps of L-BFGS."""
        model = self.bench.model

        def seen(at: Progress) -> None:
            self.say(f"  {len(part)} noises, step {at.steps}: RMS {at.error:.5f}")

        last = quasi_newton(model.denoise, model.process, numbers, part, steps=steps, seen=seen)
        return last.numbers
