"""Hypothesis draws fresh examples on a developer's machine and the same ones in CI.

A new counterexample is a developer's find, to be reduced and fixed; it must not turn an unrelated
change red.
"""

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
