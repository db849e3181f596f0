"""What a compiled program costs, from its HLO text: FLOPs, bytes of memory and on the wire, loops multiplied out.

The compiler's own cost analysis counts a loop's body once. Here every `while` counts as often as it turns, and the text
is the scheduled program of one device, after partitioning and fusion: what is computed twice counts twice.

FLOPs are those of matrix products (a TPU's are all convolutions), two a multiplication with its addition, without the
zeros of padding and dilation. Memory is an approximation: every operation of the schedule reads its operands from HBM
and writes its result there, once, unless the compiler put them elsewhere (on-chip memory is marked in the layout); of
an operand that is only sliced the slices count. Padding of tiles is left out.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from etcvla.aot.hlo import (
    Computation,
    Instruction,
    Module,
    arrays,
    groups_text,
    num_bytes,
    parse,
    replica_groups,
)

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# What moves nothing; loops and calls are entered instead.
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "add-dependency",
    "iota",
    "scene",
}
_SLICES = ("dynamic-slice", "slice", "gather")


class Collective(NamedTuple):
    """What a collective is, apart from its size."""

    kind: str
    groups: str  # as the text has them; "" where every chip sends to one other


@dataclasses.dataclass
class Costs:
    """Of one device in one run of the program."""

    flops: float = 0.0
    hbm_bytes: float = 0.0
    wire_bytes: Counter[Collective] = dataclasses.field(default_factory=Counter)  # into each chip
    unknown_loops: list[str] = dataclasses.field(
        default_factory=list
    )  # counted as if they turned once

    def add(self, other: Costs) -> None:
        self.flops += other.flops
        self.hbm_bytes += other.hbm_bytes
        self.wire_bytes.update(other.wire_bytes)
        self.unknown_loops += other.unknown_loops


def analyse(text: str, devices: int) -> Costs:
    """The costs of a program of so many devices. Raises ValueError for text that is not HLO."""
    module = parse(text)
    return _Walk(module, devices).visit(module.entry, 1, scheduled=True)


class _Walk:
    def __init__(self, module: Module, devices: int):
        self.module, self.devices = module, devices
        self._chains: set[str] = set()

    def visit(self, name: str, times: float, *, scheduled: bool) -> Costs:
        """Costs of a computation that runs `times` times; `scheduled`: its results lie in memory (it is no fusion)."""
        costs, body = Costs(), self.module.computations[name]
        for inst in body.values():
            if inst.opcode in ("dot", "convolution"):
                costs.flops += times * _matmul_flops(inst, body)
            elif (kind := inst.opcode.removesuffix("-start")) in COLLECTIVES and self._first_piece(
                inst
            ):
                groups = groups_text(inst)
                kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else kind
                costs.wire_bytes[Collective(kind, groups)] += times * self._wire_bytes(
                    inst, kind, groups, body
                )
            if scheduled and inst.opcode not in _FREE:
                costs.hbm_bytes += times * self._hbm_bytes(inst, body)
            costs.add(self._enter(inst, body, times, scheduled))
        return costs

    def _enter(self, inst: Instruction, body: Computation, times: float, scheduled: bool) -> Costs:
        """What the computations cost that an instruction runs."""
        costs = Costs()
        if inst.opcode == "while":
            turns = _turns(inst, body, self.module)
            costs.unknown_loops += [inst.name] if turns is None else []
            times *= 1 if turns is None else turns
        inside = [
            self.visit(
                name, times, scheduled=scheduled and inst.opcode in ("while", "conditional", "call")
            )
            for name in inst.called
        ]
        if inst.opcode == "conditional":
            inside = [max(inside, key=lambda branch: branch.flops)]
        for part in inside:
            costs.add(part)
        return costs

    def _first_piece(self, inst: Instruction) -> bool:
        """Whether a collective is to be counted: one that is spread over several fusions stands in each of them."""
        chain = re.search(r'chain_id="?(\w+)', inst.attributes)
        if chain is None:
            return True
        new = chain[1] not in self._chains
        self._chains.add(chain[1])
        return new

    def _wire_bytes(self, inst: Instruction, kind: str, groups: str, body: Computation) -> float:
        """Bytes that reach each chip of a group, as a ring has them: no algorithm needs fewer."""
        size = sum(num_bytes(body[name].shape) for name in inst.operands)
        if not groups:
            return size
        n = len(replica_groups(groups, self.devices)[0])
        return size * {"all-gather": n - 1, "all-reduce": 2 * (n - 1) / n}.get(kind, (n - 1) / n)

    def _hbm_bytes(self, inst: Instruction, body: Computation) -> float:
        if inst.opcode.endswith("-start"):
            return 0
        if inst.opcode.endswith("-done"):
            return _copied_bytes(inst, body)
        fused = self.module.computations[inst.called[0]] if inst.opcode == "fusion" else None
        reads = sum(_read_bytes(i, name, inst, fused, body) for i, name in enumerate(inst.operands))
        return reads + (
            _written_bytes(inst, body) if fused is None else _written_bytes_of_fusion(inst, fused)
        )


def _copied_bytes(done: Instruction, body: Computation) -> int:
    """What an asynchronous copy, slice or collective reads and writes."""
    start = body.get(done.operands[0])
    source = body.get(start.operands[0]) if start and start.operands else None
    size = num_bytes(done.shape)
    reads = size if source and all(array.in_hbm for array in arrays(source.shape)) else 0
    return reads + num_bytes(done.shape, hbm=True)


def _read_bytes(
    i: int, name: str, inst: Instruction, fused: Computation | None, body: Computation
) -> int:
    size = num_bytes(body[name].shape, hbm=True)
    if not size:
        return 0
    if fused is None:
        if inst.opcode == "dynamic-update-slice" and i == 0:
            return 0
        return min(size, num_bytes(inst.shape)) if inst.opcode in _SLICES and i == 0 else size
    parameter = next(
        p for p in fused.values() if p.opcode == "parameter" and p.arguments.strip() == str(i)
    )
    return min(
        size, sum(_use_bytes(user, alias, size) for user, alias in _uses(parameter.name, fused))
    )


def _uses(name: str, body: Computation) -> Iterator[tuple[Instruction, str]]:
    """Instructions that read an array, with the name under which they do."""
    for user in body.values():
        if name not in user.operands:
            continue
        if user.opcode == "bitcast":
            yield from _uses(user.name, body)
        else:
            yield user, name


def _use_bytes(user: Instruction, name: str, size: int) -> int:
    if user.opcode in _SLICES and user.operands[0] == name:
        return num_bytes(user.shape)
    return 0 if user.opcode == "dynamic-update-slice" and user.operands[0] == name else size


def _written_bytes(inst: Instruction, body: Computation) -> int:
    if inst.opcode == "dynamic-update-slice":
        return num_bytes(body[inst.operands[1]].shape) if num_bytes(inst.shape, hbm=True) else 0
    return num_bytes(inst.shape, hbm=True)


def _written_bytes_of_fusion(inst: Instruction, fused: Computation) -> int:
    """Of each result: its size, or the update's where it is another array with one slice changed."""
    root = next(i for i in fused.values() if i.root)
    results = [fused[name] for name in root.operands] if root.opcode == "tuple" else [root]
    total = 0
    for result, array in zip(results, arrays(inst.shape), strict=False):
        while result.opcode == "bitcast":
            result = fused[result.operands[0]]
        update = result.opcode == "dynamic-update-slice"
        total += array.in_hbm * (
            num_bytes(fused[result.operands[1]].shape) if update else array.num_bytes
        )
    return total


# ---- matrix products -------------------------------------------------------------------------------------------------


def _matmul_flops(inst: Instruction, body: Computation) -> float:
    left, right = (arrays(body[name].shape)[0].dims for name in inst.operands[:2])
    out = arrays(inst.shape)[0].dims
    if inst.opcode == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", inst.attributes)[1]
        return 2.0 * math.prod(out) * math.prod(left[int(axis)] for axis in axes.split(",") if axis)
    labels = re.split("_|->", inst.attribute("dim_labels"))
    window = dict(
        re.findall(
            r"(\w+)=(\S+)", (re.search(r"window=\{([^}]*)\}", inst.attributes) or ["", ""])[1]
        )
    )
    pairs = math.prod(
        _window_pairs(axis, left, right, out, labels, window)
        for axis in range(sum(label.isdigit() for label in labels[0]))
    )
    batch = left[labels[0].index("b")] // int(inst.attribute("batch_group_count") or 1)
    return 2.0 * pairs * batch * right[labels[1].index("i")] * right[labels[1].index("o")]


def _window_pairs(axis: int, left, right, out, labels: list[str], window: Mapping[str, str]) -> int:
    """Pairs of an output place and a kernel place along a spatial axis that meet an input, and no zero between."""

    def option(name, default):
        return window[name].split("x")[axis] if name in window else default

    size, kernel, results = (
        dims[label.index(str(axis))] for dims, label in zip((left, right, out), labels, strict=True)
    )
    stride, dilate_left, dilate_right = (
        int(option(name, 1)) for name in ("stride", "lhs_dilate", "rhs_dilate")
    )
    low = int(str(option("pad", "0_0")).split("_")[0])
    place = np.arange(results)[:, None] * stride + np.arange(kernel)[None] * dilate_right - low
    return int(((place >= 0) & (place % dilate_left == 0) & (place // dilate_left < size)).sum())


# ---- loops -----------------------------------------------------------------------------------------------------------


def _turns(loop: Instruction, body: Computation, module: Module) -> int | None:
    """How often a loop turns: as the compiler says, or by its bounds where it counts up to a constant."""
    if known := re.search(r'"?known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes):
        return int(known[1])
    test = module.computations[loop.attribute("condition")]
    root = next(i for i in test.values() if i.root)
    if root.opcode != "compare" or root.attribute("direction") not in ("LT", "LE"):
        return None
    starts = [body[name] for name in body[loop.operands[0]].operands]
    limit = _constant(root.operands[1], test, starts, body)
    start = _constant(root.operands[0], test, starts, body)
    step = _step(_tuple_index(root.operands[0], test), module.computations[loop.attribute("body")])
    if limit is None or start is None or not step:
        return None
    return max(0, -(-(limit - start + (root.attribute("direction") == "LE")) // step))


def _tuple_index(name: str, body: Computation) -> int | None:
    inst = _source(body[name], body)
    return int(inst.attribute("index")) if inst.opcode == "get-tuple-element" else None


def _constant(
    name: str, test: Computation, starts: list[Instruction], body: Computation
) -> int | None:
    """An integer that a condition reads, from itself or from what the loop starts with."""
    inst = _source(test[name], test)
    if inst.opcode == "get-tuple-element":
        inst = _source(starts[int(inst.attribute("index"))], body)
    return (
        int(inst.arguments)
        if inst.opcode == "constant" and re.fullmatch(r"-?\d+", inst.arguments)
        else None
    )


def _step(index: int | None, body: Computation) -> int | None:
    """What a loop's body adds to the counter that it carries at `index`."""
    root = next(i for i in body.values() if i.root)
    if index is None or root.opcode != "tuple":
        return None
    add = _source(body[root.operands[index]], body)
    steps = [_source(body[name], body) for name in add.operands] if add.opcode == "add" else []
    values = [int(i.arguments) for i in steps if i.opcode == "constant" and i.arguments.isdigit()]
    return values[0] if values else None


def _source(inst: Instruction, body: Computation) -> Instruction:
    """Where a value comes from that was only copied."""
    while (
        inst.opcode in ("copy", "bitcast", "convert", "copy-done", "copy-start")
        and inst.operands[0] in body
    ):
        inst = body[inst.operands[0]]
    return inst
