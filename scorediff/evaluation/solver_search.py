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


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much a search may spend.

    fitted, held_back: samples of the problem and of the last measurement.
    ranked, tried: of the fitted ones, as many rank the hand-made solvers and choose a start.
    tuned: so many of the best hand-made ones also get tuned ends.
    starts: different solvers that the search goes out from, the best of each.
    steps: least-squares steps from each start, on the samples `tried`.
    last_steps: of L-BFGS from the best, at most, on four times as many samples again and again up
      to all.
    """

    fitted: int = 2048
    held_back: int = 1024
    ranked: int = 64
    tuned: int = 8
    tried: int = 128
    starts: int = 2
    steps: int = 16
    last_steps: int = 40


FOR_RUNS = Effort()
FOR_BEDS = Effort(
    fitted=16384, held_back=16384, ranked=1024, tried=2048, starts=2, steps=25, last_steps=60
)


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
        first, begun = _best_start(bench, _starts(ranked, nfe, effort.starts), problem, effort, say)
        sizes = _grown(effort.tried, effort.fitted)
    else:
        first, begun = numbers_of(start, model.process), "an earlier table"
        sizes = [effort.fitted]
    numbers = _refined(bench, first, problem, sizes, effort.last_steps, say)
    table = table_of(numbers, model.process)
    held_back = bench.problem(reference, effort.held_back, seed=2 * seed + 1)
    hand_made = bench.measured(ranked[:5], held_back)[0]
    error = bench.error(table, held_back)
    how = {
        "start": str(begun),
        "fitted to": f"{effort.fitted} noises, {reference.nfe} evaluations as the reference",
        "best hand-made": str(hand_made),
    }
    errors = {"found": error, "best hand-made": hand_made.error}
    kept = Found(table=table, process=repr(model.process), how=how, errors=errors)
    return Outcome(kept, error, hand_made)


def _starts(ranked: Sequence[Candidate], nfe: int, most: int) -> list[Candidate]:
    """The best of each solver, those that use the whole budget."""
    best: dict[str, Candidate] = {}
    for candidate in ranked:
        if candidate.table.nfe == nfe:
            best.setdefault(candidate.name, candidate)
    return list(best.values())[:most]


def _best_start(
    bench: Bench,
    starts: Sequence[Candidate],
    problem: Problem,
    effort: Effort,
    say: Callable[[str], None],
) -> tuple[Numbers, Candidate]:
    """Every start refined on a few samples; the one with the least error on all."""
    model, few = bench.model, problem.part(0, effort.tried)
    tried = []
    for start in starts:
        numbers = numbers_of(start.table, model.process)
        *_, last = least_squares(model.denoise, model.process, numbers, few, steps=effort.steps)
        error = bench.error(table_of(last.numbers, model.process), problem)
        say(f"from {start}: RMS {error:.5f} after {last.steps} steps")
        tried.append((error, len(tried), last.numbers, start))
    _, _, numbers, start = min(tried)
    return numbers, start


def _grown(size: int, most: int) -> list[int]:
    """Four times the size, and so on up to `most`."""
    sizes = []
    while size < most:
        size = min(4 * size, most)
        sizes.append(size)
    return sizes


def _refined(
    bench: Bench,
    numbers: Numbers,
    problem: Problem,
    sizes: Sequence[int],
    steps: int,
    say: Callable[[str], None],
) -> Numbers:
    """Refined on so many samples after each other."""
    model = bench.model
    for size in sizes:

        def seen(at: Progress, size: int = size) -> None:
            say(f"  {size} noises, step {at.steps}: RMS {at.error:.5f}")

        part = problem.part(0, size)
        numbers = quasi_newton(
            model.denoise, model.process, numbers, part, steps=steps, seen=seen
        ).numbers
    return numbers
