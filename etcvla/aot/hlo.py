"""HLO text, read: computations, instructions, shapes, and the groups of devices that collectives join."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

_BITS = {
    "pred": 8,
    "token": 0,
    "opaque": 0,
    "c64": 64,
    "c128": 128,
}  # of types whose name does not say
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")
_CALLED = re.compile(
    r"\b(?:calls|to|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_GROUPS = re.compile(
    r"replica_groups=(mesh\[.*?\] ?\{[^}]*\}|\{\{.*?\}\}|\{\}|\[[\d,]*\]<=\[[\d,]*\](?:T\([\d,]*\))?)"
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line."""

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    arguments: str  # what stands between the parentheses
    attributes: str
    root: bool

    def attribute(self, name: str) -> str:
        """`name=value` up to a comma or a space, "" if absent."""
        found = re.search(rf"\b{name}=%?([^,\s]+)", self.attributes)
        return found[1] if found else ""

    @property
    def called(self) -> list[str]:
        """Computations that it runs; those that only say how to reduce two numbers are none."""
        branches = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        return _CALLED.findall(self.attributes) + (
            re.findall(r"%?([\w.\-]+)", branches[1]) if branches else []
        )


Computation = Mapping[str, Instruction]


class Array(NamedTuple):
    """One array of a shape."""

    dims: tuple[int, ...]
    num_bytes: int
    in_hbm: bool


class Module(NamedTuple):
    """A parsed program."""

    computations: Mapping[str, Computation]
    entry: str


def parse(text: str) -> Module:
    """The computations of `compiled.as_text()`. Raises ValueError if there is no entry."""
    computations, entry, current = {}, "", None
    for line in text.splitlines():
        if line[:1] not in ("", " ", "}") and (header := _HEADER.match(line)):
            current = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            current[found[2]] = _instruction(
                found[2], bool(found[1]), re.sub(r"/\*.*?\*/", "", line[found.end() :])
            )
    if not entry:
        raise ValueError("this is no HLO text: it has no ENTRY")
    return Module(computations, entry)


def _instruction(name: str, root: bool, rest: str) -> Instruction:
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, rest = rest.split("(", 1)
    end = _closing("(" + rest) - 2
    arguments, attributes = rest[:end], rest[end + 1 :]
    operands = () if opcode == "constant" else tuple(re.findall(r"%([\w.\-]+)", arguments))
    return Instruction(name, opcode, shape, operands, arguments, attributes, root)


def _closing(text: str) -> int:
    """The place after the parenthesis that closes the first one."""
    depth = 0
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.end()
    raise ValueError(f"parentheses do not close in {text[:80]}")


def arrays(shape: str) -> list[Array]:
    """The arrays of a shape; more than one in a tuple."""
    return [_array(*found) for found in _ARRAY.findall(shape)]


def _array(dtype: str, dims: str, layout: str) -> Array:
    sizes = tuple(int(size.removeprefix("<=")) for size in dims.split(",") if size)
    bits = _BITS[dtype] if dtype in _BITS else int(re.search(r"\d+", dtype)[0])
    space = re.search(r"\bS\((\d+)\)", layout)
    return Array(sizes, -(-math.prod(sizes) * bits // 8), not space or space[1] == "0")


def num_bytes(shape: str, *, hbm: bool = False) -> int:
    return sum(array.num_bytes for array in arrays(shape) if array.in_hbm or not hbm)


def groups_text(inst: Instruction) -> str:
    """The groups that a collective joins, as the text has them; "" where every device sends to one other."""
    if "source_target_pairs" in inst.attributes:
        return ""
    if not (found := _GROUPS.search(inst.attributes)):
        raise ValueError(f"{inst.name}: cannot read the groups of {inst.attributes[:200]}")
    return found[1]


def replica_groups(text: str, devices: int) -> list[list[int]]:
    """The groups of devices that a collective joins, from any of the three ways in which HLO writes them."""
    if text.startswith("mesh"):
        return _mesh_groups(text)
    if text.startswith("["):
        shape, dims, order = re.fullmatch(
            r"\[([\d,]*)\]<=\[([\d,]*)\](?:T\(([\d,]*)\))?", text
        ).groups()
        ids = np.arange(devices).reshape(_ints(dims))
        return (ids.transpose(_ints(order)) if order else ids).reshape(_ints(shape)).tolist()
    groups = [_ints(group) for group in re.findall(r"\{([\d,]+)\}", text)]
    return groups or [list(range(devices))]


def _mesh_groups(text: str) -> list[list[int]]:
    """mesh['a'=2,'b'=4] {'b'}: the devices in order on a mesh, joined along the axes named."""
    inside, named = re.fullmatch(r"mesh\[(.*)\] ?\{(.*)\}", text).groups()
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", inside)}
    joined = re.findall(r"'([^']+)'", named)
    if re.search(r"device_ids|\(", inside + named):
        raise ValueError(f"cannot read the groups {text}")
    names = [name for name in sizes if name not in joined] + joined
    ids = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
    ids = ids.transpose([list(sizes).index(name) for name in names])
    return ids.reshape(-1, math.prod(sizes[name] for name in joined)).tolist()


def _ints(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
