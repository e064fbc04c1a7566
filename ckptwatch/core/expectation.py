"""What a checkpoint should have, and has not."""

from collections.abc import Collection, Iterable


def lacking(expected: Iterable[str], keys: Collection[str]) -> tuple[str, ...]:
    """Which of the expected top-level entries are not among a checkpoint's, in the order of the expectation.

    () where its format cannot tell what entries it has (no keys): nothing is claimed that was not seen.
    """
    return tuple(key for key in dict.fromkeys(expected) if key not in keys) if keys else ()


def lacks(missing: Iterable[str]) -> str:
    """In words."""
    return f"lacks {', '.join(missing)}"
