"""Tokenizers from hub folders: the recorded ids, cutting and padding, refusals."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from scorediff.errors import UserError
from scorediff.interop.tokenizers import load
from tests.parity.runners.tokenizers import run

FOLDER = Path(__file__).parents[1] / "fixtures" / "parity" / "tokenizers"
LONG = "the red boat " * 60


@pytest.fixture(params=["clip", "t5"])
def kind(request):
    return request.param


@pytest.fixture
def copy(kind, tmp_path):
    """A folder that may be changed."""
    return shutil.copytree(FOLDER / kind, tmp_path / kind)


def change(folder, file, **changes):
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def as_one_file(folder):
    """The folder's rules as tokenizer.json alone, as newer libraries write them."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    vocabulary = json.loads((folder / "vocab.json").read_text())
    lines = (folder / "merges.txt").read_text().splitlines()[1:]
    merges = [tuple(line.split()) for line in lines]
    one = Tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>"))
    one.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
    split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    one.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    end, start = ("<|endoftext|>", vocabulary["<|endoftext|>"]), ("<|startoftext|>", 692)
    one.post_processor = processors.RobertaProcessing(end, start, False, False)
    one.add_special_tokens([end[0], start[0]])
    one.enable_truncation(5)
    one.enable_padding(length=9)
    one.save(str(folder / "tokenizer.json"))
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        (folder / name).unlink()


def test_recorded_texts_give_the_recorded_ids(kind):
    results = list(run(FOLDER / kind, FOLDER.parent))
    assert [r.check for r in results] == ["ids", "ids"]
    assert all(r.passed for r in results), results


def test_tokenizer_json_gives_the_same_ids(tmp_path):
    folder = shutil.copytree(FOLDER / "clip", tmp_path / "clip")
    as_one_file(folder)
    results = list(run(folder, tmp_path))
    assert len(results) == 2 and all(r.passed for r in results), results


def test_cutting_keeps_the_end_and_padding_is_masked(kind):
    tokenizer = load(FOLDER / kind)
    ids, mask = tokenizer(["a", LONG], length=10)
    assert ids.dtype == mask.dtype == np.int32
    assert ids[1, -1] == tokenizer.end and mask[1].all()
    whole = tokenizer.ids(LONG)
    assert ids[1, :-1].tolist() == whole[:9]
    short = tokenizer.ids("a")
    assert ids[0].tolist() == short + [tokenizer.pad] * (10 - len(short))
    assert mask[0].tolist() == [1] * len(short) + [0] * (10 - len(short))


def test_the_length_is_the_folders_own_unless_given(kind):
    assert load(FOLDER / kind)(["a"]).ids.shape == (1, {"clip": 77, "t5": 512}[kind])


def test_padding_and_length_are_read_from_the_config(copy, kind):
    tokenizer = load(FOLDER / kind)
    token = {"clip": "!", "t5": "<unk>"}[kind]  # SDXL's second tokenizer pads with "!"
    change(copy, "tokenizer_config.json", pad_token=token, model_max_length=12)
    changed = load(copy)
    assert changed.pad != tokenizer.pad
    assert changed(["a"]).ids[0].tolist()[-1] == changed.pad
    assert changed(["a"]).ids.shape == (1, 12)
    change(copy, "tokenizer_config.json", model_max_length=10**30)
    with pytest.raises(UserError, match="needs a length"):
        load(copy)(["a"])


@pytest.mark.parametrize(
    ("texts", "length", "message"),
    [
        ("one text", 8, "should be a list of str, got one str"),
        (["a", 3], 8, "should be a str, got int"),
        (["a"], 1, "a length of at least 2 tokens, got 1"),
    ],
)
def test_bad_input_is_refused(texts, length, message):
    with pytest.raises(UserError, match=message):
        load(FOLDER / "t5")(texts, length=length)


def test_a_missing_package_is_named_with_its_extra(kind, monkeypatch):
    package = {"clip": "tokenizers", "t5": "sentencepiece"}[kind]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"package {package}: install scorediff\[text\]"):
        load(FOLDER / kind)


def test_missing_and_damaged_files_are_refused(copy, kind):
    main, message = {
        "clip": ("merges.txt", "should have two tokens a line"),
        "t5": ("spiece.model", "is not a sentencepiece model"),
    }[kind]
    (copy / main).write_text("no such thing\nat all\n")
    with pytest.raises(UserError, match=message):
        load(copy)
    (copy / main).unlink()
    with pytest.raises(UserError, match=r"cannot read|has neither"):
        load(copy)


def test_other_refusals_say_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match="is no tokenizer that is read here"):
        load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(UserError, match="'BertTokenizer', not CLIP's or T5's"):
        load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizerFast"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer"):
        load(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    with pytest.raises(UserError, match=r"vocab\.json and merges\.txt do not fit"):
        load(tmp_path)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "vocab.json").write_text('{"a</w>": 0}')
    with pytest.raises(UserError, match=r"bos_token '<\|startoftext\|>' is not in its vocabulary"):
        load(tmp_path)
