"""A byte-level vocabulary as a `tokenizer.json`, which transformers, vLLM and llama.cpp read.

Meta publishes no merges, only tokens in the order of their making; merging is then "join the two
neighbours that make the earliest token". A tokenizer.json lists the pairs instead.
"""

from collections.abc import Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from minillama4.data.vocabulary import split_pattern


def byte_alphabet() -> dict[str, int]:
    """The letter that byte-level vocabularies write for each byte, as GPT-2 set it.

    Printable bytes stand for themselves; the others take the letters from U+0100 on, in order.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {
        chr(0x100 + position): byte for position, byte in enumerate(hidden)
    }


def byte_level(model: models.BPE, digits: str) -> Tokenizer:
    """`model` over text cut by Llama 4's expression; `digits` stay together."""
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split_pattern(digits)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def from_tokens(base: list[bytes], special: dict[str, int]) -> Tokenizer:
    """A vocabulary of `base` tokens in the order of their making, and `special` ones after them."""
    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    names = ["".join(letters[byte] for byte in token) for token in base]
    vocabulary = {name: position for position, name in enumerate(names)}
    merges = [(names[left], names[right]) for left, right in pairs(base)]
    model = models.BPE(vocab=vocabulary, merges=merges)
    tokenizer = byte_level(model, digits=r"\p{N}{1,3}")
    ordered = sorted(special, key=special.__getitem__)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in ordered])
    return tokenizer


def pairs(base: list[bytes]) -> Iterator[tuple[int, int]]:
    """Ids of each two tokens that make a third one; those of the earliest third come first."""
    ids = {token: position for position, token in enumerate(base)}
    for token in base:
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        yield from sorted((ids[a], ids[b]) for a, b in cuts if a in ids and b in ids)
