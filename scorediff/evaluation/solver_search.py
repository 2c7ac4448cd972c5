"""The search of a better table: hand-made solvers ranked, the best refined, both held to new noise.

The comparison is honest since both sides choose on one set of noises and are measured on another:
the table is fitted and the hand-made solvers are ranked on the first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scorediff.errors import UserError
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

_FINALISTS = 10  # hand-made settings, the best on fitted noises, measured on held-back ones


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much a search may spend.

    fitted, held_back: samples of the problem and of the last measurement.
    ranked: so many of the fitted ones rank the hand-made solvers.
    tuned: on so many spacings, its best, each solver also gets tuned ends.
    starts: different solvers that the search goes out from, the best of each. How good a solver is
      says little of where a search from it ends.
    tried, steps: least-squares steps from each start, and on how many samples.
    kept: so many of the best of these make as many steps of L-BFGS on four times the samples.
    last_steps: of L-BFGS at most, from the best of them on four times as many samples again and
      again up to all.
    """

    fitted: int = 8192
    held_back: int = 4096
    ranked: int = 128
    tuned: int = 2
    starts: int = 24
    tried: int = 128
    steps: int = 16
    kept: int = 8
    last_steps: int = 24


FOR_RUNS = Effort()
FOR_BEDS = Effort(fitted=16384, held_back=16384, ranked=1024, tried=1024, steps=25, last_steps=60)


class _Try(NamedTuple):
    """A hand-made solver, and what became of it."""

    start: Candidate
    numbers: Numbers


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
    """A table of exactly nfe rows to data, better than every hand-made one.

    With a `start`, say the table of an earlier search, that one is refined, on all samples at once.
    Raises UserError where no hand-made solver without noise fits.
    """
    model = bench.model
    problem = bench.problem(reference, effort.fitted, seed=2 * seed)
    ranked = best_hand_made(
        bench, solvers, spacings, nfe, problem.part(0, effort.ranked), tune=effort.tuned
    )
    if not ranked:
        raise UserError(f"no solver without noise fits into nfe={nfe} on {model.process!r}")
    say(f"best hand-made of {len(ranked)}: {ranked[0]}, RMS {ranked[0].error:.5f}")
    if start is None:
        begun, numbers = _best_start(bench, _starts(ranked, nfe), problem, effort, say)
        sizes = _grown(4 * effort.tried, effort.fitted)
    else:
        begun, numbers = "an earlier table", numbers_of(start, model.process)
        sizes = [effort.fitted]
    for size in sizes:
        numbers = _refined(bench, numbers, problem.part(0, size), effort.last_steps, say)
    table = table_of(numbers, model.process)
    held_back = bench.problem(reference, effort.held_back, seed=2 * seed + 1)
    hand_made = bench.measured(ranked[:_FINALISTS], held_back)[0]
    error = bench.error(table, held_back)
    how = {
        "start": str(begun),
        "fitted to": f"{effort.fitted} noises, {reference.nfe} evaluations as the reference",
        "best hand-made": str(hand_made),
    }
    errors = {"found": error, "best hand-made": hand_made.error}
    kept = Found(table=table, process=repr(model.process), how=how, errors=errors)
    return Outcome(kept, error, hand_made)


def _starts(ranked: Sequence[Candidate], nfe: int) -> list[Candidate]:
    """The best of each solver, those that use the whole budget."""
    best: dict[str, Candidate] = {}
    for candidate in ranked:
        if candidate.table.nfe == nfe:
            best.setdefault(candidate.name, candidate)
    if not best:
        raise UserError(f"no solver to start from spends just nfe={nfe}: {ranked[0].name} does not")
    return list(best.values())


def _best_start(
    bench: Bench,
    starts: Sequence[Candidate],
    problem: Problem,
    effort: Effort,
    say: Callable[[str], None],
) -> _Try:
    """Every start refined on a few samples, the best of them on more, and of those the best."""
    few, more = problem.part(0, effort.tried), problem.part(0, 4 * effort.tried)
    tries = [_tried(bench, one, few, effort.steps, say) for one in starts[: effort.starts]]
    quarter = problem.part(0, effort.fitted // 4)  # few would not tell: errors have long tails
    kept = [
        one._replace(numbers=_refined(bench, one.numbers, more, effort.steps, say))
        for one in _best(bench, tries, quarter)[: effort.kept]
    ]
    return _best(bench, kept, problem)[0]


def _best(bench: Bench, tries: Sequence[_Try], problem: Problem) -> list[_Try]:
    """The best first; of those that met in one minimum, which the error tells, one is left."""
    process, least = bench.model.process, {}
    for one in tries:
        error = bench.error(table_of(one.numbers, process), problem)
        least.setdefault(float(f"{error:.4g}"), one)
    return [least[error] for error in sorted(least)]


def _tried(
    bench: Bench, start: Candidate, few: Problem, steps: int, say: Callable[[str], None]
) -> _Try:
    """So many steps of least squares on a few samples."""
    model = bench.model
    numbers = numbers_of(start.table, model.process)
    *_, last = least_squares(model.denoise, model.process, numbers, few, steps=steps)
    say(f"from {start}: {last.steps} steps on {len(few)} noises, RMS {last.error:.5f}")
    return _Try(start, last.numbers)


def _refined(
    bench: Bench, numbers: Numbers, problem: Problem, steps: int, say: Callable[[str], None]
) -> Numbers:
    """So many steps of L-BFGS on these samples."""
    model = bench.model

    def seen(at: Progress) -> None:
        say(f"  {len(problem)} noises, step {at.steps}: RMS {at.error:.5f}")

    last = quasi_newton(model.denoise, model.process, numbers, problem, steps=steps, seen=seen)
    return last.numbers


def _grown(size: int, most: int) -> list[int]:
    """Four times the size, and so on up to `most`."""
    sizes = []
    while size < most:
        size = min(4 * size, most)
        sizes.append(size)
    return sizes
