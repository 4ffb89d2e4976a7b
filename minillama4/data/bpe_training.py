"""Training of the small vocabulary: byte-pair merges on the training split of `sources`.

Digits are cut one at a time. Llama 4 keeps groups of up to three, of which it can afford all 1,110
among 200,000 tokens; in 2,048 they would take half the room, and a sum would have to be learned
group by group where ten digits and a carry are enough.

    python -m minillama4.data.bpe_training --out data/tokenizer
"""

import argparse
import platform
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from tokenizers import models, pre_tokenizers, trainers

from minillama4.data.sources import DOMAINS, documents
from minillama4.data.tokenizer_json import byte_level
from minillama4.data.vocabulary import ROLES
from minillama4.files import written_whole

README = """# The small vocabulary

`tokenizer.json`: a byte-level BPE of {vocab_size} tokens, {base} merged from text and Llama 4's
{special} special tokens in use at the end.

- Made with `python -m minillama4.data.bpe_training --out data/tokenizer
  --vocab-size {vocab_size} --characters {characters} --seed {seed}`
- Corpus: the training split of `minillama4.data.sources`, {characters} characters of each of
  {domains}.
- Python {python} on {date}; the domains python and english are that version's own
  standard library, so another version gives slightly different merges.

No text of the validation split was used.
"""


def train(folder: Path, vocab_size: int, characters: int, seed: int) -> None:
    """Write tokenizer.json and README.md into `folder`; each file whole or not at all.

    `characters` is how much text is taken of each domain, `vocab_size` includes special tokens.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    base = vocab_size - len(ROLES)
    if base < len(alphabet):
        raise ValueError(f"vocab_size must be at least {len(alphabet) + len(ROLES)}")
    model = byte_level(models.BPE(), digits=r"\p{N}")
    trainer = trainers.BpeTrainer(
        vocab_size=base, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    model.train_from_iterator(training_text(characters, seed), trainer)
    if model.get_vocab_size() != base:
        raise ValueError(f"the text gave only {model.get_vocab_size()} of {base} tokens: take more")
    model.add_special_tokens(list(ROLES))  # after training, so that they come last
    note = README.format(
        vocab_size=vocab_size, base=base, special=len(ROLES), characters=characters, seed=seed,
        domains=", ".join(DOMAINS), python=platform.python_version(), date=date.today(),
    )  # fmt: skip
    for name, text in (("tokenizer.json", model.to_str(pretty=True)), ("README.md", note)):
        with written_whole(folder / name) as part:
            part.write_text(text, encoding="utf-8", newline="\n")


def training_text(characters: int, seed: int) -> Iterator[str]:
    """The first `characters` characters of each domain's training split, document by document."""
    for domain in DOMAINS:
        left = characters
        for text in documents(domain, "train", seed):
            yield text[:left]
            left -= len(text)
            if left <= 0:
                break


def main() -> None:
    """The command that makes the small vocabulary anew."""
    parser = argparse.ArgumentParser(description="Train the small vocabulary on our own text.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--vocab-size", type=int, default=2048, help="special tokens included")
    parser.add_argument("--characters", type=int, default=400_000, help="of each domain")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(arguments.out, arguments.vocab_size, arguments.characters, arguments.seed)
    print(f"The vocabulary is in {arguments.out}.")


if __name__ == "__main__":
    main()
