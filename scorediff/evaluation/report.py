"""One page that shows a run: what was trained, what came out, what the numbers mean.

`write_report` reads whatever of these a run folder has: config.json, metrics.jsonl, timing.jsonl,
results.jsonl, commands.txt and the pictures below. The page is one file: pictures are inside it,
there are no scripts and no addresses. This module imports neither JAX nor matplotlib.
"""

import base64
import dataclasses
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from scorediff.errors import UserError
from scorediff.evaluation.meanings import PERCENT, heading, in_order, meaning
from scorediff.evaluation.result import Result, Spread, read_results
from scorediff.training.files import storing, write_atomic

PICTURES = {
    "samples.png": (
        "Samples",
        "Images that the model made, with the class it was asked for above each column. "
        "Each one grew out of pure noise.",
    ),
    "strip.png": (
        "From noise to image",
        "One sample a row. From left to right the noise goes away; t is the clock, 0 is a finished "
        "image.",
    ),
    "neighbours.png": (
        "Made or remembered?",
        "Samples above the training image most like each. Alike is expected; identical pairs would "
        "mean that the model copies.",
    ),
    "restored.png": (
        "Restored",
        "Real images above what was left of them, and what the model made of that.",
    ),
    "mixture.png": ("Samples of the model and of the exact distribution", ""),
    "score_error.png": (
        "Error by noise level",
        "How far the network is from the exact answer, which is known for this distribution.",
    ),
    "loss.png": (
        "Training loss",
        "How wrong the network's guesses were while it trained; falling and then flat is healthy. "
        "It does not go to zero, because part of the noise cannot be guessed by anyone.",
    ),
}


def record_command(workdir: str | os.PathLike, argv: Sequence[str]) -> None:
    """Note in commands.txt a command that worked on this run; the same one in a row counts once."""
    path, line = Path(workdir) / "commands.txt", shlex.join(argv)
    before = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if before[-1:] != [line]:
        write_atomic(path, "\n".join([*before, line]) + "\n")


def write_report(workdir: str | os.PathLike) -> Path:
    """Write report.html into the run folder and return its path.

    Raises:
        UserError: if the folder is not there or holds nothing of a run.
        StorageError: if the disk refuses, or results.jsonl is damaged.
    """
    workdir = Path(workdir)
    known = ["config.json", "metrics.jsonl", "results.jsonl", *PICTURES]
    if not any((workdir / name).exists() for name in known):
        raise UserError(f"{workdir}: not a run folder, it has none of {', '.join(known)}")
    path = workdir / "report.html"
    with storing(f"read the run in {workdir}"):
        page = _page(workdir)
    write_atomic(path, page)
    return path


def _page(workdir: Path) -> str:
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    text = workdir / "config.json"
    config_text = text.read_text(encoding="utf-8") if text.exists() else "{}"
    config = _parsed(config_text, text)
    results = _newest(read_results(workdir / "results.jsonl"))
    title = str(config.get("name") or (results[-1].name if results else workdir.resolve().name))
    parts = [
        f"<h1>{escape(title)}</h1>",
        *_summary(workdir, config, results),
        *_picture(workdir, "samples.png"),
        *_numbers(results),
        *(part for name in list(PICTURES)[1:] for part in _picture(workdir, name)),
        *_ingredients(config),
        *_protocols(results),
        *_commands(workdir),
        *_details(config_text),
    ]
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _newest(results: Sequence[Result]) -> list[Result]:
    """A run measured again in the same way is shown once: the code revision may differ."""
    ways = {
        dataclasses.replace(r, numbers={}, floor={}, revision=None).to_json(): r for r in results
    }
    return list(ways.values())


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    return config if isinstance(config, dict) else {}


def _rows(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a JSONL file; a line cut off by a crash is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [row for row in found if isinstance(row, dict)]


def _summary(workdir: Path, config: Mapping, results: Sequence[Result]) -> Iterator[str]:
    """What was done, in a few sentences of plain words."""
    metrics, timing = _rows(workdir / "metrics.jsonl"), _rows(workdir / "timing.jsonl")
    trained = [row for row in metrics if "loss" in row]  # evaluations have rows of their own
    if trained:
        last = trained[-1]
        loss = last["loss"]
        said = f"The model was trained for {last.get('step', 0):,} steps"
        said += _duration(sum(row.get("seconds") or 0 for row in timing))
        said += f"; its loss was {loss:.4g} at the end." if loss is not None else "."
        yield f"<p>{escape(said)}</p>"
    best = min((r for r in results if "frechet" in r.numbers), key=_distance, default=None)
    if best is None:
        return
    said = (
        f"Its best samples come from {best.solver} with {_counted(best)} network evaluations each: "
    )
    said += f"Frechet distance {best.numbers['frechet']}"
    if "frechet" in best.floor:
        said += f" where real images against real images give {best.floor['frechet']}"
    if "recognised" in best.numbers:
        said += f", and {_shown('recognised', best.numbers['recognised'])} of them are recognised "
        said += "as the class that was asked for"
    yield f"<p>{escape(said)}.</p>"
    copies, usual = best.numbers.get("near_train"), best.floor.get("near_train")
    if copies and usual and copies.mean > 2 * usual.mean:
        said = f"Careful: {_shown('near_train', copies)} of these samples are close copies of "
        said += f"training images, where {_shown('near_train', usual)} is usual. The other numbers "
        yield f'<p class="warning">{escape(said)}flatter a model that copies.</p>'


def _counted(result: Result) -> str:
    """NFE: whole, or where it is a mean over samples, to a tenth."""
    return f"{round(result.nfe, 1):g}"


def _distance(result: Result) -> float:
    return result.numbers["frechet"].mean


def _duration(seconds: float) -> str:
    if seconds <= 0:
        return ""
    return f" in {seconds:.0f} seconds" if seconds < 100 else f" in {seconds / 60:.1f} minutes"


def _picture(workdir: Path, name: str) -> Iterator[str]:
    path = workdir / name
    if not path.exists():
        return
    title, caption = PICTURES[name]
    data = base64.b64encode(path.read_bytes()).decode()
    yield f"<h2>{escape(title)}</h2>"
    yield f'<figure><img alt="{escape(title)}" src="data:image/png;base64,{data}">'
    yield f"<figcaption>{escape(caption)}</figcaption></figure>"


def _shown(name: str, spread: Spread) -> str:
    """Mean and standard deviation as text; shares in percent."""
    if name in PERCENT:
        std = "" if spread.std is None else f" ± {100 * spread.std:.1f}"
        return f"{100 * spread.mean:.1f}{std} %"
    return str(spread)


def _cell(name: str, spread: Spread) -> str:
    """The same for a table: the deviation small, under the mean."""
    mean, plus, std = escape(_shown(name, spread).removesuffix(" %")).partition("±")
    unit = " %" if name in PERCENT else ""
    return f'{mean.strip()}{unit}<span class="better">{plus}{std}</span>'


def _numbers(results: Sequence[Result]) -> Iterator[str]:
    """A table for each set of quantities, and what they mean."""
    results = [result for result in results if result.numbers]
    if not results:
        return
    yield "<h2>How good are the samples?</h2>"
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(in_order(result.numbers)), []).append(result)
    first = in_order({names[0] for names in groups})
    ordered = sorted(groups, key=lambda names: first.index(names[0]))
    for names in ordered:
        yield from _table(names, groups[names])
    counts = sorted({f"{len(r.seeds)} x {r.samples:,} samples" for r in results})
    yield (
        '<p class="soft">± is the standard deviation over repetitions: '
        f"{escape(', '.join(counts))} with different seeds for the model's numbers, "
        "different random halves for the floor. NFE: network evaluations a sample as counted, "
        "which is what sampling costs; guidance takes two a row of the solver. Guidance pushes "
        "samples towards their class.</p>"
    )
    floors = [r.floor["frechet_test"] for r in results if "frechet_test" in r.floor]
    held_out = floors[-1] if floors else None
    if held_out:
        said = f"Held-out real images in the place of samples have Frechet distance {held_out}: "
        said += "the feature network has seen the training images and not these."
        yield f'<p class="soft">{escape(said)}</p>'
    yield "<h2>What the numbers mean</h2><dl>"
    for found in dict.fromkeys(meaning(name) for names in ordered for name in names):
        if found.text:
            better = f' <span class="better">({escape(found.better)})</span>'
            title = escape(found.title) + (better if found.better else "")
            yield f"<dt>{title}</dt><dd>{escape(found.text)}</dd>"
    yield "</dl>"


def _table(names: Sequence[str], results: Sequence[Result]) -> Iterator[str]:
    heads = [
        f'<th>{escape(heading(name))}<span class="better">'
        f"{escape(meaning(name).better)}</span></th>"
        for name in names
    ]
    yield '<div class="scroll"><table><thead><tr><th>Solver</th><th>NFE</th><th>Guidance</th>'
    yield "".join(heads) + "</tr></thead><tbody>"
    for result in results:
        scale = "off" if result.guidance_scale == 1 else f"{result.guidance_scale:g}"
        arguments = ", ".join(f"{key}={value}" for key, value in result.solver_args.items())
        label = escape(result.solver) + (
            f'<span class="better">{escape(arguments)}</span>' if arguments else ""
        )
        cells = [label, _counted(result), scale]
        cells += [_cell(name, result.numbers[name]) for name in names]
        yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    floor = results[-1].floor
    if floor:
        cells = [_cell(name, floor[name]) if name in floor else "" for name in names]
        cells = ["real images (floor)", "", "", *cells]
        yield '<tr class="floor">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    yield "</tbody></table></div>"


def _ingredients(config: Mapping) -> Iterator[str]:
    """The parts of the run: what each field of the config builds."""
    rows = [(key, *_node(value)) for key, value in config.items() if _is_node(value)]
    plain = {k: v for k, v in config.items() if isinstance(v, bool | int | float | str)}
    if not rows and not plain:
        return
    yield '<h2>What it was made of</h2><div class="scroll"><table class="ingredients"><tbody>'
    for key, name, arguments in rows:
        detail = f"<b>{escape(name)}</b> <code>{escape(arguments)}</code>"
        yield f"<tr><td>{escape(key)}</td><td>{detail}</td></tr>"
    for key, value in plain.items():
        yield f"<tr><td>{escape(key)}</td><td><code>{escape(str(value))}</code></td></tr>"
    yield "</tbody></table></div>"


def _is_node(value: Any) -> bool:
    return isinstance(value, Mapping) and ("call" in value or "bind" in value)


def _node(node: Mapping) -> tuple[str, str]:
    """Name of what a config node builds, and its arguments in one line."""
    name = str(node.get("call") or node.get("bind")).rpartition(":")[2]
    arguments = {key: value for key, value in node.items() if key not in ("call", "bind")}
    return name, ", ".join(f"{key}={_brief(value)}" for key, value in arguments.items())


def _brief(value: Any) -> str:
    if _is_node(value):
        name, arguments = _node(value)
        return f"{name}({arguments})" if arguments else name
    if isinstance(value, Mapping) and set(value) == {"tuple"}:
        return "(" + ", ".join(map(_brief, value["tuple"])) + ")"
    if isinstance(value, list):
        return "[" + ", ".join(map(_brief, value)) + "]"
    return str(value)


def _protocols(results: Sequence[Result]) -> Iterator[str]:
    if results:
        lines = "\n\n".join(result.protocol() for result in results)
        yield "<h2>Protocol</h2><p>How each row of the table was measured, in full.</p>"
        yield f"<details><summary>Show</summary><pre class='wrap'>{escape(lines)}</pre></details>"


def _commands(workdir: Path) -> Iterator[str]:
    path = workdir / "commands.txt"
    if path.exists():
        yield "<h2>The commands that made this</h2>"
        yield f"<pre>{escape(path.read_text(encoding='utf-8').strip())}</pre>"


def _details(config_text: str) -> Iterator[str]:
    if config_text.strip() != "{}":
        yield "<h2>Complete config</h2>"
        yield f"<details><summary>Show</summary><pre>{escape(config_text)}</pre></details>"
