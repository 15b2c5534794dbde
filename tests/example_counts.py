"""How many examples hypothesis draws: all in CI, a quarter of them elsewhere, so that `make test` is quick."""

import os

from hypothesis import settings

IN_CI = os.environ.get("CI") == "true"


def examples(count: int) -> int:
    """``count`` in CI, a quarter of it elsewhere: for ``max_examples``."""
    return count if IN_CI else count // 4


if not IN_CI:  # for tests without `max_examples`
    settings.register_profile("quick", max_examples=examples(settings().max_examples))
    settings.load_profile("quick")
