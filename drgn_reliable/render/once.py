# SPDX-License-Identifier: LGPL-2.1-or-later
"""Text that is made once for all tasks that share what it is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ("OnceFor",)

T = TypeVar("T")
_LIMIT = 1024
"""Of so many results, those that nobody asked for again are forgotten."""


class OnceFor(Generic[T]):
    """A function of objects that never change, called once for the same ones.

    The same means identical: to see that takes no time, however large they are.

    >>> calls = []
    >>> length = OnceFor(lambda stack: calls.append(stack) or len(stack))
    >>> stack = ("do_wait", "schedule")
    >>> length(stack), length(stack), len(calls)
    (2, 2, 1)
    """

    def __init__(self, make: Callable[..., T]) -> None:
        self._make = make
        self._known: dict[tuple[int, ...], tuple[tuple[object, ...], T]] = {}
        self._before = self._known

    def __call__(self, *of: object) -> T:
        """What the function makes of some objects."""
        key = tuple(map(id, of))
        known = self._known.get(key)
        if known is None:
            if len(self._known) >= _LIMIT:
                self._before, self._known = self._known, {}
            # The objects are kept, so that no others can have their identities.
            known = self._known[key] = self._before.get(key) or (of, self._make(*of))
        return known[1]
