"""Count the cost of a compiled program from its HLO text: FLOPs, bytes of HBM, bytes on the wire.

The compiler's own cost analysis counts a loop's body once; here it counts once per iteration. The
text is the scheduled program of one device, after partitioning and fusion, so what is computed
twice counts twice.

FLOPs are those of matrix products (on a TPU all are convolutions), two for a multiplication with
its addition, without the zeros of padding and dilation. HBM traffic is approximate: each scheduled
instruction reads its operands and writes its result once, unless the compiler placed them in
on-chip memory (which the layout shows); of an operand that is only sliced, the slices count. The
padding of tiles does not count.
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
    root_of,
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
# Instructions that move no data. Loops, branches and calls are counted by what they run.
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
    "domain",
}
_SLICES = ("dynamic-slice", "slice", "gather")
_COPIES = ("copy", "bitcast", "convert", "copy-done", "copy-start")


class Collective(NamedTuple):
    """The kind and the device groups of a collective."""

    kind: str
    groups: str  # as in the text; "" if each chip sends to one other


@dataclasses.dataclass
class Costs:
    """Costs of one device in one run of the program."""

    flops: float = 0.0
    hbm_bytes: float = 0.0
    wire_bytes: Counter[Collective] = dataclasses.field(default_factory=Counter)  # into each chip
    # Loops with an unknown number of iterations, which count once.
    unknown_loops: list[str] = dataclasses.field(default_factory=list)

    def add(self, other: Costs) -> None:
        """Add other costs to these."""
        self.flops += other.flops
        self.hbm_bytes += other.hbm_bytes
        self.wire_bytes.update(other.wire_bytes)
        self.unknown_loops += other.unknown_loops


def analyse(text: str, devices: int) -> Costs:
    """Return the costs of a program for `devices` devices. Raises ValueError if it is not HLO."""
    module = parse(text)
    return _CostCounter(module, devices).count(module.entry, 1, scheduled=True)


class _CostCounter:
    def __init__(self, module: Module, devices: int):
        self.module = module
        self.devices = devices
        self._counted_chains: set[str] = set()

    def count(self, name: str, times: float, *, scheduled: bool) -> Costs:
        """Return the costs of a computation that runs `times` times.

        Args:
          scheduled: its instructions write their results to memory, as those of a fusion do not.
        """
        costs = Costs()
        body = self.module.computations[name]
        for instruction in body.values():
            if instruction.opcode in ("dot", "convolution"):
                costs.flops += times * _matmul_flops(instruction, body)
            kind = instruction.opcode.removesuffix("-start")
            if kind in COLLECTIVES and self._is_first_piece(instruction):
                if name.startswith("all-reduce-scatter"):
                    kind = "reduce-scatter"
                collective = Collective(kind, groups_text(instruction))
                wire_bytes = self._wire_bytes(instruction, collective, body)
                costs.wire_bytes[collective] += times * wire_bytes
            if scheduled and instruction.opcode not in _FREE:
                costs.hbm_bytes += times * self._hbm_bytes(instruction, body)
            costs.add(self._count_called(instruction, body, times, scheduled))
        return costs

    def _count_called(
        self, instruction: Instruction, body: Computation, times: float, scheduled: bool
    ) -> Costs:
        """Return the costs of the computations that an instruction runs."""
        costs = Costs()
        if instruction.opcode == "while":
            iterations = _iterations(instruction, body, self.module)
            if iterations is None:
                costs.unknown_loops.append(instruction.name)
                iterations = 1
            times *= iterations
        scheduled = scheduled and instruction.opcode in ("while", "conditional", "call")
        called = [self.count(name, times, scheduled=scheduled) for name in instruction.called]
        if instruction.opcode == "conditional":
            called = [max(called, key=lambda branch: branch.flops)]
        for part in called:
            costs.add(part)
        return costs

    def _is_first_piece(self, instruction: Instruction) -> bool:
        """Return whether to count a collective: one may be split over several fusions."""
        chain = re.search(r'chain_id="?(\w+)', instruction.attributes)
        if chain is None:
            return True
        is_first = chain[1] not in self._counted_chains
        self._counted_chains.add(chain[1])
        return is_first

    def _wire_bytes(
        self, instruction: Instruction, collective: Collective, body: Computation
    ) -> float:
        """Return the bytes that reach each chip of a group in a ring; no algorithm needs fewer."""
        size = sum(num_bytes(body[name].shape) for name in instruction.operands)
        if not collective.groups:
            return size
        n = len(replica_groups(collective.groups, self.devices)[0])
        factors = {"all-gather": n - 1, "all-reduce": 2 * (n - 1) / n}
        return size * factors.get(collective.kind, (n - 1) / n)

    def _hbm_bytes(self, instruction: Instruction, body: Computation) -> float:
        if instruction.opcode.endswith("-start"):
            return 0
        if instruction.opcode.endswith("-done"):
            return _async_bytes(instruction, body)
        if instruction.opcode == "fusion":
            fused = self.module.computations[instruction.called[0]]
            return _fusion_bytes(instruction, fused, body)
        return _instruction_bytes(instruction, body)


# ---- HBM traffic -----------------------------------------------------------------------------


def _async_bytes(done: Instruction, body: Computation) -> int:
    """Return what an asynchronous copy, slice or collective reads and writes."""
    written = num_bytes(done.shape, hbm=True)
    start = body.get(done.operands[0])
    source = body.get(start.operands[0]) if start and start.operands else None
    if source and all(array.in_hbm for array in arrays(source.shape)):
        return num_bytes(done.shape) + written
    return written


def _instruction_bytes(instruction: Instruction, body: Computation) -> int:
    """Return what an instruction outside of fusions reads and writes."""
    read = 0
    for index, name in enumerate(instruction.operands):
        size = num_bytes(body[name].shape, hbm=True)
        if index == 0 and instruction.opcode == "dynamic-update-slice":
            size = 0  # updated in place
        elif index == 0 and instruction.opcode in _SLICES:
            size = min(size, num_bytes(instruction.shape))
        read += size
    written = num_bytes(instruction.shape, hbm=True)
    if instruction.opcode == "dynamic-update-slice" and written:
        written = num_bytes(body[instruction.operands[1]].shape)
    return read + written


def _fusion_bytes(fusion: Instruction, fused: Computation, body: Computation) -> int:
    """Return what a fusion reads and writes. Operands that are only sliced count as the slices."""
    total = 0
    parameters = {}
    for instruction in fused.values():
        if instruction.opcode == "parameter":
            parameters[int(instruction.arguments)] = instruction
    for index, name in enumerate(fusion.operands):
        size = num_bytes(body[name].shape, hbm=True)
        uses = _uses(parameters[index].name, fused)
        total += min(size, sum(_use_bytes(user, alias, size) for user, alias in uses))
    root = root_of(fused)
    results = [fused[name] for name in root.operands] if root.opcode == "tuple" else [root]
    for result, array in zip(results, arrays(fusion.shape), strict=False):
        while result.opcode == "bitcast":
            result = fused[result.operands[0]]
        if not array.in_hbm:
            continue
        if result.opcode == "dynamic-update-slice":  # an operand, updated in place
            total += num_bytes(fused[result.operands[1]].shape)
        else:
            total += array.num_bytes
    return total


def _uses(name: str, body: Computation) -> Iterator[tuple[Instruction, str]]:
    """Yield the instructions that read an array, and the name under which they do."""
    for user in body.values():
        if name not in user.operands:
            continue
        if user.opcode == "bitcast":
            yield from _uses(user.name, body)
        else:
            yield user, name


def _use_bytes(user: Instruction, name: str, size: int) -> int:
    """Return how much of an array of `size` bytes an instruction in a fusion reads."""
    is_first = user.operands[0] == name
    if is_first and user.opcode in _SLICES:
        return num_bytes(user.shape)
    if is_first and user.opcode == "dynamic-update-slice":
        return 0
    return size


# ---- matrix products -------------------------------------------------------------------------


def _matmul_flops(instruction: Instruction, body: Computation) -> float:
    left_name, right_name = instruction.operands[:2]
    left = arrays(body[left_name].shape)[0].dims
    right = arrays(body[right_name].shape)[0].dims
    out = arrays(instruction.shape)[0].dims
    if instruction.opcode == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)[1]
        contracted = math.prod(left[int(axis)] for axis in axes.split(",") if axis)
        return 2.0 * math.prod(out) * contracted
    left_labels, right_labels, out_labels = re.split("_|->", instruction.attribute("dim_labels"))
    window = _Window.parse(instruction)
    pairs = 1
    for axis in range(sum(label.isdigit() for label in left_labels)):
        pairs *= window.pairs(
            axis,
            size=left[left_labels.index(str(axis))],
            kernel=right[right_labels.index(str(axis))],
            results=out[out_labels.index(str(axis))],
        )
    batch_groups = int(instruction.attribute("batch_group_count") or 1)
    batch = left[left_labels.index("b")] // batch_groups
    in_features = right[right_labels.index("i")]
    out_features = right[right_labels.index("o")]
    return 2.0 * pairs * batch * in_features * out_features


class _Window(NamedTuple):
    """The window of a convolution: name -> one value per spatial axis."""

    fields: Mapping[str, list[str]]

    @classmethod
    def parse(cls, instruction: Instruction) -> _Window:
        """Parse the attribute `window`."""
        match = re.search(r"window=\{([^}]*)\}", instruction.attributes)
        fields = re.findall(r"(\w+)=(\S+)", match[1] if match else "")
        return cls({name: values.split("x") for name, values in fields})

    def _get(self, name: str, axis: int, default: str) -> str:
        return self.fields[name][axis] if name in self.fields else default

    def pairs(self, axis: int, *, size: int, kernel: int, results: int) -> int:
        """Count the pairs of an output and a kernel position that meet an input, not padding."""
        stride = int(self._get("stride", axis, "1"))
        input_dilation = int(self._get("lhs_dilate", axis, "1"))
        kernel_dilation = int(self._get("rhs_dilate", axis, "1"))
        low_padding = int(self._get("pad", axis, "0_0").split("_")[0])
        outputs = np.arange(results)[:, None] * stride
        taps = np.arange(kernel)[None] * kernel_dilation
        positions = outputs + taps - low_padding
        is_input = (positions % input_dilation == 0) & (positions >= 0)
        return int((is_input & (positions // input_dilation < size)).sum())


# ---- loops -----------------------------------------------------------------------------------


def _iterations(loop: Instruction, body: Computation, module: Module) -> int | None:
    """Return the number of a loop's iterations, from the compiler or from constant bounds."""
    known = re.search(r'"?known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes)
    if known:
        return int(known[1])
    condition = module.computations[loop.attribute("condition")]
    test = root_of(condition)
    direction = test.attribute("direction")
    if test.opcode != "compare" or direction not in ("LT", "LE"):
        return None
    counter = _source(condition[test.operands[0]], condition)
    limit = _source(condition[test.operands[1]], condition)
    initial = [body[name] for name in body[loop.operands[0]].operands]
    start = _loop_constant(counter, initial, body)
    stop = _loop_constant(limit, initial, body)
    step = _loop_step(counter, module.computations[loop.attribute("body")])
    if start is None or stop is None or not step:
        return None
    if direction == "LE":
        stop += 1
    return len(range(start, stop, step))


def _loop_constant(value: Instruction, initial: list[Instruction], body: Computation) -> int | None:
    """Return an integer of a loop's condition: a constant, or one in the loop's initial state."""
    if value.opcode == "get-tuple-element":
        value = _source(initial[int(value.attribute("index"))], body)
    if value.opcode == "constant" and re.fullmatch(r"-?\d+", value.arguments):
        return int(value.arguments)
    return None


def _loop_step(counter: Instruction, body: Computation) -> int | None:
    """Return the constant that a loop's body adds to its counter."""
    result = root_of(body)
    if counter.opcode != "get-tuple-element" or result.opcode != "tuple":
        return None
    index = int(counter.attribute("index"))
    add = _source(body[result.operands[index]], body)
    if add.opcode != "add":
        return None
    for name in add.operands:
        operand = _source(body[name], body)
        if operand.opcode == "constant" and operand.arguments.isdigit():
            return int(operand.arguments)
    return None


def _source(value: Instruction, body: Computation) -> Instruction:
    """Follow copies back to the instruction that computes a value."""
    while value.opcode in _COPIES and value.operands[0] in body:
        value = body[value.operands[0]]
    return value
