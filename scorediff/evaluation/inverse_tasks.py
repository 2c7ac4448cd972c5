"""What is done to an image before it is restored: operators of `solvers.inverse`, by name.

A task is a function of the shape of one x0, with options that are written name:option=value, such
as super_resolve:factor=4.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from scorediff.errors import UserError
from scorediff.evaluation.solver_names import parse
from scorediff.solvers.inverse import BlockAverage, Dense, Grey, Inpainting, LinearOperator

Task = Callable[[tuple[int, ...]], LinearOperator]


def inpaint(shape: tuple[int, ...], *, hole: float = 0.5) -> Inpainting:
    """Images [h, w, c] whose middle is unknown, a rectangle of `hole` times their sides."""
    _check_image("inpaint", shape)
    if not 0 < hole < 1:
        raise UserError(f"inpaint: hole must be between 0 and 1, got {hole}")
    mask = np.ones((*shape[:2], 1))
    rows, columns = (_middle(length, hole) for length in shape[:2])
    mask[rows, columns] = 0
    return Inpainting(shape=shape, mask=mask)


def _middle(length: int, share: float) -> slice:
    size = min(max(round(length * share), 1), length)
    return slice((length - size) // 2, (length + size) // 2)


def random_pixels(shape: tuple[int, ...], *, known: float = 0.5, seed: int = 0) -> Inpainting:
    """A share `known` of the pixels, all channels of each; for other data, of the numbers."""
    if not 0 < known < 1:
        raise UserError(f"random_pixels: known must be between 0 and 1, got {known}")
    where = (*shape[:-1], 1) if len(shape) > 1 else shape
    order = np.random.default_rng(seed).permutation(int(np.prod(where)))
    mask = (order < max(1, round(known * order.size))).reshape(where)
    return Inpainting(shape=shape, mask=mask)


def grey(shape: tuple[int, ...]) -> Grey:
    """The mean over the channels of images [h, w, c]: colours are to be found."""
    _check_image("grey", shape)
    if shape[-1] == 1:
        raise UserError(f"grey: images {shape} have one channel, so they are grey already")
    return Grey(shape=shape)


def super_resolve(shape: tuple[int, ...], *, factor: int = 2) -> BlockAverage:
    """Means of blocks of factor x factor pixels."""
    return BlockAverage(shape=shape, factor=factor)


def dense(shape: tuple[int, ...], *, path: str = "") -> Dense:
    """Any matrix [m, d], d the numbers in one x0, from an .npy file."""
    if not Path(path).is_file():
        raise UserError(f"dense: path={path!r} is no file; name an .npy file of a matrix")
    try:
        matrix = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"dense: {path} is no .npy file of numbers ({error})") from None
    return Dense(shape=shape, matrix=matrix)


TASKS: Mapping[str, Callable] = {
    task.__name__: task for task in (inpaint, random_pixels, grey, super_resolve, dense)
}


def parse_task(text: str) -> Task:
    """The task of a text like "super_resolve:factor=4"."""
    tasks = parse("task", text, TASKS)
    if len(tasks) > 1:
        raise UserError(f"--task={text}: one at a time")
    return next(iter(tasks.values()))


def _check_image(task: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 3:
        raise UserError(f"{task}: x0 of shape {shape} is no image [h, w, c]")
