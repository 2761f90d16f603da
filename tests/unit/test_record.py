"""Records are what `dataclass(frozen=True)` makes: the same methods, the same errors, and all that `dataclasses` does with them."""

from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields, replace

import pytest

from qrt.core.record import record


@record
class Point:
    """Two numbers, and what they are called."""

    x: int
    y: int = 0
    label: str = field(default="", compare=False)
    notes: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Peer:
    """The same, of the standard library."""

    x: int
    y: int = 0
    label: str = field(default="", compare=False)
    notes: tuple[str, ...] = field(default=(), repr=False)


@record
class Deep(Point):
    """With another field."""

    z: int = 1


@record(eq=False)
class Itself:
    """Equal to nothing else."""

    x: int


@record
class Empty:
    """Without fields."""


@record
class Told:
    """With methods of its own."""

    x: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", abs(self.x))

    def __repr__(self) -> str:
        return "told"


def test_a_record_is_what_a_frozen_dataclass_is() -> None:
    for arguments in ((1,), (1, 2), (1, 2, "a", ("b",))):
        ours, theirs = Point(*arguments), Peer(*arguments)
        assert repr(ours) == repr(theirs).replace("Peer", "Point")
        assert asdict(ours) == asdict(theirs)
        assert hash(ours) == hash(theirs)
    assert [f.name for f in fields(Point)] == [f.name for f in fields(Peer)]
    assert Point.__match_args__ == Peer.__match_args__


def test_what_is_compared() -> None:
    assert Point(1, 2, "a") == Point(1, 2, "b")
    assert Point(1, 2) != Point(2, 1)
    assert Point(1, 2) != (1, 2)
    assert Point(1) != Deep(1)
    assert Deep(1, z=2) == Deep(1, z=2) != Deep(1)
    assert len({Point(1, 2, "a"), Point(1, 2, "b"), Point(2)}) == 2
    assert Empty() == Empty() != Point(1)
    assert hash(Empty()) == hash(Empty())
    one = Itself(1)
    assert one == one != Itself(1)
    assert len({one, Itself(1)}) == 2


def test_a_record_does_not_change() -> None:
    point = Point(1)
    for name in ("x", "label", "z"):
        with pytest.raises(FrozenInstanceError):
            setattr(point, name, 3)
    with pytest.raises(FrozenInstanceError):
        del point.x
    assert point == Point(1)


def test_copies() -> None:
    point = Point(1, 2, "a")
    assert replace(point, y=3) == Point(1, 3)
    for made in (copy.copy(point), copy.deepcopy(point), pickle.loads(pickle.dumps(point))):
        assert made == point
        assert made.label == "a"


def test_methods_of_its_own_stay() -> None:
    assert Told(-1).x == 1
    assert repr(Told(1)) == "told"
    assert Told(-1) == Told(1)
