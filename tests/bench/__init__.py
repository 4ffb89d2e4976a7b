"""The benchmark: ``python -m tests.bench``. minillama4 and transformers, same weights, same run."""
