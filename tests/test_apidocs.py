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


@pytest.mark.parametrize(
    ("docstring", "fault"),
    [
        (None, "drgn_reliable.made_up.function has no docstring"),
        ("See :func:`drgn_reliable.scanned`.", "reference target not found: drgn_reliable.scanned"),
        ("See :class:`~.model.TaskRaport`.", "reference target not found: model.TaskRaport"),
        ("Has ``no end.", "Inline literal start-string without end-string"),
    ],
)
def test_a_fault_is_an_error(
    docstring: str | None, fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A public name without a docstring, a reference to nothing, broken markup."""

    def function() -> None: ...

    module = types.ModuleType("drgn_reliable.made_up", "A module.")
    function.__doc__, function.__module__ = docstring, module.__name__
    module.function, module.__all__ = function, ("function",)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    pages = {"made_up": api.Page("Made up", {"made_up": ()})}
    monkeypatch.setattr(api, "PAGES", api.PAGES | pages)
    with pytest.raises(api.BrokenReference, match=re.escape(fault)):
        api.build(tmp_path)
