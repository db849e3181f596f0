"""Parse HLO text: computations, instructions, shapes, and the device groups of collectives."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

# Bits of the types whose name does not contain them.
_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")
_CALLED = re.compile(
    r"\b(?:calls|to|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
)
_GROUPS = re.compile(
    r"replica_groups="
    r"(mesh\[.*?\] ?\{[^}]*\}|\{\{.*?\}\}|\{\}|\[[\d,]*\]<=\[[\d,]*\](?:T\([\d,]*\))?)"
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: `name = shape opcode(arguments), attributes`."""

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    arguments: str  # text between the parentheses
    attributes: str
    root: bool

    def attribute(self, name: str) -> str:
        """Return the value of `name=value`, up to a comma or a space; "" if absent."""
        match = re.search(rf"\b{name}=%?([^,\s]+)", self.attributes)
        return match[1] if match else ""

    @property
    def called(self) -> list[str]:
        """Computations that it runs, without those that only reduce two numbers."""
        called = _CALLED.findall(self.attributes)
        branches = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        if branches:
            called += re.findall(r"%?([\w.\-]+)", branches[1])
        return called


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
    """Parse the text of `compiled.as_text()`. Raises ValueError if it has no entry computation."""
    computations = {}
    entry = ""
    computation = None
    for line in text.splitlines():
        header = _HEADER.match(line)
        instruction = _INSTRUCTION.match(line)
        if header and not line.startswith(" "):
            name = header[2]
            computation = computations[name] = {}
            if header[1]:
                entry = name
        elif instruction and computation is not None:
            definition = re.sub(r"/\*.*?\*/", "", line[instruction.end() :])
            name = instruction[2]
            computation[name] = _parse_instruction(name, bool(instruction[1]), definition)
    if not entry:
        raise ValueError("not an HLO text: it has no ENTRY")
    return Module(computations, entry)


def _parse_instruction(name: str, root: bool, definition: str) -> Instruction:
    """Parse `shape opcode(arguments), attributes`."""
    end = _closing(definition) if definition.startswith("(") else definition.index(" ")
    shape = definition[:end]
    opcode, call = definition[end:].lstrip().split("(", 1)
    end = _closing("(" + call) - 2
    arguments = call[:end]
    attributes = call[end + 1 :]
    operands = () if opcode == "constant" else tuple(re.findall(r"%([\w.\-]+)", arguments))
    return Instruction(name, opcode, shape, operands, arguments, attributes, root)


def _closing(text: str) -> int:
    """Return the index after the parenthesis that closes the first one."""
    depth = 0
    for parenthesis in re.finditer(r"[()]", text):
        depth += 1 if parenthesis[0] == "(" else -1
        if depth == 0:
            return parenthesis.end()
    raise ValueError(f"unbalanced parentheses in {text[:80]}")


def root_of(computation: Computation) -> Instruction:
    """Return the instruction whose value is the computation's result."""
    return next(instruction for instruction in computation.values() if instruction.root)


def arrays(shape: str) -> list[Array]:
    """Return the arrays of a shape; several for a tuple."""
    return [_parse_array(*match) for match in _ARRAY.findall(shape)]


def _parse_array(dtype: str, dims: str, layout: str) -> Array:
    sizes = tuple(_ints(dims.replace("<=", "")))
    bits = _BITS[dtype] if dtype in _BITS else int(re.search(r"\d+", dtype)[0])
    num_bytes = math.ceil(math.prod(sizes) * bits / 8)
    memory_space = re.search(r"\bS\((\d+)\)", layout)
    in_hbm = memory_space is None or memory_space[1] == "0"
    return Array(sizes, num_bytes, in_hbm)


def num_bytes(shape: str, *, hbm: bool = False) -> int:
    """Return the bytes of a shape; with `hbm`, only of its arrays in HBM."""
    return sum(array.num_bytes for array in arrays(shape) if array.in_hbm or not hbm)


def groups_text(instruction: Instruction) -> str:
    """Return the text of a collective's device groups; "" if each device sends to one other."""
    if "source_target_pairs" in instruction.attributes:
        return ""
    match = _GROUPS.search(instruction.attributes)
    if not match:
        raise ValueError(
            f"{instruction.name}: cannot read the groups of {instruction.attributes[:200]}"
        )
    return match[1]


def replica_groups(text: str, devices: int) -> list[list[int]]:
    """Return the groups of devices of a collective, from any of HLO's three notations."""
    if text.startswith("mesh"):
        return _mesh_groups(text)
    if text.startswith("["):
        pattern = r"\[([\d,]*)\]<=\[([\d,]*)\](?:T\(([\d,]*)\))?"
        shape, dims, order = re.fullmatch(pattern, text).groups()
        ids = np.arange(devices).reshape(_ints(dims))
        if order:
            ids = ids.transpose(_ints(order))
        return ids.reshape(_ints(shape)).tolist()
    groups = [_ints(group) for group in re.findall(r"\{([\d,]+)\}", text)]
    return groups or [list(range(devices))]


def _mesh_groups(text: str) -> list[list[int]]:
    """Return the groups of mesh['a'=2,'b'=4] {'b'}: devices in mesh order, grouped along b."""
    mesh, axes = re.fullmatch(r"mesh\[(.*)\] ?\{(.*)\}", text).groups()
    if re.search(r"device_ids|\(", mesh + axes):
        raise ValueError(f"cannot read the groups {text}")
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    names = list(sizes)
    grouped = re.findall(r"'([^']+)'", axes)
    order = [name for name in names if name not in grouped] + grouped
    ids = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
    ids = ids.transpose([names.index(name) for name in order])
    return ids.reshape(-1, math.prod(sizes[name] for name in grouped)).tolist()


def _ints(text: str) -> list[int]:
    """Parse numbers separated by commas."""
    return [int(number) for number in text.split(",") if number]
