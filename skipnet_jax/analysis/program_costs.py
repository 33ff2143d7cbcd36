"""Reads the costs of a compiled program: XLA:TPU's estimate of its cycles, the bytes that it moves, its collectives.

The text comes from `compiled.as_text()`: XLA's optimised HLO for one device. XLA:TPU writes `estimated_cycles` beside
each operation that it has scheduled; XLA for CPUs and GPUs writes none. The cycles come from a model of the chip, not
from a clock, and leave out collectives and Pallas kernels.

Bytes count an operation's operands and results outside on-chip memory, with the padding that their tiles need. An
operation counts as if it read each operand whole.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+[a-z\d]*)\[([\d,]*)\](?:\{([^}]*)\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<type>.+?) (?P<operation>[a-z][\w\-]*)\((?P<rest>.*)$"
)
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_CALLED = re.compile(r"(?:calls|to_apply|branch_computations|true_computation|false_computation)=\{?%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"?(\d+)')
_NAME = re.compile(r'op_name="([^"]*)"')
_ON_CHIP = re.compile(r"S\([13]\)")  # XLA's memory spaces: the vector memory, and the common memory of a TPU v4

# These move nothing themselves, or `walk` counts the computations that they call.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota", "partition-id"),
    *("replica-id", "while", "call", "conditional", "opt-barrier"),
}
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

# Parts of an operation's name that JAX adds for control flow and checkpoints; they are not places in a model.
_NO_PLACE = re.compile(
    r"cond|branch_\d+_fun|while|body|checkpoint|rematted_computation|closed_call|call\b.*|(transpose\()?jvp\(.*|.*\._\w+"
)


@dataclasses.dataclass
class Place:
    """The cost of one place in the model, per step.

    Args:
      cycles: estimated; 0 where XLA estimates none.
      bytes: to and from the device's memory.
    """

    cycles: int = 0
    bytes: int = 0


@dataclasses.dataclass
class Traffic:
    """The traffic of one kind of collective in a step.

    Args:
      bytes: of the exchanged arrays.
      sent: the fewest bytes that each device can send, on a ring.
    """

    count: int = 0
    bytes: int = 0
    sent: float = 0.0


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a compiled step costs on one device.

    Args:
      cycles: estimated by XLA:TPU; None where XLA estimates none.
      bytes: to and from the device's memory.
      places: by place in the model, backward passes apart.
      collectives: by kind.
      unestimated: number of kernels, such as Pallas's, that XLA gives no cycles for.
      arguments: bytes by the first part of the argument's name, such as "state.params".
    """

    cycles: int | None
    bytes: int
    places: Mapping[str, Place]
    collectives: Mapping[str, Traffic]
    unestimated: int
    arguments: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    operation: str
    rest: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.rest.split("), ", 1)[0])

    @property
    def collective(self) -> str | None:
        """The kind of collective that the instruction is or starts; None for any other instruction."""
        operation = self.operation.removesuffix("-start")
        return operation if operation in _COLLECTIVES else None


def read(text: str) -> Costs:
    """Adds up a program's operations. A loop's body counts per iteration, a conditional as its costliest branch."""
    program = _Program(text)
    program.walk(program.entry, 1)
    cycles = sum(place.cycles for place in program.places.values())
    return Costs(
        cycles=cycles if program.has_estimates else None,
        bytes=sum(place.bytes for place in program.places.values()),
        places=dict(program.places),
        collectives=dict(program.collectives),
        unestimated=program.unestimated,
        arguments=program.arguments(),
    )


class _Program:
    def __init__(self, text: str) -> None:
        self.computations: dict[str, list[_Instruction]] = {}
        self.entry = ""
        self.places: dict[str, Place] = collections.defaultdict(Place)
        self.collectives: dict[str, Traffic] = collections.defaultdict(Traffic)
        self.unestimated = 0
        self.has_estimates = False
        partitions = re.search(r"\b(?:num_partitions|replica_count)=(\d+)", text.partition("\n")[0])
        self.devices = int(partitions[1]) if partitions else 1
        lines: list[_Instruction] = []
        for line in text.splitlines():
            if header := _HEADER.match(line):
                lines = self.computations.setdefault(header[2], [])
                self.entry = header[2] if header[1] else self.entry
            elif found := _INSTRUCTION.match(line):
                lines.append(_Instruction(**found.groupdict()))

    def arguments(self) -> dict[str, int]:
        sizes: dict[str, int] = collections.defaultdict(int)
        for instruction in self.computations.get(self.entry, ()):
            if instruction.operation == "parameter":
                name = re.match(r"[\w.]+", _op_name(instruction))
                sizes[name[0] if name else ""] += _size(instruction.type)
        return dict(sizes)

    def walk(self, computation: str, times: int) -> None:
        types: dict[str, str] = {}
        for instruction in self.computations.get(computation, ()):
            types[instruction.name] = instruction.type
            if instruction.operation == "while":
                trips = _TRIPS.search(instruction.rest)
                body = re.search(r"body=%?([\w.\-]+)", instruction.rest)
                self.walk(body[1] if body else "", times * (int(trips[1]) if trips else 1))
            elif instruction.operation == "call" or self._wraps_computation(instruction):
                for called in _CALLED.findall(instruction.rest):
                    self.walk(called, times)
            elif instruction.operation == "conditional":
                self.walk(self._costliest(instruction), times)
            elif instruction.operation not in _FREE and not instruction.operation.endswith("-done"):
                self._count(instruction, types, times)

    def _wraps_computation(self, instruction: _Instruction) -> bool:
        """Whether an operation starts more than a slice; a slice's own type says how much it moves."""
        called = _CALLED.search(instruction.rest) if instruction.operation == "async-start" else None
        return called is not None and any(
            each.operation not in ("parameter", "slice") for each in self.computations.get(called[1], ())
        )

    def _costliest(self, instruction: _Instruction) -> str:
        """The costliest branch, without the computations that it calls."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
        branches = re.findall(r"[\w.\-]+", listed[1]) if listed else _CALLED.findall(instruction.rest)

        def cost(name: str) -> tuple[int, int]:
            own = self.computations.get(name, ())
            cycles = sum(int(found[1]) for each in own if (found := _CYCLES.search(each.rest)))
            return cycles, sum(_size(each.type) for each in own if each.operation not in _FREE)

        return max(branches, key=cost, default="")

    def _count(self, instruction: _Instruction, types: Mapping[str, str], times: int) -> None:
        place = self.places[place_of(_op_name(instruction))]
        place.bytes += times * _moved(instruction, types)
        if found := _CYCLES.search(instruction.rest):
            self.has_estimates = True
            place.cycles += times * int(found[1])
        elif instruction.operation == "custom-call" and "tpu_custom_call" in instruction.rest:
            self.unestimated += times
        for each in self._collectives(instruction):
            self._count_collective(each, types, times)

    def _collectives(self, instruction: _Instruction) -> Iterator[_Instruction]:
        """The instruction itself if it is a collective, or the collectives inside a fusion."""
        if instruction.collective:
            yield instruction
        elif instruction.operation == "fusion":
            for called in _CALLED.findall(instruction.rest):
                yield from (each for each in self.computations.get(called, ()) if each.collective)

    def _count_collective(self, instruction: _Instruction, types: Mapping[str, str], times: int) -> None:
        kind = instruction.collective or ""
        group = _group_size(instruction.rest, self.devices)
        results = [size for size, _ in _arrays(instruction.type)]
        if instruction.operation in ("all-gather-start", "collective-permute-start"):
            results = results[1:2]  # the type names the operand too
        operands = sum(_size(types.get(name, "")) for name in instruction.operands)
        exchanged = max(sum(results), operands)
        share = {"all-reduce": 2 * (group - 1) / group, "collective-permute": 1.0}.get(kind, (group - 1) / group)
        traffic = self.collectives[kind]
        traffic.count += times
        traffic.bytes += times * exchanged
        traffic.sent += times * exchanged * share


def place_of(op_name: str) -> str:
    """Where in the model an operation comes from, without block numbers.

    Args:
      op_name: as JAX writes it, such as "jit(train_step)/transpose(jvp(Network))/blocks_3/norm1/jit(batch_norm)/mul".

    Returns:
      Such as "blocks/norm1/batch_norm, backward".
    """
    first, *rest = op_name.split("/")
    inside = next((k for k, part in enumerate(rest) if re.match(r"(transpose\()?jvp\(|Network", part)), None)
    backward = inside is not None and rest[inside].startswith("transpose(")
    if inside is None:
        jitted = [part.removeprefix("jit(").strip("_)") for part in rest[:-1] if part.startswith("jit(")]
        return jitted[0] if jitted else "(outside the network)" if first else "(unnamed)"
    parts = []
    for part in rest[inside + 1 : -1]:
        if function := re.fullmatch(r"jit\(_*(\w+)\)", part):
            parts.append(function[1])
            break  # operations inside a jitted function are not places of their own
        if not _NO_PLACE.fullmatch(part):
            parts.append(re.sub(r"_?\d+$", "", part) if not parts else part)
    return ("/".join(parts) or "network") + (", backward" if backward else "")


def _op_name(instruction: _Instruction) -> str:
    name = _NAME.search(instruction.rest)
    return name[1].replace("\\'", "'") if name else ""


def _moved(instruction: _Instruction, types: Mapping[str, str]) -> int:
    """Bytes that an operation moves to and from the device's memory."""
    results = _arrays(instruction.type)
    if instruction.operation.endswith("-start") and instruction.operation != "all-reduce-start":
        results = results[:2]  # source and destination; counters follow
        if instruction.operation != "copy-start":  # a slice moves only its piece
            piece = min((size for size, _ in results), default=0)
            results = [(piece, outside) for _, outside in results]
        return sum(size for size, outside in results if outside)
    operands = [array for name in instruction.operands for array in _arrays(types.get(name, ""))]
    return sum(size for size, outside in (*results, *operands) if outside)


def _arrays(type_: str) -> list[tuple[int, bool]]:
    """Bytes of each array of a type, with its padding, and whether it lies outside on-chip memory."""
    found = []
    for kind, dims, layout in _ARRAY.findall(type_):
        sides = [int(side) for side in dims.split(",") if side]
        order, _, attributes = layout.partition(":")
        tile = re.match(r"T\(([\d,]+)\)", attributes)
        if tile and sides:
            minor_to_major = [int(axis) for axis in order.split(",") if axis]
            for axis, unit in zip(minor_to_major, reversed(tile[1].split(",")), strict=False):
                sides[axis] = -(-sides[axis] // int(unit)) * int(unit)
        found.append((math.ceil(math.prod(sides) * _width(kind)), not _ON_CHIP.search(attributes)))
    return found


def _width(kind: str) -> float:
    """Bytes of an element."""
    if kind in ("pred", "token"):
        return float(kind == "pred")
    bits = re.search(r"\d+", kind)
    return int(bits[0]) / 8 if bits else 0.0


def _size(type_: str) -> int:
    return sum(size for size, _ in _arrays(type_))


def _group_size(rest: str, devices: int) -> int:
    """How many devices a collective joins."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return listed[1].count(",") + 1
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(counted[1])
    if meshed := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", meshed[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", meshed[2]))
    return devices
