"""The benchmark: ``python -m tests.bench``. minillama4 and transformers, same weights, same run."""

import time

BEGAN = time.monotonic()  # before torch is imported, which counts where time is limited
