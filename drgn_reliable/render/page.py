# SPDX-License-Identifier: LGPL-2.1-or-later
"""The report as one HTML file: it works offline, and what is in a dump cannot make it do anything.

The page in ``assets/`` is a shell, a style and scripts; the data go in as JSON and are drawn by the
scripts, which make text nodes and never parse markup. A content security policy admits that very
style and those very scripts by their hashes, and nothing from anywhere else.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from html import escape
from importlib import resources
from typing import Any, TextIO

from drgn_reliable.render.visible import visible

__all__ = ("write_page",)

_SCRIPTS = (
    "base.js", "filter.js", "table.js", "picture.js", "lists.js", "stacks.js", "overview.js",
    "report.js",
)  # fmt: skip
"""In the order in which they need each other; in the page they are one."""
_PLACE = re.compile(r"\{\{(\w+)\}\}")
_IN_MARKUP = {ord(each): f"\\u{ord(each):04x}" for each in "<>&"}
"""Characters that mean something to HTML; JSON has them in strings only, where this is the same."""


def write_page(data: Mapping[str, Any], out: TextIO) -> None:
    """Write the report of a fleet or of one dump.

    The page is ASCII, so the encoding of ``out`` does not matter.

    :param data: what ``fleet report --format json`` gives
        (``drgn_reliable/schema/drgn-reliable-fleet-1.json``).
    :raises ValueError: if a number in it is not finite, which JSON has no word for.
    """
    style = _asset("report.css")
    script = "".join(map(_asset, _SCRIPTS))
    filled = {
        "policy": _policy(style, script),
        "title": escape(visible(data["title"])).encode("ascii", "xmlcharrefreplace").decode(),
        "style": style,
        "data": _embedded(data),
        "script": script,
    }
    # Split, not replaced one after the other: what is filled in is never looked at again.
    for number, part in enumerate(_PLACE.split(_asset("report.html"))):
        out.write(filled[part] if number % 2 else part)


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("assets", name).read_text(encoding="ascii")


def _policy(style: str, script: str) -> str:
    """Nothing but the page's own style and script; no markup from strings, no base, no forms."""
    return "; ".join(
        (
            "default-src 'none'",
            f"style-src {_source(style)}",
            f"script-src {_source(script)}",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def _source(text: str) -> str:
    digest = b64encode(sha256(text.encode("ascii")).digest()).decode("ascii")
    return f"'sha256-{digest}'"


def _embedded(data: Mapping[str, Any]) -> str:
    """The data as JSON that may stand in a script element."""
    text = json.dumps(_shown(data), allow_nan=False, separators=(",", ":"))
    return text.translate(_IN_MARKUP)


def _shown(value: Any) -> Any:
    """The same with every string made visible, names of members included."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(name): _shown(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(element) for element in value]
    return value
