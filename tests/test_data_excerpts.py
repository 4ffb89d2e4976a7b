"""Independent rows: one stretch of each document."""

import pytest
import torch

import minillama4 as ml4
from minillama4.data.excerpts import excerpts
from minillama4.data.sources import DOMAINS, documents


@pytest.fixture(scope="module")
def tokenizer():
    return ml4.load_tokenizer()


def test_rows_of_every_domain_from_documents_of_their_own(tokenizer):
    batch = excerpts(tokenizer, rows=3, length=40)
    assert batch.tokens.shape == batch.domains.shape == (18, 40)
    assert batch.tokens.dtype == torch.int64
    assert (batch.tokens[:, 0] == tokenizer.begin).all()
    assert (batch.tokens[:, 1:] != tokenizer.begin).all()
    assert batch.domains[:, 0].tolist() == [d for d in range(6) for _ in range(3)]
    texts = [text for _, text in zip(range(12), documents("german", "validation"), strict=False)]
    german = batch.tokens[batch.domains[:, 0] == DOMAINS.index("german"), 1:]
    homes = [
        [i for i, text in enumerate(texts) if tokenizer.decode(row) in text]
        for row in german.tolist()
    ]
    assert all(homes) and len({home[0] for home in homes}) == 3


def test_a_seed_is_one_choice_of_rows(tokenizer):
    first, again, other = (excerpts(tokenizer, 2, 30, seed=seed).tokens for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_too_much_is_refused_in_words(tokenizer):
    with pytest.raises(ValueError, match="arithmetic has only 0 documents"):
        excerpts(tokenizer, rows=1, length=400)
    with pytest.raises(ValueError, match="at least"):
        excerpts(tokenizer, rows=0, length=40)
