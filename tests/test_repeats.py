# SPDX-License-Identifier: LGPL-2.1-or-later
"""Walks that are recognised: however few are remembered, every report is the same. That damage to
any word that matters is seen is what the campaign of ``test_hostile_campaign.py`` shows."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from drgn_reliable import Kernel, Scanner, open_dump, repeats
from drgn_reliable.memory import word_places
from drgn_reliable.repeats import _Words
from tests.conftest import Scanned


@pytest.mark.parametrize("limit", ["_LIMIT", "_ALIKE_LIMIT"])
@pytest.mark.parametrize("walks", [1, 3])
def test_few_walks_are_remembered(
    scanned_6_1: Scanned, monkeypatch: pytest.MonkeyPatch, limit: str, walks: int
) -> None:
    """A dump of more different stacks than the limit starts anew, and has the same reports; no
    more are held against a task than the limit says."""
    monkeypatch.setattr(repeats, limit, walks)
    scanner = Scanner(Kernel(open_dump(str(scanned_6_1.dump.path))))
    for _ in range(2):
        assert tuple(scanner.reports(scanner.kernel.tasks)) == scanned_6_1.reports
    places = scanner._repeats._places.values()
    alike = [sum(len(walks) for each in place.tables.values() for walks in each.walks.values())
             for place in places]  # fmt: skip
    assert alike and max(alike) <= walks
    if limit == "_LIMIT":
        assert sum(alike) <= walks


WORD = (0x1122334455667788).to_bytes(8, "little")


@pytest.mark.parametrize(
    ("data", "start", "end", "found"),
    [
        pytest.param(WORD, 0, 8, True, id="at the start"),
        pytest.param(bytes(8) + WORD, 0, 16, True, id="further up"),
        pytest.param(bytes(8) + WORD, 0, 15, False, id="beyond the end"),
        pytest.param(WORD + bytes(8), 8, 16, False, id="below the start"),
        pytest.param(bytes(4) + WORD + bytes(4), 0, 16, False, id="across two words"),
        pytest.param(bytes(4) + WORD + bytes(4) + WORD, 0, 24, True, id="across two, and whole"),
        pytest.param(bytes(4) + WORD, 4, 12, True, id="counted from the start"),
        pytest.param(b"", 0, 0, False, id="nothing"),
    ],
)
def test_a_word_is_looked_for_where_words_are(
    data: bytes, start: int, end: int, found: bool
) -> None:
    assert any(True for _ in word_places(data, WORD, start, end)) is found


@pytest.mark.parametrize(
    ("places", "start", "words"),
    [
        pytest.param((8, 16), 8, (1, 2), id="all of the part"),
        pytest.param((8, 24), 8, (1, 3), id="some"),
        pytest.param((24,), 16, (2,), id="from a later start, what is there"),
        pytest.param((), 8, (), id="none"),
    ],
)
def test_words_at_places(places: tuple[int, ...], start: int, words: tuple[int, ...]) -> None:
    data = b"".join(number.to_bytes(8, "big") for number in (1, 2, 3))
    take: Callable[[bytes, int], tuple[int, ...]] = _Words(places, ">").of
    assert take(data, start) == words
