"""The documents behind the text: six domains, each split into training and validation.

python      source files of the standard library on this machine
english     prose: the language reference that Python carries with it, and docstrings
arithmetic  additions with their carries, multiplications, comparisons
records     JSON lines, CSV tables, log lines
spanish, german   sentences of the grammars in `languages`

Nothing is downloaded. The price: python and english follow the reader's version of Python, so a
loss measured on them is comparable between runs on one machine, not between machines. The four
generated domains are the same everywhere.

No text is in both splits. A file, a topic, a problem, a record, a sentence belongs to the split
that a hash of it names, before anything is cut into tokens. A file and its docstrings share one
split; a paragraph of prose found in training is dropped from English validation, and a file with
one from Python validation. What files share by habit (a licence header, an idiom) is not removed.
"""

import hashlib
import itertools
import re
import sysconfig
import textwrap
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from random import Random

from minillama4.data import arithmetic, records
from minillama4.data.languages import SENTENCES

SPLITS = ("train", "validation")
DOMAINS = ("python", "english", "arithmetic", "records", "spanish", "german")

# Tests and bundled packages are not the library; `encodings` holds tables, `pydoc_data` is the
# english domain, and `_sysconfigdata*` describes the machine it was built on.
SKIPPED_FOLDERS = {
    "test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "encodings",
    "pydoc_data", "_bundled", "__pycache__",
}  # fmt: skip
SMALLEST_FILE = 500  # bytes; below it are stubs such as an empty __init__.py
SENTENCES_PER_DOCUMENT = 8


def split_of(key: str) -> str:
    """The split a document belongs to, by its name or text: one in eight is for validation."""
    digest = hashlib.blake2s(key.encode()).digest()
    return "validation" if digest[0] % 8 == 0 else "train"


def documents(domain: str, split: str, seed: int = 0) -> Iterator[str]:
    """The documents of a domain, in an order (or, if generated, with contents) set by `seed`.

    python and english come to an end; the generated domains never do.
    Raises ValueError for a domain or split that does not exist.
    """
    if domain not in DOMAINS:
        raise ValueError(f"no domain {domain!r}; there are {', '.join(DOMAINS)}")
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are {' and '.join(SPLITS)}")
    if domain == "python":
        files = _python_files(split) if split == "train" else _held_out_files()
        return iter(_shuffled(list(files.values()), seed))
    if domain == "english":
        return iter(_shuffled(list(_english_documents()[split]), seed))
    return _generated(domain, split, Random(f"{domain} {split} {seed}"))


def _shuffled(items: list[str], seed: int) -> list[str]:
    """Alphabetical order would show a short run nothing but `abc` to `asyncio`."""
    Random(seed).shuffle(items)
    return items


# ---- real text ----


@lru_cache(maxsize=2)
def _python_files(split: str) -> dict[str, str]:
    """Relative path -> source, for the standard library's files of a split, sorted by path."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files, seen = {}, set()
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if SKIPPED_FOLDERS & set(name.parts) or name.name.startswith("_sysconfigdata"):
            continue
        if split_of(name.as_posix()) != split or path.stat().st_size < SMALLEST_FILE:
            continue
        try:
            source = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):  # a Latin-1 file, or one we may not read
            continue
        if source not in seen:
            seen.add(source)
            files[name.as_posix()] = source
    if not files:
        raise FileNotFoundError(
            f"no Python source files in {library}: this Python was installed without its "
            "standard library's source, which the domains python and english are made of"
        )
    return files


DOCSTRING = re.compile(r'^[ \t]*[rRuU]?"""(.*?)"""', re.MULTILINE | re.DOTALL)


def prose(text: str) -> list[str]:
    """The paragraphs of `text` that read as prose: twelve words or more, hardly any symbols."""
    paragraphs = []
    for block in re.split(r"\n\s*\n", text):
        paragraph = textwrap.dedent(block).strip("\n")
        letters = sum(character.isalpha() or character.isspace() for character in paragraph)
        if len(paragraph.split()) < 12 or letters < 0.9 * len(paragraph):
            continue
        if paragraph.rstrip().endswith((".", ":", "!", "?", ")")):
            paragraphs.append(paragraph.strip())
    return paragraphs


def _prose_sources(split: str) -> Iterator[str]:
    from pydoc_data import topics  # half a megabyte of text: only when it is asked for

    for name, text in sorted(topics.topics.items()):
        if split_of(f"topic {name}") == split:
            yield text
    for source in _python_files(split).values():
        yield "\n\n".join(DOCSTRING.findall(source))


@lru_cache(maxsize=1)
def _english_documents() -> dict[str, list[str]]:
    """Split -> documents. Training first: a paragraph seen there is not held out any more."""
    train = list(_prose_sources("train"))
    seen_text = " ".join(" ".join(train).split())  # finds a paragraph inside a longer one too
    return {
        "train": _without_repeats(train, lambda words: False),
        "validation": _without_repeats(
            _prose_sources("validation"), lambda words: words in seen_text
        ),
    }


@lru_cache(maxsize=1)
def _held_out_files() -> dict[str, str]:
    """The validation files, without those that repeat a paragraph of the English training text."""
    text = "\n\n".join(_english_documents()["train"])
    known = {" ".join(paragraph.split()) for paragraph in text.split("\n\n")}
    files = _python_files("validation")
    plain = {name: " ".join(source.split()) for name, source in files.items()}
    leaky = {name for name, words in plain.items() if any(part in words for part in known)}
    return {name: source for name, source in files.items() if name not in leaky}


def _without_repeats(texts: Iterable[str], known: Callable[[str], bool]) -> list[str]:
    """The prose of each text, without paragraphs that are `known` or came before."""
    seen: set[str] = set()
    kept = []
    for text in texts:
        fresh = []
        for paragraph in prose(text):
            words = " ".join(paragraph.split())
            if words not in seen and not known(words):
                seen.add(words)
                fresh.append(paragraph)
        if fresh:
            kept.append("\n\n".join(fresh) + "\n")
    return kept


# ---- generated text ----


def _generated(domain: str, split: str, rng: Random) -> Iterator[str]:
    """Endless documents of a generated domain."""
    if domain == "records":
        while True:
            yield records.document(rng, keep=lambda record: split_of(record) == split)
    if domain == "arithmetic":
        problems = _of_split(split, lambda: arithmetic.problem(rng))
        while True:
            yield "\n".join(itertools.islice(problems, rng.randint(4, 8))) + "\n"
    sentences = _of_split(split, lambda: (sentence := SENTENCES[domain](rng), sentence))
    while True:
        yield " ".join(itertools.islice(sentences, SENTENCES_PER_DOCUMENT)) + "\n"


def _of_split(split: str, draw: Callable[[], tuple[str, str]]) -> Iterator[str]:
    """The texts of those (key, text) draws whose key belongs to the split."""
    while True:
        key, text = draw()
        if split_of(key) == split:
            yield text
