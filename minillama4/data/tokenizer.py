"""Text to token ids and back: Llama 4's real vocabulary, and a small one of the same make.

Both are byte-level: any text has ids, and the bytes of the ids give the text back. Special tokens
are never made from text: a user who types "<|eot|>" gets ordinary tokens, and only code that asks
for `tokenizer.special["<|eot|>"]` gets the special one.

`bpe_training` makes the small one anew.
"""

import base64
import binascii
import codecs
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path

import tokenizers

from minillama4.data.shipped import FOLDER
from minillama4.data.tokenizer_json import byte_alphabet, from_tokens
from minillama4.data.vocabulary import (
    BASE_SIZE,
    ROLES,
    llama4_special_tokens,
    split_pattern,
)

SHIPPED = FOLDER / "tokenizer" / "tokenizer.json"


class TokenizerError(ValueError):
    """A vocabulary file that is missing, truncated, or of another model."""


class Tokenizer(ABC):
    """What both vocabularies share. `special`: name -> id; `pad` fills rows, `begin` opens text."""

    def __init__(self, token_bytes: list[bytes], special: dict[str, int]):
        self._token_bytes = token_bytes  # what each id stands for; a special token: its name
        self.special = special
        self.begin = special["<|begin_of_text|>"]
        self.end = special["<|end_of_text|>"]
        self.pad = special["<|finetune_right_pad|>"]
        self.stop_ids = (self.end, special["<|eom|>"], special["<|eot|>"])

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""
        return len(self._token_bytes)

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of `text`, without begin-of-text; names of special tokens are ordinary text.

        Raises UnicodeEncodeError for a lone surrogate, which no bytes stand for.
        """

    @abstractmethod
    def definition(self) -> dict:
        """The whole of a `tokenizer.json`: tokens, merges, how text is cut. For exports."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD, special tokens their names."""
        return b"".join(map(self._bytes_of, ids)).decode("utf-8", errors="replace")

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Text of `ids` as they come; a character is held back until its last byte is there.

        Joined, the parts are what `decode` gives for all ids at once.
        """
        text = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for token in ids:
            if part := text.decode(self._bytes_of(int(token))):
                yield part
        if rest := text.decode(b"", final=True):
            yield rest

    def pieces(self, ids: Iterable[int]) -> list[str]:
        r"""One printable string per token: a newline as \n, part of a character as \xe2."""
        return [_printable(self._bytes_of(token)) for token in ids]

    def _bytes_of(self, token: int) -> bytes:
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"token id {token} is outside the vocabulary 0..{self.vocab_size - 1}")
        return self._token_bytes[token]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.vocab_size} tokens, {len(self.special)} special)"


def _printable(raw: bytes) -> str:
    text = raw.decode("utf-8", errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# ---- the small vocabulary: a tokenizer.json of the `tokenizers` library ----


class JsonTokenizer(Tokenizer):
    """A byte-level BPE in a `tokenizer.json` that has Llama 4's special tokens."""

    def __init__(self, path: Path):
        try:
            self._model = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
            added = json.loads(path.read_text(encoding="utf-8")).get("added_tokens") or []
        except Exception as error:  # the library raises plain Exception for all that is wrong
            raise TokenizerError(f"{path} is not a complete tokenizer.json: {error}") from error
        special = {token["content"]: token["id"] for token in added if token["special"]}
        missing = [name for name in ROLES if name not in special]
        if missing:
            raise TokenizerError(f"{path} lacks Llama 4's special tokens {', '.join(missing)}")
        self._model.encode_special_tokens = True  # text stays text; not stored in the file
        super().__init__(_byte_table(path, self._model.get_vocab(), special), special)

    def encode(self, text: str) -> list[int]:
        text.encode("utf-8")  # a lone surrogate fails here, with a message that says so
        return self._model.encode(text, add_special_tokens=False).ids

    def definition(self) -> dict:
        return json.loads(self._model.to_str())


def _byte_table(path: Path, vocabulary: dict[str, int], special: dict[str, int]) -> list[bytes]:
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise TokenizerError(f"{path}: ids do not count from 0 to {len(vocabulary) - 1}")
    names = sorted(vocabulary, key=vocabulary.__getitem__)
    alphabet = byte_alphabet()
    try:
        return [
            name.encode() if name in special else bytes(alphabet[character] for character in name)
            for name in names
        ]
    except KeyError as error:
        raise TokenizerError(f"{path} is not byte-level: it holds {error}") from None


# ---- the real vocabulary: Meta's tokenizer.model ----


class Llama4Tokenizer(Tokenizer):
    """The vocabulary of the released models: 200,000 base tokens and 2,048 special ones."""

    def __init__(self, path: Path):
        import tiktoken  # here, since only the real vocabulary needs it

        base = _read_ranks(path)
        special = llama4_special_tokens()
        self._model = tiktoken.Encoding(
            name=path.name,
            pat_str=split_pattern(),
            mergeable_ranks={token: rank for rank, token in enumerate(base)},
            special_tokens=special,
        )
        super().__init__(base + [name.encode() for name in special], special)

    def encode(self, text: str) -> list[int]:
        text.encode("utf-8")  # tiktoken would replace a lone surrogate in silence
        return [i for part in _slices(text) for i in self._model.encode_ordinary(part)]

    def definition(self) -> dict:
        """It takes seconds: 439,802 pairs of tokens make another."""
        return json.loads(from_tokens(self._token_bytes[:BASE_SIZE], self.special).to_str())


def _read_ranks(path: Path) -> list[bytes]:
    """Base tokens in order of rank, from lines of "base64 rank"."""
    tokens = []
    for number, line in enumerate(path.read_bytes().splitlines()):
        try:
            token, rank = line.split()
            tokens.append(base64.b64decode(token, validate=True))
            in_order = int(rank) == number
        except (ValueError, binascii.Error):
            raise TokenizerError(
                f"{path}, line {number + 1}: not base64 and a rank. Truncated, or a "
                "SentencePiece file (Llama 2 and older)?"
            ) from None
        if not in_order:
            raise TokenizerError(
                f"{path}, line {number + 1}: rank {int(rank)} where {number} must follow"
            )
    if len(tokens) != BASE_SIZE:
        hint = "Llama 3's vocabulary" if len(tokens) == 128_000 else "truncated, or another model's"
        raise TokenizerError(f"{path} has {len(tokens)} base tokens, not {BASE_SIZE}: {hint}")
    distinct = set(tokens)
    if len(distinct) != BASE_SIZE or any(bytes([byte]) not in distinct for byte in range(256)):
        raise TokenizerError(f"{path}: a token occurs twice or a single byte is missing")
    return tokens


SLICE, RUN = 400_000, 25_000
LONG_RUN = re.compile(rf"\s{{{RUN}}}(?=\s)|\S{{{RUN}}}(?=\S)")


def _slices(text: str) -> Iterator[str]:
    """Cut as Meta cuts before tiktoken, whose regular expressions give up on very long runs."""
    for first in range(0, len(text), SLICE):
        part, start = text[first : first + SLICE], 0
        for run in LONG_RUN.finditer(part):
            yield part[start : run.end()]
            start = run.end()
        yield part[start:]


# ---- either ----


def load_tokenizer(path: str | Path | None = None) -> Tokenizer:
    """The vocabulary at `path`: a folder or file, `tokenizer.model` (Meta) or `tokenizer.json`.

    None is the small one that comes with this repository. Raises FileNotFoundError, or
    TokenizerError for a file that is not a whole vocabulary of Llama 4's kind.
    """
    file = SHIPPED if path is None else Path(path)
    if file.is_dir():
        inside = [file / "tokenizer.model", file / "tokenizer.json"]
        file = next((candidate for candidate in inside if candidate.is_file()), file)
    if not file.is_file():
        hint = (
            "make it with: python -m minillama4.data.bpe_training --out data/tokenizer"
            if path is None
            else "expected tokenizer.model or tokenizer.json, or a folder with one of them"
        )
        raise FileNotFoundError(f"no vocabulary at {file}; {hint}")
    return JsonTokenizer(file) if file.suffix == ".json" else Llama4Tokenizer(file)


def check_fits(tokenizer: Tokenizer, vocab_size: int) -> None:
    """TypeError for what is no tokenizer of ours, TokenizerError for one of another model."""
    if not isinstance(tokenizer, Tokenizer):
        raise TypeError(
            f"tokenizer must be one of ml4.load_tokenizer, not a {type(tokenizer).__name__}."
        )
    if tokenizer.vocab_size != vocab_size:
        raise TokenizerError(
            f"The tokenizer has {tokenizer.vocab_size:,} tokens, the model {vocab_size:,}: take "
            "the tokenizer that it was trained with."
        )
