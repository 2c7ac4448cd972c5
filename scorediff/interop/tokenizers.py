"""Text into token ids, from a tokenizer's folder as the hub has it.

CLIP's is byte-pair encoding (tokenizer.json, or vocab.json and merges.txt) and needs the package
`tokenizers`; T5's is a unigram model (spiece.model) and needs `sentencepiece`. Both packages come
with the extra "text".
"""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scorediff.errors import UserError
from scorediff.interop.files import read_json

# One piece of a text is a special token, an English suffix, a run of letters, one digit, or a run
# of other signs (CLIP, arXiv 2103.00020; its released code).
PIECES = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|"
    r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
CLIP = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "model_max_length": 77,
}
T5 = {"bos_token": None, "eos_token": "</s>", "pad_token": "<pad>", "model_max_length": 512}
LONGEST = 1 << 20  # above it, model_max_length stands for "no limit"


class Tokens(NamedTuple):
    """Texts of one length: ids int32 [b, n], and mask int32 [b, n], 0 where the padding is."""

    ids: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Texts -> `Tokens`, with the tokens that start and end a text around each.

    pieces: the ids of a text alone.
    start:  id before every text, or None.
    end:    id behind every text; it stays where a text is cut.
    pad:    id that fills up.
    length: tokens of a text with start and end; None where the folder states no limit.
    """

    pieces: Callable[[str], list[int]]
    start: int | None
    end: int
    pad: int
    length: int | None

    def ids(self, text: str, length: int | None = None) -> list[int]:
        """The ids of one text with start and end, cut to `length` if one is given."""
        if not isinstance(text, str):
            raise UserError(f"a text to tokenize should be a str, got {type(text).__name__}")
        start = [] if self.start is None else [self.start]
        pieces = self.pieces(text)
        if length is not None:
            pieces = pieces[: length - len(start) - 1]
        return [*start, *pieces, self.end]

    def __call__(self, texts: Sequence[str], *, length: int | None = None) -> Tokens:
        """Ids and masks of texts, cut and padded to `length`, by default the tokenizer's own."""
        length = self.length if length is None else length
        if length is None or length < 2:
            raise UserError(f"tokenizing needs a length of at least 2 tokens, got {length}")
        if isinstance(texts, str):
            raise UserError("texts to tokenize should be a list of str, got one str")
        rows = [self.ids(text, length) for text in texts]
        ids = np.full((len(rows), length), self.pad, np.int32)
        mask = np.zeros((len(rows), length), np.int32)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return Tokens(ids, mask)


def load(folder: str | Path) -> Tokenizer:
    """The tokenizer of a hub folder (`tokenizer`, `tokenizer_2`, ... of a pipeline).

    Special tokens that are written out in a text are tokens for CLIP and plain text for T5's
    spiece.model. Raises UserError where a file or a package is missing, or a file is damaged.
    """
    folder = Path(folder)
    settings = _settings(folder)
    if _is_clip(folder, settings):
        return _tokenizer(folder, {**CLIP, **settings}, *_byte_pairs(folder, settings))
    if (folder / "spiece.model").is_file():
        return _tokenizer(folder, {**T5, **settings, "bos_token": None}, *_unigrams(folder))
    return _tokenizer(folder, {**T5, **settings, "bos_token": None}, *_from_json(folder))


def _settings(folder: Path) -> dict[str, Any]:
    """What tokenizer_config.json and special_tokens_map.json say, tokens as plain text."""
    found: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            found |= read_json(folder / name)
    texts = {
        k: v["content"] if isinstance(v, dict) and "content" in v else v for k, v in found.items()
    }
    return {name: value for name, value in texts.items() if value is not None}


def _is_clip(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether the folder is CLIP's, by the class that it names or else by its files."""
    name = str(settings.get("tokenizer_class", ""))
    if name.startswith(("CLIP", "T5")):
        return name.startswith("CLIP")
    if (folder / "vocab.json").is_file() or (folder / "spiece.model").is_file():
        return (folder / "vocab.json").is_file()
    raise UserError(
        f"{folder} is no tokenizer that is read here: tokenizer_class is {name!r}, not CLIP's or "
        f"T5's, and it has neither vocab.json nor spiece.model"
    )


Found = tuple[Callable[[str], list[int]], Callable[[str], int | None]]  # pieces, id of a token


def _tokenizer(
    folder: Path,
    settings: Mapping[str, Any],
    pieces: Callable[[str], list[int]],
    id_of: Callable[[str], int | None],
) -> Tokenizer:
    ids = {}
    for name in ("bos_token", "eos_token", "pad_token"):
        token = settings[name]
        ids[name] = None if token is None else id_of(str(token))
        if token is not None and ids[name] is None:
            raise UserError(f"{folder}: {name} {token!r} is not in its vocabulary")
    length = settings["model_max_length"]
    return Tokenizer(
        pieces=pieces,
        start=ids["bos_token"],
        end=ids["eos_token"],
        pad=ids["pad_token"],
        length=length if length <= LONGEST else None,
    )


def _package(name: str) -> Any:
    """A package of the extra "text"."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"reading this tokenizer needs the package {name}: install scorediff[text]"
        ) from None


def _unigrams(folder: Path) -> Found:
    """spiece.model, by sentencepiece."""
    package, path = _package("sentencepiece"), folder / "spiece.model"
    try:
        model = package.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise UserError(f"{path} is not a sentencepiece model: {error}") from None

    def id_of(token: str) -> int | None:
        found = model.piece_to_id(token)
        return found if model.id_to_piece(found) == token else None

    return model.encode, id_of


def _from_json(folder: Path) -> Found:
    """tokenizer.json, by tokenizers."""
    package, path = _package("tokenizers"), folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{folder} has neither tokenizer.json nor the files that it is made from")
    try:
        model = package.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises bare Exceptions
        raise UserError(f"{path} is not a tokenizer: {error}") from None
    model.no_truncation()
    model.no_padding()
    return _pieces_of(model), model.token_to_id


def _pieces_of(model: Any) -> Callable[[str], list[int]]:
    return lambda text: model.encode(text, add_special_tokens=False).ids


def _byte_pairs(folder: Path, settings: Mapping[str, Any]) -> Found:
    """tokenizer.json, or CLIP's rules over vocab.json and merges.txt."""
    if (folder / "tokenizer.json").is_file() or not (folder / "vocab.json").is_file():
        return _from_json(folder)
    package = _package("tokenizers")
    vocabulary, merges = read_json(folder / "vocab.json"), _merges(folder / "merges.txt")
    try:
        model = package.Tokenizer(
            package.models.BPE(
                vocab=vocabulary,
                merges=merges,
                end_of_word_suffix="</w>",
                unk_token=CLIP["eos_token"],
            )
        )
    except Exception as error:  # the package raises bare Exceptions
        raise UserError(f"{folder}: vocab.json and merges.txt do not fit: {error}") from None
    normal, split = package.normalizers, package.pre_tokenizers
    spaces = normal.Replace(package.Regex(r"\s+"), " ")
    model.normalizer = normal.Sequence([normal.NFC(), spaces, normal.Lowercase()])
    pieces = split.Split(package.Regex(PIECES), behavior="removed", invert=True)
    bytes_ = split.ByteLevel(add_prefix_space=False, use_regex=False)
    model.pre_tokenizer = split.Sequence([pieces, bytes_])
    special = [{**CLIP, **settings}[name] for name in ("bos_token", "eos_token")]
    model.add_special_tokens([token for token in special if token in vocabulary])
    return _pieces_of(model), model.token_to_id


def _merges(path: Path) -> list[tuple[str, str]]:
    """The pairs of merges.txt, in their order; its first line is a version."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    pairs = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    odd = [pair for pair in pairs if len(pair) != 2]
    if odd:
        raise UserError(f"{path} should have two tokens a line, got {' '.join(odd[0])!r}")
    return pairs
