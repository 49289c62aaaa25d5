# SPDX-License-Identifier: LGPL-2.1-or-later
"""The HTML report: what is in the file, and what a person sees and does in a real browser.

The browser is Chromium, driven by selenium. Where one of them is missing its tests are skipped;
with ``VMLAB_REQUIRED=1``, as in ``.ci/run``, that is a failure.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from html.parser import HTMLParser
from importlib import resources
from importlib.util import find_spec
from typing import Any

import jsonschema
import pytest

from drgn_reliable.reasons import CATALOGUE
from drgn_reliable.render.page import write_page
from drgn_reliable.render.visible import visible
from tests import pages
from tests.pages import Browser, Report

# The file ---------------------------------------------------------------------------------------

HOSTILE = [
    pytest.param(text, id=id)
    for id, text in {
        "a script": "<script>window.pwned=1</script>",
        "the end of a script": "</script><script>window.pwned=1</script>",
        "a comment in a script": "<!--<script>window.pwned=1",
        "markup": "<img src=x onerror=window.pwned=1><svg onload=window.pwned=1>",
        "quotes": "\"'`><b onclick=window.pwned=1>&quot;&#x3c;&lt;",
        "an address": "javascript:window.pwned=1//https://example.net/",
        "a template": "{{data}} ${window.pwned=1} {{script}}",
        "controls": "\x00\x1b[31m\x07\r\n\x85",
        "directions": "\u202egpj\u2066\u200f\u061c.exe",
        "nothing to see": "\u200b\u2028\u2029\ufeff\u3164",
        "no character": "\udcff\ud800",
        "beyond the first plane": "\U0001f600\U000e0041",
        "__proto__": "__proto__",
        "constructor": "constructor",
        "a long word": "a" * 1000,
        "none": "",
    }.items()
]


class Parsed(HTMLParser):
    """A page's elements, in order: name, attributes, text directly in it."""

    VOID = ("meta", "link", "img", "br", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[list[str]] = []
        self.names: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))
        if tag not in self.VOID:
            self.names.append(tag)
            self.open.append(self.elements[-1][2])

    def handle_endtag(self, tag: str) -> None:
        assert self.names.pop() == tag
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open:
            self.open[-1].append(data)

    def all(self, tag: str, **wanted: str) -> list[tuple[dict[str, str | None], str]]:
        """Attributes and text of the elements of a name."""
        return [
            (attributes, "".join(text))
            for name, attributes, text in self.elements
            if name == tag and wanted.items() <= attributes.items()
        ]


def written(report: Report) -> str:
    out = io.StringIO()
    write_page(report, out)
    return out.getvalue()


SCHEMA = json.loads(
    resources.files("drgn_reliable").joinpath("schema/drgn-reliable-fleet-1.json").read_text()
)


@pytest.mark.parametrize("report", [
    pages.fleet(), pages.one_dump(), pages.quiet(), pages.large(dumps=3, groups=5, tasks=10),
], ids=["fleet", "one dump", "quiet", "large"])  # fmt: skip
def test_these_reports_are_what_a_store_gives(report: Report) -> None:
    """The reports of these tests follow the schema of ``fleet report --format json``."""
    jsonschema.validate(report, SCHEMA)


def test_the_page_is_well_formed_and_says_what_it_is() -> None:
    """Every element is closed; it has a language, a title, landmarks, a skip link and a word for
    those who run no scripts."""
    page = Parsed(written(pages.fleet()))
    assert page.names == []
    assert page.all("html", lang="en")
    assert page.all("title") == [({}, "Dumps of July")]
    assert [len(page.all(tag)) for tag in ("header", "nav", "main", "footer")] == [1, 1, 1, 1]
    assert page.all("a", href="#overview", **{"class": "skip"})
    assert "Allow scripts for this page" in page.all("noscript")[0][1] + page.all("p")[-1][1]


def test_nothing_is_loaded_from_anywhere() -> None:
    """No element has an address but the skip link, and no style imports anything."""
    page = Parsed(written(pages.fleet()))
    addresses = {
        value
        for _, attributes, _ in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster", "style")
    }
    assert addresses == {"#overview"}
    assert not re.search(r"url\(|@import", page.all("style")[0][1])


def source(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def test_the_policy_admits_the_pages_own_style_and_script_only() -> None:
    """The hashes are those of what stands in the page, and everything else is forbidden."""
    page = Parsed(written(pages.fleet()))
    ((_, style),) = page.all("style")
    ((_, script),) = page.all("script", type="module")
    ((meta, _),) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert (meta["content"] or "").split("; ") == [
        "default-src 'none'",
        f"style-src {source(style)}",
        f"script-src {source(script)}",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]


def made_visible(value: Any) -> Any:
    if isinstance(value, dict):
        return {visible(name): made_visible(member) for name, member in value.items()}
    if isinstance(value, list):
        return [made_visible(element) for element in value]
    return visible(value) if isinstance(value, str) else value


@pytest.mark.parametrize("text", HOSTILE)
def test_names_stay_data(text: str) -> None:
    """Whatever names are, the page has the same elements, is ASCII, and the data are read back
    with every name made visible."""
    report = pages.with_names(text)
    page = written(report)
    assert page.isascii()
    parsed = Parsed(page)
    others = Parsed(written(pages.fleet()))
    assert [e[:2] for e in parsed.elements] == [e[:2] for e in others.elements]
    ((_, data),) = parsed.all("script", id="data")
    assert json.loads(data) == made_visible(report)
    assert not set(data) & set("<>&")
    assert parsed.all("title") == [({}, visible(text))]


def test_a_number_that_is_none_is_refused() -> None:
    """JSON has no word for it, and a page that cannot be read is worse than none."""
    report = pages.fleet()
    report["dumps"][0]["seconds"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        written(report)


@pytest.mark.parametrize("sink", [
    "innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "Function(",
    "DOMParser", "createContextualFragment", "setTimeout(\"", "fetch(", "XMLHttpRequest", "import(",
])  # fmt: skip
def test_no_script_parses_markup_or_loads_anything(sink: str) -> None:
    """The scripts have none of the functions that make code or requests of strings."""
    folder = resources.files("drgn_reliable.render").joinpath("assets")
    scripts = [file for file in folder.iterdir() if file.name.endswith(".js")]
    assert len(scripts) > 3
    assert not [file.name for file in scripts if sink in file.read_text()]


def test_nothing_on_the_page_moves() -> None:
    """There is no animation that somebody would have to switch off."""
    ((_, style),) = Parsed(written(pages.fleet())).all("style")
    assert not re.search(r"animation|transition|scroll-behavior", style)


# The browser ------------------------------------------------------------------------------------


def missing(what: str) -> None:
    if os.environ.get("VMLAB_REQUIRED"):
        pytest.fail(f"VMLAB_REQUIRED is set, but {what}")
    pytest.skip(f"no browser was started: {what}")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests of this module."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        missing("chromium or chromedriver is not installed")
    if find_spec("selenium") is None:
        missing("selenium is not installed")
    with pages.browser(str(program), str(driver), tmp_path_factory.mktemp("pages")) as found:
        yield found


@pytest.fixture
def page(chromium: Browser) -> Iterator[Browser]:
    """The browser as it was at first; at the end it has not complained."""
    chromium.width(1200)
    yield chromium
    chromium.media()
    assert chromium.complaints() == []


FLEET, ONE, QUIET = pages.fleet(), pages.one_dump(), pages.quiet()
LARGE = pages.large(dumps=1000, groups=2000, tasks=20000)

SECTIONS_OF_FLEETS = [
    "Overview", "What blocks", "Transitions", "Not read whole", "Picture", "Reasons", "Stacks",
    "Kernels", "Architectures", "Hosts", "Labels", "Functions", "Dumps", "Passed over", "New",
    "Scans",
]  # fmt: skip


@pytest.mark.parametrize(("report", "sections"), [
    pytest.param(FLEET, SECTIONS_OF_FLEETS, id="a fleet"),
    pytest.param(
        ONE, [*SECTIONS_OF_FLEETS[:3], "Picture", "Reasons", "Stacks", "Functions"],
        id="one dump",
    ),
    pytest.param(pages.empty(), ["Overview"], id="nothing"),
])  # fmt: skip
def test_it_opens_with_the_sections_that_have_something(
    page: Browser, report: Report, sections: list[str]
) -> None:
    """The file asks for nothing but itself, nothing is wrong on the console, and each section has a
    link."""
    page.open(report)
    assert page.complaints() == []
    assert [address for address in page.requests() if not address.startswith("file:")] == []
    assert len(page.requests()) <= 1
    assert page.js("return performance.getEntriesByType('resource').length") == 0
    assert [title.split("\n")[0].rstrip(" 0123456789,") for title in page.texts("h2")] == sections
    assert len(page.texts("nav li")) == len(sections)
    assert page.text("#drawing") == ""


def changed(report: Report, **totals: Any) -> Report:
    return report | {"totals": report["totals"] | totals}


HEADLINES = {
    "a function that blocks": (
        FLEET,
        "2 of 6 dumps have a stalled livepatch transition: eventfd_read blocks klp_fix on web-1, "
        "web-2, and there is 1 more cause.",
    ),
    "an unreliable stack that blocks": (
        FLEET | {"blocking": FLEET["blocking"][1:]},
        "2 of 6 dumps have a stalled livepatch transition: unreliable stacks (bpf-no-unwind-data) "
        "block klp_fix on web-1.",
    ),
    "tasks on a CPU, of no host": (
        FLEET | {"blocking": [{**FLEET["blocking"][1], "decision": "running", "hosts": 0}]},
        "2 of 6 dumps have a stalled livepatch transition: tasks on a CPU block klp_fix in 1 dump.",
    ),
    "stalled, nobody knows why": (
        changed(FLEET, stalled=1) | {"blocking": []},
        "1 of 6 dumps has a stalled livepatch transition.",
    ),
    "one dump, stalled": (
        ONE,
        "The livepatch transition is stalled: eventfd_read blocks klp_fix (5 tasks).",
    ),
    "no transition": (
        QUIET,
        "No livepatch transition is stalled; 2 of 1,000 tasks have unreliable stacks.",
    ),
    "one task": (
        changed(QUIET, tasks=1, kernel={**QUIET["totals"]["kernel"], "unreliable": 1}),
        "No livepatch transition is stalled; 1 of 1 task has an unreliable stack.",
    ),
    "no task": (changed(QUIET, tasks=0), "No task of any dump could be read."),
    "no dump": (pages.empty(), "No dump was found."),
}


@pytest.mark.parametrize(("report", "sentence"), HEADLINES.values(), ids=HEADLINES)
def test_the_first_sentence_answers(page: Browser, report: Report, sentence: str) -> None:
    """It says what blocks which patch, and where, or that nothing does."""
    page.open(report)
    assert page.text(".headline") == sentence


CAUTIONS = {
    "a fleet": (FLEET, [
        "2 dumps could not be read: no figure counts what is in them.",
        "1 dump was read in part.",
        "1 stack did not fit in; all totals count it.",
        "New since scan 1: 1 reason, 2 stacks.",
    ]),
    "interrupted": (
        QUIET | {"scans": FLEET["scans"][:1]},
        ["The last scan was interrupted: the figures are of what it has done so far."],
    ),
    "running": (
        QUIET | {"scans": [{**FLEET["scans"][0], "state": "running"}]},
        ["The last scan is still running: the figures are of what it has done so far."],
    ),
    "a kernel without": (
        changed(QUIET, kernel={**QUIET["totals"]["kernel"], "unsupported": 9}),
        ["9 tasks are of kernels that have no reliable stack trace: unsupported."],
    ),
    "all is well": (QUIET, []),
}  # fmt: skip


@pytest.mark.parametrize(("report", "lines"), CAUTIONS.values(), ids=CAUTIONS)
def test_it_says_what_the_figures_lack(page: Browser, report: Report, lines: list[str]) -> None:
    """Scans that did not end, dumps that were not read and stacks that are left out are told."""
    page.open(report)
    assert page.texts(".cautions > li") == lines


def test_tiles_lead_to_what_they_count(page: Browser) -> None:
    """A verdict's figure is a link to the stacks with that verdict, a dump status's to those dumps;
    a figure of 0 is none."""
    page.open(FLEET)
    tiles = set(page.texts(".tile li"))
    assert tiles >= {"5 unreliable", "1,214 reliable", "9 refuted", "2 failed", "0 unsupported"}
    page.press(".tile a[href*='unreliable']")
    assert page.column("stacks", "Kernel") == ["unreliable", "unreliable"]
    page.press(".tile a[href*='failed']")
    assert page.column("dumps", "Read") == ["failed", "failed"]
    assert page.js("return document.querySelectorAll(`.tile a[href*='unsupported']`).length") == 0


# Filter -----------------------------------------------------------------------------------------

ALL_GROUPS = [each["in"] for each in FLEET["groups"]]


@pytest.mark.parametrize(("words", "stacks", "dumps"), [
    pytest.param("", ALL_GROUPS, [1, 2, 3, 4, 5, 6], id="nothing"),
    pytest.param("eventfd", ["eventfd_read"], [], id="a command"),
    pytest.param("EVENTFD_read", ["eventfd_read"], [], id="letters of any case"),
    pytest.param("vfs_read klp_fix", ["eventfd_read"], [], id="all words must match"),
    pytest.param("vfs_read handle_userfault", [], [], id="two words that never meet"),
    pytest.param("bpf-no-unwind-data", ["handle_userfault"], [], id="a reason"),
    pytest.param("s390x", ["do_wait"], [4], id="an architecture"),
    pytest.param("web-1", ALL_GROUPS[:4] + ALL_GROUPS[5:], [1, 3], id="part of a host's name"),
    pytest.param("host=web-1", [*ALL_GROUPS[:2], "stopped", "ep_poll"], [1], id="a host"),
    pytest.param("kernel=reliable", ["eventfd_read", "do_wait", "ep_poll"], [], id="a verdict"),
    pytest.param("transition=stalled", ALL_GROUPS[:2], [1, 2], id="what is stalled"),
    pytest.param("label=role=db", ["do_wait"], [4, 5], id="a label"),
    pytest.param('"4096 of 9216"', [], [4], id="words in quotes"),
    pytest.param("segmentation", [], [], id="what only an attempt says"),
    pytest.param("status=failed timeout", [], [5], id="a field and a word"),
    pytest.param("constructor=x", [], [], id="no field"),
])  # fmt: skip
def test_filter(page: Browser, words: str, stacks: list[str], dumps: list[int]) -> None:
    """All words must be found in a row, and FIELD=VALUE must be equal; the counts follow."""
    page.open(FLEET)
    page.filter(words)
    assert page.column("stacks", "In") == stacks
    assert [int(path.rpartition(".")[2]) for path in page.column("dumps", "Dump")] == dumps
    shown = f"{len(stacks)} of 6 stacks, {len(dumps)} of 6 dumps" if words else "6 stacks, 6 dumps"
    assert page.text("#shown") == shown
    assert page.text("#stacks-title") == f"Stacks {len(stacks)} of 6" if words else "Stacks 6"
    assert (page.text("#section-stacks > .none") != "") == (stacks == [])


def test_the_filter_is_typed_and_taken_back(page: Browser) -> None:
    """Typing narrows the page while it goes on, and it is part of the address; "Clear" takes the
    filter away, the back button gives it back."""
    page.open(FLEET)
    page.js("document.getElementById('filter').focus()")
    page.keys("redis")
    page.wait(lambda: page.column("stacks", "In") == ["ep_poll"])
    assert page.fragment() == "#?filter=redis"
    page.press("#bar button")
    assert len(page.column("stacks", "In")) == 6
    assert page.fragment() == page.text("#bar button") == ""
    page.back()
    assert page.column("stacks", "In") == ["ep_poll"]
    page.js("document.getElementById('filter').focus()")
    page.keys("\ue003" * 5)  # Backspace
    page.wait(lambda: len(page.column("stacks", "In")) == 6)
    assert page.fragment() == ""


def test_a_link_that_is_followed_while_typing(page: Browser) -> None:
    """What was typed just before counts, and does not take the address back."""
    page.open(FLEET)
    page.js(
        "const input = document.getElementById('filter'); input.value = 'syscall';"
        "input.dispatchEvent(new Event('input'));"
        """document.querySelector('#section-blocking a[href^="#group"]').click()"""
    )
    page.driver.execute_async_script("setTimeout(arguments[0], 200)")
    assert page.fragment() == "#group-1?filter=syscall"
    assert len(page.column("stacks", "In")) == 5


# Sort -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("label", "presses", "state", "hosts"), [
    pytest.param("Host", 0, None, "web-1 web-10 web-2 db-1 db-2", id="as given"),
    pytest.param("Host", 1, "ascending", "db-1 db-2 web-1 web-2 web-10", id="text"),
    pytest.param("Host", 2, "descending", "web-10 web-2 web-1 db-2 db-1", id="text, turned"),
    pytest.param("Host", 3, None, "web-1 web-10 web-2 db-1 db-2", id="as given again"),
    pytest.param("Tasks", 1, "descending", "web-10 web-1 web-2 db-1 db-2", id="numbers"),
    pytest.param("Tasks", 2, "ascending", "db-2 db-1 web-2 web-1 web-10", id="numbers, turned"),
    pytest.param("Share", 1, "descending", "web-1 web-10 web-2 db-1 db-2", id="nothing is last"),
    pytest.param("Share", 2, "ascending", "web-2 db-1 web-10 web-1 db-2", id="and stays last"),
])  # fmt: skip
def test_sort(page: Browser, label: str, presses: int, state: str | None, hosts: str) -> None:
    """A heading's button sorts: numbers as numbers, names with numbers in them too, nothing last;
    it turns the order, and then gives the first one back."""
    page.open(FLEET)
    states = [page.sort("hosts", label) for _ in range(presses)]
    assert (states or [None])[-1] == state
    assert page.column("hosts", "Host") == hosts.split()


def test_sorting_and_filtering_go_together(page: Browser) -> None:
    """What is filtered stays sorted, and what is sorted stays filtered."""
    page.open(FLEET)
    page.sort("stacks", "Tasks")
    page.filter("syscall")
    assert page.column("stacks", "Tasks") == ["1,200", "9", "5", "3", "2"]
    page.sort("stacks", "Tasks")
    assert page.column("stacks", "Tasks") == ["2", "3", "5", "9", "1,200"]


# Rows that open, links, the way back --------------------------------------------------------------


def test_from_what_blocks_to_the_task_and_its_dump_and_back(page: Browser) -> None:
    """A blocking row leads to its stack, the stack to its tasks, a task to its dump; each is an
    address, and the back button goes the same way."""
    page.open(FLEET)
    page.press("#section-blocking .opener")
    assert "web-1" in page.text("#section-blocking .details")
    page.press("#section-blocking .details a[href='#group-1']")
    assert page.fragment() == "#group-1"
    opened = page.text("#section-stacks .details")
    for line in ("#2 eventfd_read", "#5 entry_SYSCALL_64_after_hwframe", "5 tasks", "and 2 more"):
        assert line in opened
    assert page.focused("aria-expanded") == "true"
    page.press("#section-stacks .details a[href='#dump-2']")
    assert page.fragment() == "#dump-2"
    assert "klp_fix: stalled, 4 tasks left" in page.text("#section-dumps .details")
    page.back()
    assert page.fragment() == "#group-1"
    assert page.js("return document.activeElement.getAttribute('href')") == "#dump-2"
    page.back()
    assert page.fragment() == ""
    assert page.js("return document.activeElement.getAttribute('href')") == "#group-1"


@pytest.mark.parametrize(("fragment", "there", "focused"), [
    pytest.param("#group-2", "#section-stacks .details", "handle_userfault", id="a stack"),
    pytest.param("#dump-5", "#section-dumps .details", "/srv/crash/db-2/vmcore.5", id="a dump"),
    pytest.param("#reason-running", ".reason.arrived", "running", id="a reason"),
    pytest.param("#hosts", "#section-hosts", "Hosts 5", id="a section"),
    pytest.param("#dumps?filter=host%3Dweb-2", "#bar", "Dumps 1 of 6", id="what is filtered"),
    pytest.param("#group-2?filter=nginx", "#section-stacks", "handle_userfault", id="hidden"),
])  # fmt: skip
def test_an_address_leads_there(page: Browser, fragment: str, there: str, focused: str) -> None:
    """A link from elsewhere opens the row, scrolls to it and moves the focus; a filter that would
    hide it is dropped."""
    page.open(FLEET, fragment)
    assert page.text(there) != ""
    assert page.js("return document.activeElement.innerText.trim()") == focused
    top = page.js("return document.activeElement.getBoundingClientRect().top")
    assert 40 <= top < 800


@pytest.mark.parametrize("fragment", [
    "#group-77", "#dump-x", "#reason-", "#reason-%", "#nowhere", "#__proto__", "#group-constructor",
])  # fmt: skip
def test_an_address_that_leads_nowhere_says_so(page: Browser, fragment: str) -> None:
    """The page is there, with a line that says what is missing."""
    page.open(FLEET, fragment)
    assert page.text("#shown").startswith(f"There is no {fragment[1:]} in this report.")
    assert len(page.column("stacks", "In")) == 6


def test_opening_a_row_makes_its_address_which_outlives_a_reload(page: Browser) -> None:
    """The address can be sent to somebody: it has the row that was opened, and the filter."""
    page.open(FLEET)
    page.filter("syscall")
    page.press("#section-stacks .opener")
    assert page.fragment() == "#group-1?filter=syscall"
    page.driver.refresh()
    assert len(page.column("stacks", "In")) == 5
    assert "eventfd_read" in page.text("#section-stacks .details .frames")
    page.press("#section-stacks .opener")
    assert page.texts("#section-stacks .details") == []
    assert page.fragment() == "#?filter=syscall"


def test_a_failed_dump_shows_how_it_failed(page: Browser) -> None:
    """Cause, detail and each attempt are there without opening anything; the dump is a link."""
    page.open(FLEET)
    assert page.column("failed", "Cause") == ["timeout", "refused", "\u2013"]
    happened = page.column("failed", "What happened")
    assert [line for line in happened[0].split("\n") if line] == [
        "no answer within 60 s", "debug information: timeout, killed (60 s, 90 MiB)",
        "BTF: crash, signal 11 (30 s, 90 MiB)", "Segmentation fault", "core",
    ]  # fmt: skip
    assert "the file ends after 4096 of 9216 pages" in happened[2]
    page.press("#section-failed a[href='#dump-5']")
    assert "BTF: crash, signal 11 (30 s, 90 MiB)" in page.text("#section-dumps .details")


@pytest.mark.parametrize("id", FLEET["reasons"])
def test_each_reason_is_explained(page: Browser, id: str) -> None:
    """Its part of the page has the title, who decides, what it does, the remedy, the section of the
    kernel's document, the figures, and links to the stacks."""
    page.open(FLEET, f"#reason-{id}")
    kind = CATALOGUE[id]
    text = page.text(".reason.arrived")
    does = "It refuses the stack" if kind.kernel else "It overlooks this"
    for part in (id, kind.title, kind.decided_by, kind.remedy, f"\n{kind.section} ", does):
        assert part in text
    (found,) = [each for each in FLEET["groups"] if id in each["reasons"]]
    page.press(".reason.arrived a")
    assert page.fragment() == f"#group-{found['id']}"


def test_what_is_not_known_is_left_away_or_told(page: Browser) -> None:
    """Without any host there is no column of hosts; a stack without a frame, and a name without a
    letter, can still be read and pressed; a new stack that was left out has its hash."""
    report = changed(FLEET, hosts=0)
    nowhere = {**FLEET["groups"][0], "frames": [], "in": ""}
    scheduler = {**FLEET["groups"][1], "frames": ["__switch_to"], "in": ""}
    dumps = [{**each, "host": None} for each in FLEET["dumps"]]
    dumps[0]["path"] = ""
    report |= {"groups": [nowhere, scheduler], "dumps": dumps, "by_host": []}
    page.open(report, "#group-1")
    heads = set(page.texts("thead button"))
    assert "Dumps" in heads and not heads & {"Host", "Hosts"}
    assert page.column("stacks", "In") == ["no frame", "__switch_to"]
    assert page.column("dumps", "Dump")[0] == "(empty)"
    assert f"{99:032x}" in page.text("#section-new")


def test_copies_of_a_dump_know_each_other(page: Browser) -> None:
    """Copies have one number: both are in the table, a link leads to the first, which names the
    other; a stack is found by the host of either."""
    copy = {**FLEET["dumps"][1], "path": "/srv/copy", "host": "backup"}
    page.open(FLEET | {"dumps": [*FLEET["dumps"], copy]}, "#dump-2")
    assert "Copies\n/srv/copy" in page.text("#section-dumps .details")
    assert len(page.column("dumps", "Dump")) == 7
    page.filter("host=backup")
    assert page.column("dumps", "Dump") == ["/srv/copy"]
    assert page.column("stacks", "In") == ["eventfd_read"]


def test_deep_and_recursive_stacks_are_cut_short(page: Browser) -> None:
    """Calls of a function by itself are one line; of very deep stacks a part is drawn first, and
    their picture has an end."""
    deep = [*SLEEPING, *["again"] * 50, *(f"f{i % 100}" for i in range(4000))]
    report = FLEET | {"groups": [{**FLEET["groups"][0], "frames": deep}]}
    page.open(report, "#group-1")
    frames = page.texts("#section-stacks .frames li")
    assert frames[1:4] == ["#1 schedule", "#2\u201351 again", "#52 f0"]
    assert len(frames) == 60
    page.press("#section-stacks .details .more")
    assert len(page.texts("#section-stacks .frames li")) == 4003
    assert 100 < len(boxes(page)) < 200
    again = [*SLEEPING, *["again"] * 50, *pages.SYSCALL]
    page.open(FLEET | {"groups": [{**FLEET["groups"][0], "frames": again}]})
    assert [name for name, _ in boxes(page)[3:]] == ["again", "schedule", "__schedule"]


SLEEPING = ["__schedule", "schedule"]


# The picture ------------------------------------------------------------------------------------


def boxes(page: Browser) -> list[tuple[str, int]]:
    """The picture's boxes: their text, and their width in percent."""
    found = page.js(
        "return [...document.querySelectorAll('.boxes button')]"
        ".map((box) => [box.innerText, Math.round(parseFloat(box.style.width))])"
    )
    return [(name, width) for name, width in found]


def test_the_picture_is_as_wide_as_tasks_are_many(page: Browser) -> None:
    """The outermost function is on top, each box as wide as its part of the tasks; what blocks is
    drawn first, then the unreliable, then all."""
    page.open(FLEET)
    assert boxes(page) == [
        ("8 tasks", 100), ("entry_SYSCALL_64_after_hwframe", 100), ("do_syscall_64", 100),
        ("vfs_read", 63), ("bpf_prog_run", 38), ("eventfd_read", 63), ("handle_userfault", 38),
        ("schedule", 63), ("schedule", 38), ("__schedule", 63), ("__schedule", 38),
    ]  # fmt: skip
    classes = "[...document.querySelectorAll('.boxes button')].map((box) => box.className)"
    shades = page.js(f"return {classes}")
    assert shades[:5] == ["shade-2", "shade-2", "shade-2", "shade-0", "shade-4"]
    page.press("input[value='unreliable']")
    assert boxes(page)[0] == ("5 tasks", 100)
    page.press("input[value='all']")
    assert boxes(page)[:2] == [("1,225 tasks", 100), ("entry_SYSCALL_64_after_hwframe", 100)]
    # Of the two tasks of 1,225 nothing is drawn: they are less than 0.2 %.
    assert "asm_exc_page_fault" not in [name for name, _ in boxes(page)]


def test_the_picture_by_keyboard_alone(page: Browser) -> None:
    """Tab comes to one box; arrows move along calls and callers, Enter makes a box as wide as the
    picture, Escape goes back; a line says what has the focus."""
    page.open(FLEET)
    page.js("document.querySelector('input[name=choice]').focus()")
    page.keys("\ue004")  # Tab
    assert page.focused() == "8 tasks in 2 stacks, 3 unreliable (38 %)"
    down, right, left, up = "\ue015", "\ue014", "\ue012", "\ue013"
    page.keys(down, down, down)
    assert page.focused() == "vfs_read: 5 tasks, 63 % of those drawn; none unreliable"
    page.keys(right)
    wanted = "bpf_prog_run: 3 tasks, 38 % of those drawn; 3 unreliable (100 %)"
    assert page.focused() == page.text(".said") == wanted
    page.keys(right)
    assert page.focused() == wanted
    page.keys("\ue007")  # Enter
    assert page.focused() == wanted
    assert boxes(page)[3:] == [
        ("bpf_prog_run", 100), ("handle_userfault", 100), ("schedule", 100), ("__schedule", 100),
    ]  # fmt: skip
    assert "handle_userfault (3 tasks)" in page.text(".stacks")
    page.keys("\ue00c")  # Escape
    assert page.focused().startswith("do_syscall_64: 8 tasks")
    page.keys("\ue00c", "\ue00c", down, left, up)
    assert page.focused().startswith("8 tasks")
    assert len(boxes(page)) == 11
    assert page.js("return document.querySelectorAll('.boxes [tabindex=\"0\"]').length") == 1


def test_the_picture_by_mouse(page: Browser) -> None:
    """A press makes a box as wide as the picture, a press on what is above it or "Zoom out" undoes
    it; following one of its stacks does not."""
    page.open(FLEET)
    page.js("document.querySelectorAll('.boxes button')[4].click()")
    assert len(boxes(page)) == 7
    page.press(".stacks a")
    assert page.fragment() == "#group-2"
    assert len(boxes(page)) == 7
    page.press(".line button")
    assert len(boxes(page)) == 11
    page.js("document.querySelectorAll('.boxes button')[3].click()")
    page.press(".boxes button")
    assert len(boxes(page)) == 11
    assert page.js("return document.querySelector('.line button').disabled")


def test_the_filter_narrows_the_picture(page: Browser) -> None:
    """Only stacks that pass are drawn."""
    page.open(FLEET)
    page.filter("bpf_prog_run")
    assert boxes(page)[0] == ("3 tasks", 100)
    page.filter("nowhere")
    assert boxes(page) == []
    assert page.text(".said") == "No stack to draw."


# For everybody ----------------------------------------------------------------------------------


def test_rows_and_headings_by_keyboard_alone(page: Browser) -> None:
    """The skip link comes first; Enter sorts and opens; the focus can be seen."""
    page.open(FLEET)
    page.keys("\ue004")
    assert page.js("return document.activeElement.innerText") == "Skip to the overview"
    page.keys("\ue007")
    assert page.js("return document.activeElement.id") == "overview-title"
    page.js("document.querySelector('#section-stacks thead button').focus()")
    page.keys("\ue007")
    assert page.column("stacks", "In") == sorted(ALL_GROUPS)
    assert page.js("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.js("document.querySelector('#section-stacks .opener').focus()")
    page.keys("\ue007")
    assert page.focused("aria-expanded") == "true"
    page.keys(" ")
    assert page.focused("aria-expanded") == "false"


TOO_FAR = """
return [...document.querySelectorAll("main *")].filter((element) =>
  element.checkVisibility() && !element.closest(".boxes, .unseen") &&
  element.getBoundingClientRect().right > innerWidth + 1
).map((element) => element.outerHTML.slice(0, 100));
"""


@pytest.mark.parametrize("report", [
    pytest.param(FLEET, id="a fleet"), pytest.param(ONE, id="one dump"),
    pytest.param(pages.with_names("/a/long-word_of-many.parts" * 20), id="long names"),
])  # fmt: skip
def test_no_width_needs_scrolling_sideways(page: Browser, report: Report) -> None:
    """On a phone and on a screen everything is within the page, rows that are open, too."""
    page.open(report)
    page.js("document.querySelectorAll('.opener').forEach((button) => button.click())")
    for width in (320, 400, 800, 960, 1200, 1360, 1900):
        page.width(width)
        assert page.js(TOO_FAR) == [], width
        assert page.js("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out(page: Browser, scheme: str, width: int) -> None:
    """In both colour schemes the contrast of every text is 4.5 or more, as WCAG asks."""
    page.width(width)
    page.media(prefers_color_scheme=scheme)
    page.open(FLEET, "#group-2")
    page.js("document.querySelectorAll('.opener[aria-expanded=false]').forEach((b) => b.click())")
    page.js("document.querySelectorAll('.boxes button')[4].click()")
    lightness = page.js("return getComputedStyle(document.body).backgroundColor")
    assert (lightness == "rgb(255, 255, 255)") == (scheme == "light")
    contrast, where = page.js(pages.CONTRASTS)
    assert contrast >= 4.5, where


def test_on_paper_there_is_nothing_to_press(page: Browser) -> None:
    """Printed, the page has its tables and no filter."""
    page.open(FLEET)
    page.media("print")
    assert page.text("#bar") == page.text("nav") == ""
    assert len(page.column("stacks", "In")) == 6


def test_without_scripts_it_says_so(page: Browser) -> None:
    """The page explains what is missing."""
    page.command("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open(FLEET)
        assert "Allow scripts for this page" in page.driver.find_element("id", "main").text
    finally:
        page.command("Emulation.setScriptExecutionDisabled", value=False)


# Hostile names ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_are_shown_and_do_nothing(page: Browser, text: str) -> None:
    """Every name is this text: it is to be read wherever a name is, no part of it is markup or an
    address, and nothing of it runs."""
    page.open(pages.with_names(text))
    page.js("document.querySelectorAll('.opener').forEach((button) => button.click())")
    for where in ("h1", ".headline", "#section-blocking tbody", ".frames", ".boxes", ".reason h3"):
        assert " ".join(visible(text).split()) in page.text(where).replace("\n", " ")
    assert page.js("return window.pwned ?? null") is None
    assert page.js("return document.querySelectorAll('script, style, img, svg').length") == 3
    links = page.js("return [...document.querySelectorAll('[href]')].map((a) => a.href)")
    assert [link for link in links if not link.startswith("file:///")] == []
    page.press("#section-reasons tbody a")
    page.press("#section-hosts tbody a")
    assert len(page.column("dumps", "Dump")) == 5  # one is of no host
    assert page.complaints() == []
    assert len(page.requests()) <= 1


def test_names_keep_their_direction(page: Browser) -> None:
    """Letters that are written from the right do not turn what is around them."""
    page.open(pages.with_names("\u05d0\u05d1/1"))
    name = "document.querySelector('#section-dumps .opener .name')"
    style = page.js(f"const s = getComputedStyle({name}); return [s.direction, s.unicodeBidi]")
    assert style == ["ltr", "isolate"]


ATTEMPTS = {
    "a script": "add('script', 'textContent', 'window.pwned = 1')",
    "markup": "document.body.innerHTML = '<img src=x onerror=window.pwned=1>'",
    "a handler": "document.body.setAttribute('onclick', 'window.pwned=1'); document.body.click()",
    "an address that runs": "add('a', 'href', 'javascript:window.pwned = 1').click()",
    "an image": "add('img', 'src', 'https://example.net/')",
    "a frame": "add('iframe', 'src', 'https://example.net/')",
    "a base": "add('base', 'href', 'https://example.net/')",
    "a request": "fetch('https://example.net/').catch(() => null)",
}
ADD = """
const add = (tag, name, value) => {
  const element = document.createElement(tag);
  element[name] = value;
  document.body.append(element);
  return element;
};
"""


@pytest.mark.parametrize("attempt", ATTEMPTS.values(), ids=ATTEMPTS)
def test_the_policy_stops_what_would_slip_in(page: Browser, attempt: str) -> None:
    """Even if a name became markup, the browser would neither run it nor ask for anything."""
    page.open(FLEET)
    page.js(f"{ADD} try {{ {attempt} }} catch (e) {{ console.error(String(e)) }}")
    page.driver.execute_async_script("setTimeout(arguments[0], 30)")
    assert page.js("return window.pwned ?? null") is None
    assert page.js("return document.baseURI").startswith("file:")
    refusals = page.complaints()
    assert refusals
    assert all("Content Security Policy" in line or "Trusted" in line for line in refusals)
    assert [address for address in page.requests() if "example.net" in address] == []


# Large fleets -----------------------------------------------------------------------------------


def test_a_large_fleet_opens_at_once(page: Browser) -> None:
    """1,000 dumps, 2,000 stacks and 20,000 tasks are drawn within 2 seconds."""
    page.open(LARGE)
    took = page.js("return performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    assert page.text("#shown") == "2,000 stacks, 1,000 dumps"
    assert took < 2000


def test_large_tables_are_drawn_in_parts(page: Browser) -> None:
    """100 rows are drawn, then 200 more at each press; sorting and filtering take all rows."""
    page.open(LARGE)
    assert len(page.column("stacks", "In")) == 100
    assert page.text("#section-stacks > div > .table > .more") == "Show 200 more of 1,900"
    page.press("#section-stacks > div > .table > .more")
    assert len(page.column("stacks", "In")) == 300
    assert page.js("return document.activeElement.innerText.trim()") == "leaf_101"
    page.sort("stacks", "Tasks")
    assert page.column("stacks", "In")[0] == "leaf_2000"
    assert len(page.column("stacks", "In")) == 100
    page.filter("leaf_1999")
    assert page.column("stacks", "In") == ["leaf_1999"]
    assert page.text("#section-stacks > div > .table > .more") == ""


def test_an_address_reaches_the_last_row_of_a_large_table(page: Browser) -> None:
    """The rows before it are drawn then."""
    page.open(LARGE, "#group-2000")
    assert "leaf_2000" in page.text("#section-stacks .details .frames")
    assert page.js("return document.activeElement.innerText.trim()") == "leaf_2000"
