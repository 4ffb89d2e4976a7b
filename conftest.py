"""One environment for the tests and for the notebooks' kernels, which inherit it."""

import os
from pathlib import Path

import hypothesis
import pytest

from notebooks.execute import ENVIRONMENT

os.environ.update(ENVIRONMENT)  # before anything imports torch, which reads its threads once
if not Path("/dev/nvidiactl").exists():  # no GPU: Triton's kernels are run by its interpreter,
    os.environ.setdefault("TRITON_INTERPRET", "1")  # which has to be known when it is imported

# The same examples on every run: a failure seen by one is seen by all. To look for new ones:
# HYPOTHESIS_PROFILE=explore python start.py test --unit
hypothesis.settings.register_profile(
    "steady", derandomize=True, max_examples=25, deadline=None, print_blob=True, database=None
)
hypothesis.settings.register_profile("explore", max_examples=500, deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


@pytest.hookimpl(tryfirst=True)  # before pytest-timeout reads its own
def pytest_configure(config):
    """What `pytest --nbval-lax notebooks` needs besides, so that nobody has to remember it."""
    option = config.option
    if option.nbval or option.nbval_lax:
        option.nbval_current_env = True  # this Python is the kernel, whatever else is installed
        option.nbval_sanitize_with = str(Path(__file__).parent / "tests" / "nbval_sanitize.cfg")
        option.nbval_cell_timeout = 300.0
        option.timeout = 330.0  # of pytest-timeout: later than nbval's, which says which cell
