"""The report: whole, self-contained, escaped, and honest about copies."""

import base64
import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from scorediff.errors import UserError
from scorediff.evaluation.report import record_command, write_report
from scorediff.evaluation.result import Result, Spread, append_result

VOID = {"meta", "img", "link", "br"}


class Outline(HTMLParser):
    """Text, attributes, and whether every element that is opened is closed in order."""

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.addresses, self.tags = [], [], [], set()
        self.feed(page)
        assert self.open == []
        self.text = " ".join(" ".join(self.text).split())

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def result(near=0.06, **changes):
    numbers = {"frechet": 9.5, "recognised": 0.971, "near_train": near, "odd_one": 4.25}
    floor = {"frechet": 5.125, "near_train": 0.05}
    fields = {
        "name": "digits",
        "config_hash": "c0ffee",
        "revision": None,
        "step": 300,
        "ema": "0.99",
        "solver": "heun<2>",
        "solver_args": {"churn": 0.125},
        "grid": "karras",
        "nfe": 39,
        "guidance_scale": 1.0,
        "samples": 1000,
        "seeds": (4, 5, 6),
        "reference": "1497 real images",
        "reference_hash": "beef",
        "numbers": {name: Spread.of([value]) for name, value in numbers.items()},
        "floor": {name: Spread.of([value]) for name, value in floor.items()},
    }
    return Result(**(fields | changes))


@pytest.fixture
def run(tmp_path):
    network = {"call": "scorediff.models.unet:UNet", "mults": {"tuple": [1, 2]}}
    config = {"name": "a <b>bold</b> name", "network": network, "seed": 7}
    (tmp_path / "config.json").write_text(json.dumps(config))
    rows = [{"step": 100, "loss": 0.5}, {"step": 300, "loss": 0.125}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 4')
    (tmp_path / "timing.jsonl").write_text('{"step": 300, "seconds": 180.0}\n')
    Image.new("L", (3, 3), 77).save(tmp_path / "samples.png")
    append_result(tmp_path / "results.jsonl", result())
    record_command(tmp_path, ["python", "-m", "experiments.train", "--note=two words"])
    return tmp_path


def test_says_what_was_trained_and_measured(run):
    text = Outline(write_report(run).read_text()).text
    for part in (
        "a <b>bold</b> name",
        "300 steps in 3.0 minutes",
        "0.125 at the end",
        "9.5 where real images against real images give 5.125",
        "97.1 % of them are recognised",
        "heun<2>",
        "churn=0.125",
        "39",
        "odd one",
        "4.25",
        "real images (floor)",
        "UNet mults=(1, 2)",
        "1000 samples x seeds [4, 5, 6]",
        "--note=two words'",
    ):
        assert part in text
    assert "Careful" not in text


def test_is_one_file_without_scripts_or_addresses(run):
    outline = Outline(write_report(run).read_text())
    assert "script" not in outline.tags and "link" not in outline.tags
    assert len(outline.addresses) == 1
    kind, _, data = outline.addresses[0].partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == (run / "samples.png").read_bytes()
    assert not re.search(r"url\(|@import|https?:", write_report(run).read_text())


def test_warns_of_copies(run):
    append_result(run / "results.jsonl", result(near=0.4, nfe=10, numbers=copying()))
    assert "Careful: 40.0 % of these samples are close copies" in write_report(run).read_text()


def test_adaptive_evaluations_and_quantities_without_a_better_side_are_shown_plainly(run):
    """And what says how good the samples are stands before what says how likely the data are."""
    path = run / "results.jsonl"
    earlier = path.read_text()
    path.unlink()
    other = {"psnr_of_measured": Spread.of([14.4])}
    append_result(path, result(nfe=75.4625, numbers=other, floor={}))
    path.write_text(path.read_text() + earlier)
    page = write_report(run).read_text()
    assert "<td>75.5</td>" in page and "()" not in page
    assert page.index("<td>9.5<") < page.index("<td>14.4<")  # the summary has the first too


def copying():
    return {"frechet": Spread.of([1.0]), "near_train": Spread.of([0.4])}


def test_a_run_that_was_only_just_begun(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert Outline(write_report(tmp_path).read_text()).text.count(tmp_path.name) >= 1


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        write_report(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not JSON"):
        write_report(tmp_path)


def test_commands_are_kept_in_order_without_repeats(tmp_path):
    for argv in (["train"], ["train"], ["evaluate", "a b"], ["train"]):
        record_command(tmp_path, argv)
    assert (tmp_path / "commands.txt").read_text() == "train\nevaluate 'a b'\ntrain\n"
