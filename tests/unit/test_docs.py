"""The documents are true: docs/protocol.md and docs/operating.md are compared with the code.

Each check takes a text and returns its faults, so that the last tests can feed it wrong ones. The
examples of protocol.md are one conversation with a virtual node. UPDATE=1 rewrites what is made.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import msgspec
import pytest

from edgenode import config, definitions, encode, lead, metrics, misfire, occupancy, spreading
from edgenode.consumers import dead, deliver, plan
from edgenode.doors import zeromq
from edgenode.node import FREE_OPS, OPS
from edgenode.verbs import consume, look, overdue
from edgenode.verbs.about import BODIES
from engine import record
from minoots.cli import cli
from minoots.wire import bodies, definition, frames, problems, times
from tests.sim.driver import Driver

ROOT = Path(__file__).resolve().parent.parent.parent
PROTOCOL = ROOT / "docs/protocol.md"
OPERATING = ROOT / "docs/operating.md"
DOCUMENTS = (PROTOCOL, OPERATING, ROOT / "docs/format.md")
E2E = ROOT / "tests/e2e"

CONFIG_TABLE = re.compile(r"(?<=<!-- config:begin -->\n).*?(?=<!-- config:end -->)", re.DOTALL)
CONSTANTS: tuple[ModuleType, ...] = (frames, bodies, definition, times, definitions, misfire)
CONSTANTS += (zeromq, look, config, record, lead, metrics, plan, deliver, dead, consume, overdue)
CONSTANTS += (occupancy, spreading)


class Block(NamedTuple):
    """A fenced block: its info string as words, its text, and where the text lies."""

    words: list[str]
    text: str
    span: tuple[int, int]


def blocks(page: str) -> list[Block]:
    found = re.finditer(r"^```([^\n]*)\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [Block(match[1].split(), match[2], match.span(2)) for match in found]


def rows(page: str, first_cell: str) -> list[list[str]]:
    """The cells of the rows of every table whose header begins with `first_cell`."""
    found = []
    for table in re.findall(r"(?:^\|.*\n?)+", page, re.MULTILINE):
        lines = [re.split(r"(?<!\\)\|", line.strip("|")) for line in table.splitlines()]
        header, _, *body = ([cell.strip() for cell in cells] for cells in (*lines, [], []))
        if header[0] == first_cell:
            found += [cells for cells in body if cells]
    return found


def code_of(cell: str) -> str:
    return cell.strip("`")


def differences(said: set[str], true: set[str], what: str) -> list[str]:
    missing = [f"{what} {name} is not described" for name in sorted(true - said)]
    return missing + [f"{what} {name} does not exist" for name in sorted(said - true)]


# ------------------------------------------------------------------------------ the checks


def config_table() -> str:
    lines = ["| key | default | range | meaning |", "|---|---|---|---|"]
    for name, default, span, meaning in config.describe():
        span = span.replace("|", r"\|")
        lines.append(f"| `{name}` | `{default}` | {span} | {meaning} |")
    return "\n".join(lines) + "\n"


def config_faults(page: str) -> list[str]:
    found = CONFIG_TABLE.search(page)
    if found is None:
        return ["there is no table between config:begin and config:end"]
    return [] if found[0] == config_table() else ["the table of keys is old; run with UPDATE=1"]


def sources() -> str:
    return "\n".join(path.read_text() for path in sorted((ROOT / "edgenode").rglob("*.py")))


def unused_key_faults(page: str) -> list[str]:
    """The sentence about keys that nothing reads names just those."""
    told = re.search(r"^Keys that nothing reads yet: ([^\n]*\n?[^\n]*)\. ", page, re.MULTILINE)
    said = set(re.findall(r"`([\w.]+)`", told[1])) if told else set()
    names = [name for name, *_ in config.describe()]
    text = sources()
    idle = {name for name in names if not re.search(rf"\.{name.partition('.')[2]}\b", text)}
    return differences(said, idle, "idle key")


def log_faults(page: str) -> list[str]:
    said = {(cells[1], code_of(cells[0])) for cells in rows(page, "log line")}
    # The level may be lowered in a repetition.
    true = set(re.findall(r'\bsay\(\s*(?:"debug" if .+? else )?"(\w+)",\s*"(\w+)"', sources()))
    return differences({" ".join(x) for x in said}, {" ".join(x) for x in true}, "log line")


def command_faults(page: str) -> list[str]:
    import_module("edgenode.__main__")  # adds the verbs of the node
    named = re.findall(r"`minoots ([a-z][\w-]*)", page) + re.findall(r"^    minoots (\w+)", page)
    return [f"there is no verb minoots {name}" for name in named if name not in cli.commands]


def verb_faults(page: str) -> list[str]:
    said = re.findall(r"^### `([a-z_.]+)`$", page, re.MULTILINE)
    faults = differences(set(said), {*OPS, *FREE_OPS}, "verb")
    changing = re.search(r"^The verbs that change: ([^.]+(?:\.\w[^.]*)+)\.$", page, re.MULTILINE)
    listed = set(re.findall(r"`([a-z_.]+)`", changing[1])) if changing else set()
    faults += differences(listed, {op for op in OPS if OPS[op].changes}, "verb that changes")
    return faults + [f"verb {op} has two sections" for op in set(said) if said.count(op) > 1]


def problem_faults(page: str) -> list[str]:
    said = {code_of(cells[0]): cells[1:] for cells in rows(page, "code")}
    faults = differences(set(said), set(problems.CODES), "problem")
    text = sources()
    for code, (status, _, retryable) in problems.CODES.items():
        sent = f'"{code}"' in text
        true = [str(status), ("no", "yes")[retryable], ("not yet", "yes")[sent]]
        if code in said and said[code][:3] != true:
            faults.append(f"problem {code} is {said[code][:3]}; true is {true}")
    return faults


def event_faults(page: str) -> list[str]:
    said = {code_of(cells[0]): cells[1] for cells in rows(page, "event")}
    faults = differences(set(said), set(encode.KIND_NAMES.values()), "event")
    text = sources().replace((ROOT / "edgenode/encode.py").read_text(), "")
    for kind, name in encode.KIND_NAMES.items():
        sent = re.search(rf"\bKind\.{kind.name}\b", text)  # type: ignore[attr-defined]
        true = "yes" if sent else "not yet"
        if said.get(name, true) != true:
            faults.append(f"event {name} is said to be sent: {said[name]}; true is {true}")
    return faults


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    if field.default_factory is msgspec.NODEFAULT:
        return "none" if field.default is None else f"`{json.dumps(field.default)}`"
    return f"`{msgspec.json.encode(field.default_factory()).decode()}`"


def member_faults(page: str) -> list[str]:
    """Each table after `<!-- members TYPE -->` has the members and defaults of that struct."""
    faults, found = [], set()
    for match in re.finditer(r"<!-- members (\w+) -->\n\n?((?:\|.*\n)*)", page):
        name = match[1]
        found.add(name)
        struct = getattr(bodies, name, None) or getattr(definition, name, None)
        if struct is None:
            faults.append(f"there is no type {name}")
            continue
        said = {code_of(cells[0]): cells[2] for cells in rows(match[2], "member")}
        fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
        faults += differences(set(said), set(fields), f"{name}, member")
        for member in set(said) & set(fields):
            if said[member] != _default(fields[member]):
                true = _default(fields[member])
                faults.append(f"{name}.{member}: default is {said[member]}; true is {true}")
    for op, struct in BODIES.items():
        if msgspec.structs.fields(struct) and struct.__name__ not in found:
            faults.append(f"no table of members for {struct.__name__}, the body of {op}")
    return faults


def _constant(name: str) -> object:
    """The number behind a name: of a module, or the default of a key of the configuration."""
    section, dot, key = name.partition(".")
    if dot:
        return getattr(getattr(config.Config(), section, None), key, None)
    return next((getattr(module, name) for module in CONSTANTS if hasattr(module, name)), None)


def limit_faults(page: str) -> list[str]:
    """Rows of the limits tables, and `number unit (`NAME`)` in the text."""
    unit = "(?: (?:ns|us|ms|s|m|h|d)\\b)?"
    quoted = [(cells[1], code_of(cells[0])) for cells in rows(page, "limit")]
    quoted += re.findall(rf"(\d[\d,]*{unit})[^()|\n\d]{{0,12}}\(`([\w.]+)`\)", page)
    faults = []
    for text, name in quoted:
        true = _constant(name)
        plain = text.replace(",", "").replace(" ", "")
        in_ns = not plain.isdigit() and not name.endswith(("_US", "_MS", "_S"))
        said = times.parse_duration(plain) if in_ns else int(plain.rstrip("nums"))
        if said != true:
            faults.append(f"limit {name} is {text}; true is {true}")
    return faults if quoted else ["no limit is quoted"]


def request_faults(page: str) -> list[str]:
    faults = []
    for block in blocks(page):
        if block.words[:2] != ["json", "request"]:
            continue
        op = block.words[2]
        if op not in BODIES:
            faults.append(f"a request of {op}, which has no body")
            continue
        try:
            msgspec.json.decode(block.text, type=BODIES[op])
        except msgspec.DecodeError as error:
            faults.append(f"a request of {op} does not decode: {error}")
    return faults


def frame_faults(page: str) -> list[str]:
    """`frame N  M bytes  text`: the text has so many bytes."""
    faults, count = [], 0
    for match in re.finditer(r"^frame (\d) +(\d+) bytes? +(\S.*?)(?: +<-.*)?$", page, re.MULTILINE):
        count += 1
        text = match[3]
        hexadecimal = re.fullmatch(r"(?:(?:[0-9a-f]{2})+ )+(?:[0-9a-f]{2})+", text)
        true = len(bytes.fromhex(text)) if hexadecimal else len(text.encode())
        if true != int(match[2]):
            faults.append(f"frame {match[1]} has {true} bytes, not {match[2]}: {text[:40]}")
    return faults if count else ["no frames are shown"]


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def link_faults(page: str, folder: Path) -> list[str]:
    faults = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = folder / path if path else None
        if file is not None and not file.exists():
            faults.append(f"link to {target}: there is no such file")
            continue
        text = file.read_text() if file is not None and file.is_file() else page
        slugs = {slug(line) for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
        if anchor and anchor not in slugs:
            faults.append(f"link to {target}: there is no such heading")
    return faults


def named_tests(page: str) -> list[tuple[str, str]]:
    return re.findall(r"\b(tests/[\w/]+\.py)(?:::(\w+))?", page)


def named_test_faults(page: str, *, e2e_written: bool) -> list[str]:
    faults = []
    for file, function in named_tests(page):
        path = ROOT / file
        if file.startswith("tests/e2e/") and not e2e_written:
            continue
        if not path.exists():
            faults.append(f"{file} does not exist")
        elif function and f"def {function}(" not in path.read_text():
            faults.append(f"{file} has no {function}")
    for cells in rows(page, "promise"):
        if not named_tests(cells[-1]):
            faults.append(f"no test is named for the promise {cells[0][:60]!r}")
    return faults


# ------------------------------------------------------------------------------ the session


def laid_out(value: Any) -> str:
    """JSON with one member a line where it does not fit into one."""
    text = json.dumps(value, ensure_ascii=False)
    if len(text) <= 90:
        return text + "\n"
    keys = list(value) if isinstance(value, dict) else [None] * len(value)
    lines = []
    for at, key in enumerate(keys):
        item = value[at if key is None else key]
        head = "" if key is None else json.dumps(key) + ": "
        body = json.dumps(item, ensure_ascii=False)
        if len(body) + len(head) > 88 and isinstance(item, dict | list):
            body = laid_out(item).rstrip("\n").replace("\n", "\n  ")
        lines.append(f"  {head}{body}")
    left, right = "{}" if isinstance(value, dict) else "[]"
    return left + "\n" + ",\n".join(lines) + f"\n{right}\n"


def shape(value: Any, pattern: Any) -> Any:
    """The names of the members; where the pattern has an empty object, any."""
    if isinstance(value, dict) and isinstance(pattern, dict) and pattern:
        return {key: shape(item, pattern.get(key)) for key, item in value.items()}
    return None


class Session:
    """The examples of a page, asked of a virtual node in their order."""

    def __init__(self) -> None:
        self.node = Driver()
        self.kind = ""
        self.reply: dict[str, Any] = {}
        self.live: list[list[bytes]] = []

    def follow(self, page: str) -> Iterator[tuple[Block, str]]:
        """Each block that shows what the node says, and what it really says."""
        steps = [(at.start(), at[1]) for at in re.finditer(r"<!-- advance (\w+) -->", page)]
        for block in blocks(page):
            while steps and steps[0][0] < block.span[0]:
                ns = times.parse_duration(steps.pop(0)[1])
                self.live += self.node.node.advance(ns)
            if block.words[:2] == ["json", "request"]:
                self._ask(block)
            elif block.words[:2] == ["text", "live"]:
                yield block, self._frames(block.words[2])
            elif block.words[:1] == ["json"] and len(block.words) > 1:
                yield block, self._true(block)

    def _ask(self, block: Block) -> None:
        given = dict(word.split("=", 1) for word in block.words[3:])
        header = {key: int(text) if key == "if_match" else text for key, text in given.items()}
        self.kind, self.reply = self.node.send(block.words[2], block.text.encode(), **header)

    def _true(self, block: Block) -> str:
        what, name = block.words[1:3]
        if what == "event":
            return laid_out(json.loads(self._live(name)[2]))
        kind = {"reply": "R", "shape": "R", "problem": "E"}.get(what)
        assert kind == self.kind, f"{what} {name}: the node answered {self.kind}: {self.reply}"
        if what == "shape":
            pattern = json.loads(block.text)
            if shape(self.reply, pattern) == shape(pattern, pattern):
                return block.text
        return laid_out(self.reply)

    def _live(self, name: str) -> list[bytes]:
        self.live += self.node.node.advance(0)
        found = [message for message in self.live if f"/e/{name}/".encode() in message[0]]
        assert found, f"no live event {name}"
        return found[-1]

    def _frames(self, name: str) -> str:
        topic, stamp, body = self._live(name)
        return (
            f"frame 1 {len(topic):4} bytes   {topic.decode()}\n"
            f"frame 2 {len(stamp):4} bytes   {stamp.hex(' ', 8)}\n"
            f"frame 3: {len(body)} bytes, the JSON above, without its white space\n"
        )


def example_faults(page: str) -> list[str]:
    return [
        f"{' '.join(block.words)}: the node says\n{true}"
        for block, true in Session().follow(page)
        if block.text != true
    ]


# ------------------------------------------------------------------------------ the pages


def update() -> None:
    """Rewrite what is generated."""
    OPERATING.write_text(CONFIG_TABLE.sub(lambda _: config_table(), OPERATING.read_text()))
    page = PROTOCOL.read_text()
    for block, true in reversed(list(Session().follow(page))):
        page = page[: block.span[0]] + true + page[block.span[1] :]
    PROTOCOL.write_text(page)


@pytest.fixture(scope="module", autouse=True)
def _updated() -> None:
    if os.environ.get("UPDATE") == "1":
        update()


@pytest.mark.parametrize(
    "check", [config_faults, unused_key_faults, log_faults, command_faults, limit_faults]
)
def test_operating_is_what_the_code_does(check: Callable[[str], list[str]]) -> None:
    faults = check(OPERATING.read_text())
    assert not faults, "\n".join(faults)


NAMES = (verb_faults, problem_faults, event_faults, member_faults, limit_faults)
EXAMPLES = (request_faults, frame_faults, example_faults)


@pytest.mark.parametrize("check", [*NAMES, *EXAMPLES])
def test_the_protocol_is_what_the_code_does(check: Callable[[str], list[str]]) -> None:
    faults = check(PROTOCOL.read_text())
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    faults = link_faults(path.read_text(), path.parent)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_named_tests_exist(path: Path) -> None:
    e2e_written = any(E2E.glob("*.py"))
    if not e2e_written:
        print(f"{E2E} is empty: its tests, where {path.name} names them, are not looked for")
    faults = named_test_faults(path.read_text(), e2e_written=e2e_written)
    assert not faults, "\n".join(faults)


# ------------------------------------------------------------------------------ a check can fail

REQUEST = '```json request timer.get\n{"id": "tmr_01MCC5RM00ERMVVFC2R1YD0000"}\n```\n'


@pytest.mark.parametrize(
    ("check", "text", "finds"),
    [
        (config_faults, "", "no table"),
        (config_faults, "<!-- config:begin -->\n| x |\n<!-- config:end -->", "is old"),
        (unused_key_faults, "Keys that nothing reads yet: `node.id`. ", "node.id does not exist"),
        (log_faults, "| log line |\n|---|\n| `serving` | error |\n", "line error serving does not"),
        (log_faults, "", "log line info serving is not described"),
        (command_faults, "`minoots explode`", "no verb minoots explode"),
        (verb_faults, "The verbs that change: `hello`, `timer.pause`.\n", "changes hello does not"),
        (verb_faults, "### `timer.explode`\n", "verb timer.explode does not exist"),
        (verb_faults, "### `hello`\n", "verb timer.get is not described"),
        (verb_faults, "### `hello`\n### `hello`\n", "verb hello has two sections"),
        (problem_faults, "| code |\n|---|\n| `oops` | 1 | no | yes |\n", "problem oops does not"),
        (problem_faults, "| code |\n|---|\n| `bad_frame` | 401 | no | yes |\n", "bad_frame is ["),
        (problem_faults, "| code |\n|---|\n| `internal` | 500 | no | yes |\n", "internal is ["),
        (problem_faults, "| code |\n|---|\n| `not_leader` | 421 | yes | yes |\n", "not_leader is"),
        (event_faults, "| event |\n|---|\n| `timer.failed` | yes |\n", "timer.failed is said"),
        (event_faults, "| event |\n|---|\n| `timer.lost` | yes |\n", "timer.lost does not"),
        (member_faults, "<!-- members Extend -->\n", "Extend, member by is not described"),
        (
            member_faults,
            "<!-- members History -->\n| member | type | default |\n|---|---|---|\n"
            "| `id` | text | required |\n| `limit` | integer | `7` |\n| `cursor` | text | none |\n",
            "History.limit: default is `7`; true is `100`",
        ),
        (limit_faults, "at most 999 (`SCHEDULE_MANY_MAX`)", "SCHEDULE_MANY_MAX is 999"),
        (limit_faults, "at most 2 s (`engine.misfire_after`)", "engine.misfire_after is 2 s"),
        (limit_faults, "| limit | of |\n|---|---|\n| `NO_MAX` | 1 |\n", "NO_MAX is 1; true"),
        (limit_faults, "none", "no limit is quoted"),
        (request_faults, "```json request timer.get\n{" + '"idd": 1}\n```\n', "does not decode"),
        (request_faults, "```json request timer.gone\n{}\n```\n", "has no body"),
        (frame_faults, "frame 1   5 bytes   MZP1\n", "has 4 bytes, not 5"),
        (frame_faults, "frame 1   5 bytes   00 01\n", "has 2 bytes, not 5"),
        (example_faults, REQUEST + "```json problem timer.get\n{}\n```\n", "there is no timer"),
    ],
)
def test_a_check_can_fail(check: Callable[[str], list[str]], text: str, finds: str) -> None:
    assert any(finds in fault for fault in check(text)), check(text)


@pytest.mark.parametrize(
    ("text", "finds"),
    [
        ("[x](no-such.md)", "no such file"),
        ("# A b\n[x](#a-b) [y](#a-c)", "#a-c: there is no such heading"),
        ("[x](../docs/protocol.md#nowhere)", "no such heading"),
    ],
)
def test_the_link_check_can_fail(text: str, finds: str) -> None:
    faults = link_faults(text, ROOT / "docs")
    assert len(faults) == 1
    assert finds in faults[0]


def test_the_check_of_test_names_can_fail() -> None:
    here = f"tests/unit/{Path(__file__).name}"
    page = f"{here}::{test_links_lead_somewhere.__name__} {here}::test_gone tests/e2e/test_no.py"
    assert named_test_faults(page, e2e_written=True) == [
        f"{here} has no test_gone",
        "tests/e2e/test_no.py does not exist",
    ]
    assert len(named_test_faults(page, e2e_written=False)) == 1
    (fault,) = named_test_faults("| promise |\n|---|\n| it works |\n", e2e_written=True)
    assert "no test is named" in fault


def test_every_check_is_fed_a_wrong_text() -> None:
    whole = Path(__file__).read_text()
    checks = set(re.findall(r"^def (\w+_faults)\(", whole, re.MULTILINE))
    _, _, wrong = whole.rpartition("---- a check can fail\n")
    assert {name for name in checks if name not in wrong} == set()
