"""What a step's set of files should consist of, judged by the other steps in the same directory.

The files of a set appear one after the other and nothing marks the last one. What the steps before have, this one will have.
"""

from collections.abc import Mapping

LOOKED_AT = 2  # steps: more than one, as the last may have been left unfinished; few, as a resumed run may write other files


def expected_kinds(kinds: Mapping[int, frozenset[str]]) -> dict[int, frozenset[str]]:
    """For each step the kinds of file that the nearest steps before it have; for the first one, those after it."""
    steps = sorted(kinds)
    expected = {}
    for position, step in enumerate(steps):
        nearest = steps[max(0, position - LOOKED_AT):position] if position else steps[1:1 + LOOKED_AT]
        expected[step] = frozenset[str]().union(*(kinds[s] for s in nearest))
    return expected


def lacking(kinds: Mapping[int, frozenset[str]], step: int, has: frozenset[str]) -> str:
    """Evidence of what is missing from a step, "" if nothing is."""
    missing = sorted(expected_kinds({**kinds, step: has})[step] - has)
    verb = "is" if len(missing) == 1 else "are"
    return f"{', '.join(missing[:5])} {verb} there for other steps, missing here" if missing else ""
