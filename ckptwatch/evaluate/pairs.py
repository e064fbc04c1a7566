"""What LPIPS sees in the originals, kept between checkpoints: they never change, and they are half of its work."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

from torch import Tensor

BUDGET = 512 << 20  # bytes; 200 pairs of 256 px in AlexNet


class PairCache:
    """Trunk features by batch. What does not fit is computed again each time: of a set larger than the budget the part
    that came first stays, since dropping the oldest would mean that nothing is ever found."""

    def __init__(self, budget: int = BUDGET) -> None:
        self._budget = budget
        self._size = 0
        self._kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._used: set[Hashable] = set()

    def begin(self) -> None:
        """A new evaluation: what the one before did not use makes room."""
        for key in [k for k in self._kept if k not in self._used]:
            self._size -= self._kept.pop(key)[1]
        self._used.clear()

    def get(self, key: Hashable, see: Callable[[], Any]) -> Any:
        """The features of this key, seen now or before."""
        self._used.add(key)
        if key in self._kept:
            return self._kept[key][0]
        features = see()
        size = _bytes(features)
        if self._size + size <= self._budget:
            self._kept[key] = features, size
            self._size += size
        return features

    def clear(self) -> None:
        self._kept.clear()
        self._used.clear()
        self._size = 0


def _bytes(features: Any) -> int:
    if isinstance(features, Tensor):
        return features.numel() * features.element_size()
    if isinstance(features, Mapping):
        return sum(_bytes(value) for value in features.values())
    return sum(_bytes(value) for value in features) if isinstance(features, Iterable) else 0
