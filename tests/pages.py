# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the tests of the HTML report share: reports to draw, and a browser to draw them in."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drgn_reliable.reasons import CATALOGUE, SECTIONS
from drgn_reliable.render.page import write_page

Report = dict[str, Any]

# Reports ----------------------------------------------------------------------------------------


def reason(id: str) -> dict[str, Any]:
    """What the catalogue says of a reason, as a report has it."""
    kind = CATALOGUE[id]
    return {
        "section": kind.section,
        "section_title": SECTIONS[kind.section],
        "title": kind.title,
        "decided_by": kind.decided_by,
        "kernel": kind.kernel,
        "proof": kind.proof.value,
        "remedy": kind.remedy,
    }


def attempt(
    rung: str, outcome: str, detail: str, seconds: float, output: Sequence[str] = ()
) -> dict[str, Any]:
    """An attempt to scan a dump."""
    return {
        "rung": rung,
        "outcome": outcome,
        "detail": detail,
        "seconds": seconds,
        "memory": 90 << 20,
        "output": list(output),
    }


def dump(id: int, host: str | None, **known: Any) -> dict[str, Any]:
    """A dump that was read whole, if nothing else is said."""
    return {
        "id": id,
        "path": f"/srv/crash/{host or 'unknown'}/vmcore.{id}",
        "host": host,
        "labels": {"role": host.partition("-")[0]} if host else {},
        "status": "whole",
        "release": "6.12.107-amd64",
        "architecture": "x86_64",
        "unwinder": "ORC 3 (6.4 to 7.0)",
        "tasks": 0,
        "unreliable": 0,
        "stalled": False,
        "cause": None,
        "detail": None,
        "problems": [],
        "attempts": [attempt("debug information", "scanned", "", 0.6)],
        "seconds": 0.6,
        "size": 3 << 20,
        **known,
    }


def group(
    id: int, frames: list[str], tasks: int, examples: list[tuple[int, int, str]], **known: Any
):
    """A stack.

    :param examples: the dump, the PID and the command of some of its tasks.
    """
    dumps = {dump for dump, _, _ in examples}
    return {
        "id": id,
        "hash": f"{id:032x}",
        "frames": frames,
        "kernel": "reliable",
        "proof": "proven",
        "reasons": [],
        "in": next((name for name in frames if "schedule" not in name), "-"),
        "tasks": tasks,
        "dumps": len(dumps),
        "hosts": len(dumps),
        "releases": ["6.12.107-amd64"],
        "blocks": [],
        "examples": [
            {
                "dump": dump,
                "pid": pid,
                "comm": comm,
                "cpu": pid % 2,
                "state": "S",
                "kind": "user",
                "task": f"{0xFFFF888000000000 + (pid << 12):#x}",
            }
            for dump, pid, comm in examples
        ],
        "more": tasks - len(examples),
        **known,
    }


SYSCALL = ["do_syscall_64", "entry_SYSCALL_64_after_hwframe"]
SLEEP = ["__schedule", "schedule"]


def fleet() -> Report:
    """Six dumps of five hosts: two stalled transitions, one dump in part, two not at all."""
    dumps = [
        dump(1, "web-1", tasks=120, unreliable=3, stalled=True),
        dump(2, "web-2", tasks=96, stalled=True),
        dump(3, "web-10", tasks=1000, unreliable=2, release="6.1.0-50-amd64"),
        dump(
            4, "db-1", tasks=9, status="incomplete", architecture="s390x", release="6.12.107-s390x",
            unwinder="back chain", problems=["the file ends after 4096 of 9216 pages"],
        ),
        dump(
            5, "db-2", status="failed", cause="timeout", detail="no answer within 60 s",
            release=None, architecture=None, unwinder=None, seconds=90.0,
            attempts=[
                attempt("debug information", "timeout", "killed", 60.0),
                attempt("BTF", "crash", "signal 11", 30.0, ["Segmentation fault", "core"]),
            ],
        ),
        dump(
            6, None, status="failed", cause="refused", detail="riscv64 is not supported",
            release=None, architecture=None, unwinder=None, size=None,
        ),
    ]  # fmt: skip
    groups = [
        group(
            1, [*SLEEP, "eventfd_read", "vfs_read", *SYSCALL], 5,
            [(1, 65, "eventfd"), (1, 66, "eventfd"), (2, 7, "eventfd")], blocks=["klp_fix"],
        ),
        group(
            2, [*SLEEP, "handle_userfault", "bpf_prog_run", *SYSCALL], 3,
            [(1, 202, "bpf_syscall"), (1, 203, "bpf_syscall"), (1, 204, "bpf_syscall")],
            kernel="unreliable", proof="undecided", reasons=["bpf-no-unwind-data"],
            blocks=["klp_fix"],
        ),
        group(
            3, ["asm_exc_page_fault", "strncpy_from_user", *SYSCALL], 2,
            [(3, 9, "cat"), (3, 1000, "dd")], kernel="unreliable",
            reasons=["exception-frame-pointer"], releases=["6.1.0-50-amd64"],
        ),
        group(
            4, ["stopped", "smpboot_thread_fn", "kthread", "ret_from_fork"], 6,
            [(1, 16, "migration/0")], kernel="running", reasons=["running"],
        ),
        group(
            5, [*SLEEP, "do_wait", *SYSCALL], 9, [(4, 1, "init")], proof="refuted",
            reasons=["direction-not-checked"], releases=["6.12.107-s390x"],
        ),
        group(6, [*SLEEP, "ep_poll", *SYSCALL], 1200, [(1, 300, "nginx"), (3, 301, "redis")]),
    ]  # fmt: skip

    def found(id: str, groups: list[int], tasks: int, hosts: int) -> dict[str, Any]:
        return {"reason": id, "dumps": hosts, "hosts": hosts, "tasks": tasks, "releases": ["6.1"]}

    def figures(key: str, *of: int) -> dict[str, Any]:
        some = [each for each in dumps if each["id"] in of]
        return {
            "key": key,
            "dumps": len(some),
            "hosts": len({each["host"] for each in some if each["host"]}),
            "failed": sum(each["status"] == "failed" for each in some),
            "tasks": sum(each["tasks"] for each in some),
            "unreliable": sum(each["unreliable"] for each in some),
            "stalled": sum(each["stalled"] for each in some),
        }

    def transition(dump: int, **known: Any) -> dict[str, Any]:
        return {
            "dump": dump, "patch": "klp_fix", "target": "patched", "pending": 4, "switched": 116,
            "attempts": 8, "seconds": 8.04, "stalled": True, "sleeping": 0, "unreliable": 0,
            "running": 0, "would_switch": 0, "advice": ["Send its process SIGSTOP and SIGCONT."],
            **known,
        }  # fmt: skip

    return {
        "schema": "drgn-reliable-fleet/1",
        "title": "Dumps of July",
        "version": "0.1.0",
        "made": "2026-07-30T12:34:56+00:00",
        "one_dump": False,
        "scans": [
            {
                "scan": 1, "started": "2026-07-29T01:00:00+00:00", "finished": None,
                "state": "interrupted", "version": "0.1.0", "scanned": 1, "failed": 0,
            },
            {
                "scan": 2, "started": "2026-07-30T11:00:00+00:00",
                "finished": "2026-07-30T11:42:10+00:00", "state": "finished", "version": "0.1.0",
                "scanned": 5, "failed": 2,
            },
        ],
        "totals": {
            "dumps": 6, "whole": 3, "incomplete": 1, "failed": 2, "passed_over": 1, "hosts": 5,
            "releases": 3, "tasks": 1225, "stalled": 2,
            "kernel": {"reliable": 1214, "unreliable": 5, "running": 6, "unsupported": 0},
            "proof": {"proven": 1213, "refuted": 9, "undecided": 3},
        },
        "blocking": [
            {
                "patch": "klp_fix", "decision": "sleeping", "function": "eventfd_read",
                "module": None, "reason": None, "dumps": 2, "hosts": 2, "tasks": 5,
                "host_names": ["web-1", "web-2"], "dump_ids": [1, 2], "groups": [1],
            },
            {
                "patch": "klp_fix", "decision": "unreliable", "function": None, "module": None,
                "reason": "bpf-no-unwind-data", "dumps": 1, "hosts": 1, "tasks": 3,
                "host_names": ["web-1"], "dump_ids": [1], "groups": [2],
            },
        ],
        "transitions": [transition(1, sleeping=2, unreliable=3), transition(2, sleeping=3)],
        "by_reason": [
            found("direction-not-checked", [5], 9, 1),
            found("running", [4], 6, 3),
            found("bpf-no-unwind-data", [2], 3, 1),
            found("exception-frame-pointer", [3], 2, 1),
        ],
        "by_release": [
            figures("6.12.107-amd64", 1, 2), figures("6.1.0-50-amd64", 3),
            figures("6.12.107-s390x", 4),
        ],
        "by_architecture": [figures("x86_64", 1, 2, 3), figures("s390x", 4)],
        "by_host": [
            figures("web-1", 1), figures("web-10", 3), figures("web-2", 2), figures("db-1", 4),
            figures("db-2", 5),
        ],
        "by_label": [figures("role=web", 1, 2, 3), figures("role=db", 4, 5)],
        "by_function": [
            {"function": "handle_userfault", "dumps": 1, "hosts": 1, "tasks": 3},
            {"function": "asm_exc_page_fault", "dumps": 1, "hosts": 1, "tasks": 2},
        ],
        "reasons": {
            id: reason(id)
            for id in (
                "bpf-no-unwind-data", "exception-frame-pointer", "running", "direction-not-checked",
            )
        },
        "groups": groups,
        "groups_left_out": 1,
        "dumps": dumps,
        "passed_over": [{"path": "/srv/crash/README.txt", "why": "of no format that is known"}],
        "new": {
            "since": "scan 1",
            "reasons": [{"key": "bpf-no-unwind-data", "dumps": 1, "hosts": 1}],
            "functions": [],
            "stacks": [
                {"key": f"{2:032x}", "group": 2, "dumps": 1, "hosts": 1},
                {"key": f"{99:032x}", "group": None, "dumps": 1, "hosts": 1},
            ],
            "releases": [],
        },
    }  # fmt: skip


def quiet() -> Report:
    """A fleet without a transition, of which everything was read."""
    report = fleet()
    report["dumps"] = [{**report["dumps"][2], "stalled": False}]
    report["groups"] = report["groups"][2:3]
    report["totals"] |= {
        "dumps": 1, "whole": 1, "incomplete": 0, "failed": 0, "hosts": 1, "stalled": 0,
        "tasks": 1000, "kernel": {"reliable": 998, "unreliable": 2, "running": 0, "unsupported": 0},
    }  # fmt: skip
    return report | {"blocking": [], "transitions": [], "groups_left_out": 0, "new": None}


def one_dump() -> Report:
    """The first dump of the fleet by itself."""
    report = fleet()
    report["totals"] |= {
        "dumps": 1, "whole": 1, "incomplete": 0, "failed": 0, "hosts": 1, "stalled": 1,
        "passed_over": 0,
    }  # fmt: skip
    return report | {
        "title": "/srv/crash/web-1/vmcore.1", "one_dump": True, "dumps": report["dumps"][:1],
        "groups": report["groups"][:2], "blocking": report["blocking"][:1],
        "transitions": report["transitions"][:1], "scans": [], "passed_over": [], "new": None,
    }  # fmt: skip


def empty() -> Report:
    """A fleet of nothing: each list is empty and each number 0."""

    def emptied(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: emptied(member) for name, member in value.items()}
        return [] if isinstance(value, list) else 0 if isinstance(value, int) else value

    report = fleet()
    nothing = {name: emptied(member) for name, member in report.items()}
    return nothing | {"one_dump": False, "reasons": {}, "new": None}


def large(dumps: int, groups: int, tasks: int) -> Report:
    """A fleet of many dumps, stacks, and tasks that are listed."""
    report = fleet()
    each = tasks // groups
    report["dumps"] = [dump(i, f"web-{i}", tasks=i % 700, labels={}) for i in range(1, dumps + 1)]
    report["groups"] = [
        group(
            i,
            [f"leaf_{i}", *(f"f{depth}_{i >> depth}" for depth in range(3, 15)), *SYSCALL],
            each + i,
            [((i * 7 + n) % dumps + 1, i * each + n, f"task-{n}") for n in range(each)],
            kernel="unreliable" if i % 5 == 0 else "reliable",
            reasons=["running"] if i % 3 == 0 else [],
        )
        for i in range(1, groups + 1)
    ]
    report["by_host"] = [
        {**report["by_host"][0], "key": f"web-{i}", "tasks": i} for i in range(1, dumps + 1)
    ]
    return report | {"title": "Many"}


FIXED = frozenset(
    ("schema", "decision", "target", "status", "state", "kernel", "proof", "started", "made")
)
"""Members whose strings are words of this package, or its clock's."""


def with_names(text: str) -> Report:
    """The fleet, with one text for every name and every key that comes from elsewhere."""

    def named(value: Any, member: str = "") -> Any:
        if isinstance(value, dict):
            if member in ("labels", "reasons"):
                return dict.fromkeys([text], named(next(iter(value.values())))) if value else {}
            return {name: named(one, name) for name, one in value.items()}
        if isinstance(value, list):
            return [named(one, member) for one in value]
        return text if isinstance(value, str) and member not in FIXED else value

    return copy.deepcopy(named(fleet()))


# A browser --------------------------------------------------------------------------------------

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip

COLUMN = """
const [section, label] = arguments;
const table = document.querySelector(`#section-${section} > div > .table > table`);
if (!table || !table.checkVisibility()) return [];
const heads = [...table.querySelectorAll(":scope > thead th")];
const at = heads.findIndex((head) => head.textContent === label);
return [...table.querySelectorAll(":scope > tbody > tr:not(.details)")]
  .map((row) => row.children[at].innerText.trim());
"""
HEAD = """
const [section, label] = arguments;
return [...document.querySelectorAll(`#section-${section} > div > .table > table > thead th`)]
  .find((head) => head.textContent === label);
"""
CONTRASTS = """
// The smallest contrast between text and what is behind it, and the text, by WCAG's formula.
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
function rgba(color) {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = color;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
}
function luminance([r, g, b]) {
  const [x, y, z] = [r, g, b].map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
}
function behind(element) {
  for (; element; element = element.parentElement) {
    const color = rgba(getComputedStyle(element).backgroundColor);
    if (color[3] === 255) return color;
  }
  return [255, 255, 255, 255];
}
let worst = [Infinity, ""];
for (const element of document.body.querySelectorAll("*")) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  if (!own || !element.checkVisibility() || element.closest(":disabled, .narrow, .unseen, .skip")) {
    continue;
  }
  const [a, b] = [rgba(getComputedStyle(element).color), behind(element)].map(luminance);
  const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (contrast < worst[0]) worst = [contrast, element.outerHTML.slice(0, 200)];
}
return worst;
"""


class Browser:
    """A page in Chromium, by what a person does with it."""

    def __init__(self, driver: Any, directory: Path) -> None:
        self.driver = driver
        self.js: Callable[..., Any] = driver.execute_script
        self.directory = directory
        self.written: dict[int, tuple[Report, Path]] = {}
        self.opened = 0

    def open(self, report: Report, fragment: str = "") -> None:
        """Write a report, and open it as a file."""
        if id(report) not in self.written:
            path = self.directory / f"{len(self.written)}.html"
            with path.open("w", encoding="ascii") as out:
                write_page(report, out)
            self.written[id(report)] = (report, path)  # The report too: its id stays its own.
        path = self.written[id(report)][1]
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        self.opened += 1  # The same file with another fragment would not be opened anew.
        self.driver.get(f"{path.as_uri()}?{self.opened}{fragment}")

    def command(self, name: str, **parameters: Any) -> None:
        """A command of the DevTools protocol."""
        self.driver.execute_cdp_cmd(name, parameters)

    def width(self, width: int | None) -> None:
        """Be a window of that width, a phone's if it is narrow; None: as at first."""
        if width is None:
            self.command("Emulation.clearDeviceMetricsOverride")
            return
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=800, deviceScaleFactor=1, mobile=width < 700,
        )  # fmt: skip

    def media(self, kind: str = "", **features: str) -> None:
        """Prefer what a person has set (``prefers_color_scheme="dark"``), or print."""
        named = [{"name": n.replace("_", "-"), "value": v} for n, v in features.items()]
        self.command("Emulation.setEmulatedMedia", media=kind, features=named)

    def complaints(self) -> list[str]:
        """What the console says."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses that were asked for since the page was opened, if its policy let it ask."""
        asked, refused = {}, set()
        for entry in self.driver.get_log("performance"):
            event = json.loads(entry["message"])["message"]
            what = event["params"]
            if event["method"] == "Network.requestWillBeSent":
                asked[what["requestId"]] = what["request"]["url"]
            elif event["method"] == "Network.loadingFailed" and what.get("blockedReason") == "csp":
                refused.add(what["requestId"])
        return [address for id, address in asked.items() if id not in refused]

    def text(self, selector: str) -> str:
        """What is to be read there."""
        return "\n".join(self.texts(selector)[:1])

    def texts(self, selector: str) -> list[str]:
        return self.js(
            "return [...document.querySelectorAll(arguments[0])]"
            ".filter((e) => e.checkVisibility()).map((e) => e.innerText.trim())",
            selector,
        )

    def column(self, section: str, label: str) -> list[str]:
        """A column of a section's table, of the rows that are drawn."""
        return self.js(COLUMN, section, label)

    def sort(self, section: str, label: str) -> str | None:
        """Press a heading; returns its aria-sort."""
        head = self.js(HEAD, section, label)
        self.js("arguments[0].querySelector('button').click()", head)
        return head.get_attribute("aria-sort")

    def press(self, selector: str) -> None:
        """Click the first of what is there."""
        self.js(
            "const found = document.querySelector(arguments[0]); found.focus(); found.click()",
            selector,
        )

    def keys(self, *keys: str) -> None:
        """Press keys where the focus is."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def focused(self, attribute: str = "aria-label") -> str | None:
        return self.driver.switch_to.active_element.get_attribute(attribute)

    def filter(self, words: str) -> None:
        """Type into the filter, and wait till it is done."""
        self.js(
            """
            const [words, done] = arguments;
            const input = document.getElementById("filter");
            input.value = words;
            input.dispatchEvent(new Event("input"));
            """,
            words,
        )
        self.wait(lambda: self.fragment_filter() == words.strip())

    def fragment_filter(self) -> str:
        return self.js(
            "return new URLSearchParams(location.hash.split('?')[1] ?? '').get('filter') ?? ''"
        )

    def fragment(self) -> str:
        return self.js("return location.hash")

    def back(self) -> None:
        """Go back, and wait till the page has arrived there."""
        self.js("window.arrived = new Promise((go) => addEventListener('popstate', go))")
        self.driver.back()
        self.driver.execute_async_script("window.arrived.then(() => arguments[0]())")

    def wait(self, condition: Callable[[], bool]) -> None:
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.driver, 5, poll_frequency=0.02).until(lambda _: condition())


@contextmanager
def browser(chromium: str, chromedriver: str, directory: Path) -> Iterator[Browser]:
    """A browser with an empty profile."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={directory / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(chromedriver))
    try:
        yield Browser(driver, directory)
    finally:
        driver.quit()
