"""Mutators: a value, a text, bytes or an image goes in, a damaged or hostile one comes out.

All randomness is the caller's `random.Random`, so that a seed gives a fault again; hypothesis hands in its own.
"""

from __future__ import annotations

import copy
import json
import struct
from random import Random
from typing import Any

OUTSIDE = "/tmp/leandetr-torture-outside"  # no command may ever make this

#: values that readers of JSON and YAML do not expect
HOSTILE: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
    2**31,
    2**63,
    10**400,
    "",
    " ",
    "x",
    "0",
    "-1",
    "nan",
    "None",
    "[/red]",
    "<script>alert(1)</script>",
    "../../leandetr-torture-outside",
    OUTSIDE,
    "a/b",
    "\x00",
    "line\nbreak",
    "\ud800",
    "é" * 300,
    "x" * 5000,
    [],
    {},
    [[]],
    [None],
    {"": None},
    [0, "x", {}],
    {"0": {"1": []}},
]


def value(random: Random, given: Any, times: int = 3) -> Any:
    """A copy of a JSON value in which one to `times` places are other than they were."""
    root = [copy.deepcopy(given)]
    for _ in range(random.randint(1, times)):
        container, key = _place(random, root)
        _change(random, container, key)
    return root[0]


def _place(random: Random, root: list[Any]) -> tuple[Any, Any]:
    """A container and a key of it, as deep as chance goes."""
    container: Any = root
    key: Any = 0
    while isinstance(container[key], dict | list) and container[key] and random.random() < 0.85:
        container = container[key]
        key = random.choice(list(container)) if isinstance(container, dict) else random.randrange(len(container))
    return container, key


def _change(random: Random, container: Any, key: Any) -> None:
    old, what = container[key], random.randrange(8)
    if what == 0 and isinstance(container, dict):
        del container[key]
    elif what == 1 and isinstance(container, dict):
        container[f"{key}x"] = container.pop(key)
    elif what == 2 and isinstance(container, list) and len(container) > 1:
        container.append(copy.deepcopy(old))
    elif what == 3:
        container[key] = [old]
    elif what == 4:
        container[key] = str(old)
    elif what == 5 and isinstance(old, int | float) and abs(old) < 1e300:
        container[key] = old * random.choice([-1, 2, 1000, 10**6, 1e-3, 10**12])
    else:
        container[key] = copy.deepcopy(random.choice(HOSTILE))


def text(random: Random, given: str) -> bytes:
    """A text that is cut, doubled, of another encoding, or has other characters in places."""
    what = random.randrange(8)
    lines = given.splitlines(keepends=True) or [""]
    line = random.randrange(len(lines))
    if what == 0:
        return data(random, given.encode(errors="surrogatepass"))
    if what == 1:
        return given.encode(random.choice(["utf-16", "utf-32", "utf-8-sig"]), errors="replace")
    if what == 2:
        return b"[" * 100_000 if random.random() < 0.5 else b'{"a":' * 100_000
    if what == 3:
        del lines[line]
    elif what == 4:
        lines.insert(line, lines[random.randrange(len(lines))])
    else:
        words = lines[line].split(" ")
        words[random.randrange(len(words))] = str(random.choice(HOSTILE)).replace("\n", " ")
        lines[line] = " ".join(words)
        if not lines[line].endswith("\n"):
            lines[line] += "\n"
    return "".join(lines).encode(errors="surrogatepass")


def document(random: Random, given: Any) -> bytes:
    """A JSON file of a value: mostly well-formed with other values in places, sometimes damaged as a text."""
    if random.random() < 0.15:
        return text(random, json.dumps(given, indent=1))
    try:
        return json.dumps(value(random, given), indent=1).encode()
    except ValueError:  # more digits than Python writes
        return data(random, json.dumps(given).encode())


def data(random: Random, given: bytes) -> bytes:
    """Bytes that are cut, flipped, overwritten, doubled or longer."""
    found, what = bytearray(given), random.randrange(7)
    place = random.randrange(len(found)) if found else 0
    if what == 0:
        return bytes(found[:place])
    if what == 1:
        return b"" if random.random() < 0.3 else bytes(found[place:])
    if what == 2:
        found[place : place + random.randint(1, 64)] = random.choice([b"\0", b"\xff"]) * random.randint(1, 64)
    elif what == 3:
        found[place:place] = found[: random.randint(1, 4096)]
    else:
        head = 200 if random.random() < 0.5 else len(found)  # most formats are read by their heads
        for _ in range(random.randint(1, 10)):
            if found:
                found[random.randrange(min(head, len(found)))] = random.randrange(256)
    return bytes(found)


def safetensors(random: Random, given: bytes) -> bytes:
    """A file whose header is other than it was, or that is damaged as bytes."""
    if random.random() < 0.4:
        return data(random, given)
    (length,) = struct.unpack("<Q", given[:8])
    header, body = json.loads(given[8 : 8 + length]), given[8 + length :]
    changed = json.dumps(value(random, header)).encode()
    claimed = random.choice([len(changed)] * 6 + [0, 2**63, len(changed) * 2])
    return struct.pack("<Q", claimed) + changed + body
