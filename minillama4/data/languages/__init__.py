"""Two written languages made by small grammars of our own: Spanish and German.

Each module holds a table of vocabulary and the rules that turn it into sentences: agreement of
gender, number and case, conjugation by person and tense, contractions of preposition and article.
The sentences are grammatical; what they say is often silly, as in a school book.

`SENTENCES[language](rng)` returns one sentence; the same `random.Random` state gives the same one.
"""

from minillama4.data.languages import german, spanish

SENTENCES = {"spanish": spanish.sentence, "german": german.sentence}
