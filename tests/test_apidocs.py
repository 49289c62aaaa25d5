# SPDX-License-Identifier: LGPL-2.1-or-later
"""The API reference is made of the docstrings, has every public name, and shows no faults."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

import drgn_reliable
from contrib.docs import api


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages."""
    out = tmp_path_factory.mktemp("api")
    api.build(out)
    return out


def test_every_public_name_is_there(reference: Path) -> None:
    """Each name of a documented module on its page, each of the package on the first."""
    pages = {page: (reference / f"{page}.html").read_text() for page in ("index", *api.PAGES)}
    assert {place.rpartition(".")[2] for place in api.places()} >= set(drgn_reliable.__all__)
    for place, page in api.places().items():
        assert f'id="{place}"' in pages[page], place
    for name in drgn_reliable.__all__:
        place = api.place_of(name)
        assert f'href="{api.places()[place]}.html#{place}"' in pages["index"], name


def test_markup_is_rendered(reference: Path) -> None:
    """No role, no field and no double backquote is shown as it is written."""
    for page in api.PAGES:
        text = re.sub(r"<[^>]+>", "", (reference / f"{page}.html").read_text())
        assert not re.findall(r":(?:class|func|meth|mod|data|attr|param|raises)[^\n:]*:.{30}", text)
        assert "``" not in text


def test_nothing_is_loaded_from_elsewhere(reference: Path) -> None:
    """Neither scripts, styles, fonts nor pictures."""
    for file in (*reference.glob("*.html"), *reference.rglob("*.css")):
        loaded = r"""<(?:script|link|img)[^>]*(?:src|href)="\w*:?//|url\(['"]?\w*:?//|@import"""
        assert not re.search(loaded, file.read_text()), file.name


FAULTS = {
    "See :func:`drgn_reliable.scanned`.": "reference target not found: drgn_reliable.scanned",
    "See :class:`~.model.TaskRaport`.": "reference target not found: model.TaskRaport",
    "Has ``no end.": "Inline literal start-string without end-string",
}
"""Docstrings, and what is said of them."""


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module that is in the reference, too."""
    module = types.ModuleType("drgn_reliable.made_up", "A module.")
    module.__all__ = []  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    pages = {"made_up": api.Page("Made up", {"made_up": ()})}
    monkeypatch.setattr(api, "PAGES", api.PAGES | pages)
    return module


def add(module: types.ModuleType, name: str, docstring: str | None) -> None:
    """Put a function into a module."""

    def function() -> None: ...

    function.__doc__, function.__module__, function.__name__ = docstring, module.__name__, name
    setattr(module, name, function)
    module.__all__.append(name)


def test_a_name_without_words_is_an_error(made_up: types.ModuleType, tmp_path: Path) -> None:
    """Every public name says what it is."""
    add(made_up, "mute", None)
    with pytest.raises(api.BrokenReference, match=r"made_up\.mute has no docstring"):
        api.build(tmp_path)


def test_faults_in_docstrings_are_errors(made_up: types.ModuleType, tmp_path: Path) -> None:
    """References to nothing, and broken markup."""
    for number, docstring in enumerate(FAULTS):
        add(made_up, f"function{number}", docstring)
    with pytest.raises(api.BrokenReference) as caught:
        api.build(tmp_path)
    assert [fault for fault in FAULTS.values() if fault not in str(caught.value)] == []
