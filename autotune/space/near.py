"""Which known name did they mean?"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def near(word: object, known: Iterable[str]) -> str:
    """`; did you mean 'cache'?`, or nothing when nothing is near."""
    match = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f"; did you mean '{match[0]}'?" if match else ""
