# SPDX-License-Identifier: LGPL-2.1-or-later
"""Make the reference of the Python API from its docstrings, as pages for a browser.

    python -m contrib.docs.api -o DIR

Sphinx reads them; nothing is fetched, and the pages load nothing from elsewhere. It is an error
if a public name has no docstring or a docstring refers to something that does not exist.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import io
import pydoc
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from enum import Enum
from pathlib import Path
from types import GenericAlias
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.pycode import ModuleAnalyzer

import drgn_reliable

PACKAGE = "drgn_reliable"


@dataclass(frozen=True)
class Page:
    """A page of the reference: its modules, each with all of its public names or some."""

    title: str
    modules: dict[str, tuple[str, ...]]
    """Names by module below the package; none stands for all in its ``__all__``."""


PAGES = {
    "scan": Page(
        "Open and scan",
        {
            "opening": ("open_dump",),
            "report": ("scan", "scan_task", "Scanner"),
            "kernel": ("Kernel",),
        },
    ),
    "model": Page("What a report holds", {"model": ()}),
    "reasons": Page("Reasons", {"reasons": ()}),
    "errors": Page("Errors and exit statuses", {"errors": (), "exits": ()}),
    "explain": Page("Explain a walk", {"explain": ("explain_task",), "explanation": ()}),
    "livepatch": Page(
        "Livepatch transitions", {"livepatch": (), "transition": (), "patchstate": ()}
    ),
    "capsule": Page("Capsules", {"capsule": ()}),
    "fleet": Page(
        "Fleets",
        {
            "fleet": (),
            "fleet.scan": (),
            "fleet.sources": (),
            "fleet.engines": (),
            "fleet.isolation": ("Limits",),
            "fleet.events": (),
            "fleet.store": (),
            "fleet.storefile": (),
            "fleet.report": (),
        },
    ),
}


class BrokenReference(Exception):
    """The reference cannot be made as it ought to be; a line for each thing that is wrong."""


def names(module: str, wanted: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The names of a module that are in the reference."""
    return wanted or tuple(getattr(_module(module), "__all__", ()))


def places() -> dict[str, str]:
    """Every documented name, in full, and the page that has it."""
    return {
        f"{PACKAGE}.{module}.{name}": page
        for page, what in PAGES.items()
        for module, wanted in what.modules.items()
        for name in names(module, wanted)
    }


def place_of(name: str) -> str:
    """Where the reference has a name of the package itself: the full name.

    :raises BrokenReference: if it has not.
    """
    thing = getattr(drgn_reliable, name)
    for place in places():
        module, _, last = place.rpartition(".")
        if last == name and getattr(importlib.import_module(module), name) is thing:
            return place
    raise BrokenReference(f"{PACKAGE}.{name} is on no page")


def without_words() -> list[str]:
    """Public names that say nothing of themselves."""
    return [found for place in places() for found in _without_words(*place.rpartition(".")[::2])]


def build(out: Path) -> None:
    """Write the pages into a directory.

    :raises BrokenReference: if a name has no docstring, or a reference leads nowhere.
    """
    mute = without_words()
    if mute:
        raise BrokenReference("\n".join(f"{name} has no docstring" for name in mute))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        source.mkdir()
        (source / "index.rst").write_text("\n".join(_index()))
        for name, page in PAGES.items():
            (source / f"{name}.rst").write_text("\n".join(_page(page)))
        warnings = io.StringIO()
        app = Sphinx(
            source,
            confdir=None,
            outdir=out,
            doctreedir=Path(folder) / "doctrees",
            buildername="html",
            confoverrides=_SETTINGS,
            status=None,
            warning=warnings,
        )
        app.connect("missing-reference", _elsewhere)
        app.connect("autodoc-process-docstring", _no_alias)
        app.connect("autodoc-process-signature", _no_fields)
        app.build()
    if warnings.getvalue() or app.statuscode:
        raise BrokenReference(re.sub(r"\x1b\[[\d;]*m", "", warnings.getvalue()).strip())


_SETTINGS: dict[str, Any] = {
    "project": "drgn-reliable",
    "author": "",
    "copyright": "",
    "version": drgn_reliable.__version__,
    "release": drgn_reliable.__version__,
    "extensions": ["sphinx.ext.autodoc"],
    "html_theme": "alabaster",
    "html_theme_options": {"page_width": "1100px", "show_powered_by": False},
    "html_show_copyright": False,
    "html_copy_source": False,
    "html_sidebars": {"**": ["about.html", "navigation.html", "searchbox.html"]},
    "add_module_names": False,
    "autodoc_preserve_defaults": True,
    "autodoc_member_order": "bysource",
    "autodoc_typehints_format": "short",
    "python_use_unqualified_type_names": True,
    "python_maximum_signature_line_length": 88,
    "nitpicky": True,
    "keep_warnings": True,
}


def _module(name: str) -> Any:
    return importlib.import_module(f"{PACKAGE}.{name}")


def _kind(thing: object) -> str:
    # In Python 3.10 inspect takes an alias such as Callable[[int], None] for a class.
    if isinstance(thing, type) and not isinstance(thing, GenericAlias):
        return "class"
    return "function" if inspect.isroutine(thing) else "data"


def _without_words(module: str, name: str) -> Iterator[str]:
    """The name if it has no docstring, and the methods of a class that have none."""
    thing = getattr(importlib.import_module(module), name)
    if _kind(thing) == "class":
        # Dataclasses and named tuples without one are given their signature.
        if not thing.__doc__ or thing.__doc__.startswith(f"{name}("):
            yield f"{module}.{name}"
        for member, value in vars(thing).items():
            made = inspect.isroutine(value) or isinstance(value, property)
            if made and not member.startswith("_") and not inspect.getdoc(value):
                yield f"{module}.{name}.{member}"
    elif _kind(thing) == "function":
        if not thing.__doc__:
            yield f"{module}.{name}"
    elif ("", name) not in ModuleAnalyzer.for_module(module).find_attr_docs():
        yield f"{module}.{name}"


def _heading(text: str, line: str) -> Iterator[str]:
    yield from (text, line * len(text), "")


def _index() -> Iterator[str]:
    yield from _heading("Python API", "=")
    yield inspect.getdoc(drgn_reliable) or ""
    yield ""
    yield f"All of these are imported from ``{PACKAGE}``:"
    yield ""
    for name in drgn_reliable.__all__:
        yield f"* :py:obj:`{name} <{place_of(name)}>` {_first_sentence(name)}"
    yield from ("", ".. toctree::", "   :maxdepth: 1", "")
    yield from (f"   {name}" for name in PAGES)
    yield ""


def _first_sentence(name: str) -> str:
    thing = getattr(drgn_reliable, name)
    if _kind(thing) == "data":
        return ""
    return (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")


def _page(page: Page) -> Iterator[str]:
    yield from _heading(page.title, "=")
    for module, wanted in page.modules.items():
        whole = f"{PACKAGE}.{module}"
        if len(page.modules) > 1:
            yield from _heading(whole, "-")
        yield from (f".. automodule:: {whole}", "   :no-members:", "")
        for name in names(module, wanted):
            yield from _entry(whole, name)


def _entry(module: str, name: str) -> Iterator[str]:
    thing = getattr(importlib.import_module(module), name)
    kind = _kind(thing)
    yield f".. auto{kind}:: {module}.{name}"
    if kind == "class":
        yield from ("   :members:", "   :undoc-members:")
        if thing.__bases__ != (object,):
            yield "   :show-inheritance:"
    if kind == "data":
        yield "   :no-value:"
    yield ""


def _elsewhere(app: Sphinx, env: Any, node: nodes.Element, text: nodes.TextElement) -> Any:
    """A reference to what is not in the reference is mere text, if there is such a thing."""
    target = str(node.get("reftarget", ""))
    inside = node.get("py:module", "")
    around = node.get("py:class", "")
    beside = f"{str(inside).rpartition('.')[0] or PACKAGE}."
    for prefix in ("", f"{inside}.", f"{inside}.{around}.", beside, "typing."):
        if pydoc.locate(f"{prefix}{target}") is not None:
            return text
    return None


def _no_alias(
    app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]
) -> None:
    """Fields of named tuples say nothing but their number, unless a docstring follows them."""
    if len(lines) <= 2 and lines and lines[0].startswith("Alias for field number"):
        lines.clear()


def _no_fields(
    app: Sphinx, what: str, name: str, thing: Any, options: object, signature: str, returns: str
) -> tuple[str, str] | None:
    """Data and exceptions are read, not made: their fields follow, and are not listed twice."""
    data = what == "class" and (is_dataclass(thing) or issubclass(thing, (tuple, Enum)))
    return ("", "") if data or what == "exception" else None


def main() -> int:
    """Make the reference."""
    parser = argparse.ArgumentParser(prog="python -m contrib.docs.api", description=__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    try:
        build(args.output)
    except (BrokenReference, SphinxError) as error:
        print(f"api: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
