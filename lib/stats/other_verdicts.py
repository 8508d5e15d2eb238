"""What an interval would have to be for another verdict: how much higher or lower, or how many times as wide.

An interval [l, h] of a difference around its value v moves by δ to [l + δ, h + δ], or becomes s times as wide around
the same value: [v − s (v − l), v + s (h − v)]. The verdict (:func:`lib.stats.verdicts.decide`) can change only where an
end meets −m, 0 or m, that is, at

    δ = c − l,  δ = c − h,  s = (v − c) / (v − l),  s = (c − v) / (h − v),    c ∈ {−m, 0, m},

and what it is between two such places ``decide`` itself says. Amounts are rounded away from what was measured, and
``decide`` is asked again: with the amount as stated the verdict is the one stated. An interval that has a verdict at a
single place only, between two others, is passed over.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from lib.stats import verdicts
from lib.stats.verdicts import Interval

MOVE_DIGITS, FACTOR_DIGITS = 3, 2  # behind the point, at least, as verdicts are shown with as many
MOST_DIGITS = 9
ON_A_STEP = 1e-6  # of a step: what lies nearer to one is taken to lie on it, and what is stated lies beyond


class Difference(NamedTuple):
    """A difference that was measured, by ``name`` among several; without an ``interval`` it can show nothing."""

    name: str
    value: float | None
    interval: Interval | None


class Change(NamedTuple):
    """What gives another ``verdict``: differences ``moves`` higher or lower, by name, or intervals that are ``factor``
    times as wide around the same values (1: as wide as they are)."""

    verdict: str
    moves: dict[str, float]
    factor: float = 1.0


class _Piece(NamedTuple):
    """A stretch between two places, on which the verdict is the same."""

    start: float
    end: float
    verdict: str


def moved(difference: Difference, amount: float) -> Difference:
    """The difference with its whole interval higher by ``amount``."""
    value, interval = difference.value, difference.interval
    if value is None or interval is None:
        return difference
    return difference._replace(value=value + amount, interval=Interval(interval.low + amount, interval.high + amount))


def scaled(difference: Difference, factor: float) -> Difference:
    """The difference with an interval ``factor`` times as wide around the same value."""
    value, interval = difference.value, difference.interval
    if value is None or interval is None:
        return difference
    low, high = (value + factor * (end - value) for end in interval)
    return difference._replace(interval=Interval(low, high))


def verdict_of(says: str, differences: Sequence[Difference], margin: float) -> str:
    """The verdict on one difference, or on several as a family; one without an interval is inconclusive."""
    members = [
        verdicts.INCONCLUSIVE if difference.interval is None else verdicts.decide(says, difference.interval, margin)
        for difference in differences
    ]
    return members[0] if len(members) == 1 else verdicts.of_family(members)


def with_change(differences: Sequence[Difference], change: Change) -> list[Difference]:
    """The differences as a change would have them."""
    moves = change.moves
    return [scaled(moved(each, moves.get(each.name, 0.0)), change.factor) for each in differences]


def changes(says: str, differences: Sequence[Difference], margin: float) -> list[Change]:
    """The nearest changes that give another verdict on one difference, or on a family of several.

    Of one difference: the first other verdict above it and below it. Of a family: where it is inconclusive, what makes
    it *reproduced* (every member that does not hold moves) and *opposite* (the nearest one does); else, what makes it
    inconclusive. Of both: the widths that give another verdict, all narrower ones and the first wider one.

    Raises:
        ValueError: an unknown ``says``, a margin that is not above zero, ends in no order, or no difference at all.
    """
    current = verdict_of(says, differences, margin)
    nearest = _of_one(says, differences[0], margin) if len(differences) == 1 else _of_family(says, differences, margin)
    nearest += _of_width(says, differences, margin)
    return [
        change
        for change in nearest
        if change.verdict != current and verdict_of(says, with_change(differences, change), margin) == change.verdict
    ]


def _of_one(says: str, difference: Difference, margin: float) -> list[Change]:
    """The first other verdict above a difference, and the first below it."""
    current = verdict_of(says, [difference], margin)
    pieces = _pieces_of_moves(says, difference, margin)
    above = [piece for piece in pieces if piece.end > 0 and piece.verdict != current][:1]
    below = [piece for piece in pieces if piece.start < 0 and piece.verdict != current][-1:]
    nearest = []
    for piece in sorted(above + below, key=_distance):
        amount = _stated_move(says, difference, margin, piece)
        if amount is not None:
            nearest.append(Change(piece.verdict, {difference.name: amount}))
    return nearest


def _of_family(says: str, differences: Sequence[Difference], margin: float) -> list[Change]:
    """What makes an inconclusive family reproduced or opposite, and another one inconclusive."""
    members = [verdict_of(says, [difference], margin) for difference in differences]
    current = verdicts.of_family(members)

    def moves_to(targets: Iterable[str], skipped: Iterable[str]) -> dict[str, float | None]:
        waiting = [each for each, verdict in zip(differences, members, strict=True) if verdict not in skipped]
        return {each.name: _move_to(says, each, margin, targets) for each in waiting}

    if current == verdicts.INCONCLUSIVE:
        return [
            *_all_of(verdicts.REPRODUCED, moves_to([verdicts.REPRODUCED], [verdicts.REPRODUCED])),
            *_nearest_of(verdicts.OPPOSITE, moves_to([verdicts.OPPOSITE], [])),
        ]
    not_opposite = {verdicts.REPRODUCED, verdicts.NO_DIFFERENCE, verdicts.INCONCLUSIVE}
    if current == verdicts.OPPOSITE:
        return _all_of(verdicts.INCONCLUSIVE, moves_to(not_opposite, not_opposite))
    return _nearest_of(verdicts.INCONCLUSIVE, moves_to(not_opposite - {current}, []))


def _all_of(verdict: str, moves: dict[str, float | None]) -> list[Change]:
    """A change in which every one moves, the farthest first, if every one can."""
    if not moves or any(amount is None for amount in moves.values()):
        return []
    return [Change(verdict, dict(sorted(moves.items(), key=lambda move: -abs(move[1]))))]


def _nearest_of(verdict: str, moves: dict[str, float | None]) -> list[Change]:
    """A change in which the nearest one moves."""
    possible = [(name, amount) for name, amount in moves.items() if amount is not None]
    return [Change(verdict, dict([min(possible, key=lambda move: abs(move[1]))]))] if possible else []


def _of_width(says: str, differences: Sequence[Difference], margin: float) -> list[Change]:
    """All narrower widths that give another verdict, the widest first, and the first wider one."""
    current = verdict_of(says, differences, margin)

    def verdict_at(factor: float) -> str:
        return verdict_of(says, [scaled(difference, factor) for difference in differences], margin)

    places = [0.0]
    for difference in differences:
        value, interval = difference.value, difference.interval
        if value is not None and interval is not None:
            ends = [end for end in interval if end != value]
            places += [(c - value) / (end - value) for end in ends for c in (-margin, 0.0, margin)]
    pieces = _pieces([place for place in places if place >= 0], verdict_at, math.inf)
    others = [piece for piece in pieces if piece.verdict != current]
    narrower = [piece for piece in reversed(others) if piece.start < 1]
    wider = [piece for piece in others if piece.start >= 1]
    nearest = []
    for piece in [*narrower, *wider[:1]]:
        factor = _stated(piece, FACTOR_DIGITS, verdict_at, origin=1.0, above=0.0)
        if factor is not None:
            nearest.append(Change(piece.verdict, {}, factor))
    return nearest


def _move_to(says: str, difference: Difference, margin: float, targets: Iterable[str]) -> float | None:
    """The smallest amount by which a difference moves to one of several verdicts; None where no amount does."""
    pieces = [piece for piece in _pieces_of_moves(says, difference, margin) if piece.verdict in targets]
    return _stated_move(says, difference, margin, min(pieces, key=_distance)) if pieces else None


def _pieces_of_moves(says: str, difference: Difference, margin: float) -> list[_Piece]:
    if difference.interval is None:
        return []
    places = [c - end for end in difference.interval for c in (-margin, 0.0, margin)]
    return _pieces(places, lambda amount: verdict_of(says, [moved(difference, amount)], margin), math.inf, -math.inf)


def _stated_move(says: str, difference: Difference, margin: float, piece: _Piece) -> float | None:
    return _stated(piece, MOVE_DIGITS, lambda amount: verdict_of(says, [moved(difference, amount)], margin))


def _pieces(places: list[float], verdict_at: Callable[[float], str], end: float, start: float | None = None) -> list:
    """The stretches between places, from ``start`` (or the first place) to ``end``; equal neighbours are one."""
    inner = sorted(set(places))
    ends = [*([] if start is None else [start]), *inner, end]
    pieces: list[_Piece] = []
    for left, right in itertools.pairwise(ends):
        inside = right - 1 if left == -math.inf else left + 1 if right == math.inf else (left + right) / 2
        verdict = verdict_at(inside)
        if pieces and pieces[-1].verdict == verdict:
            pieces[-1] = pieces[-1]._replace(end=right)
        else:
            pieces.append(_Piece(left, right, verdict))
    return pieces


def _distance(piece: _Piece) -> float:
    return max(piece.start, -piece.end, 0.0)


def _stated(
    piece: _Piece, digits: int, verdict_at: Callable[[float], str], *, origin: float = 0.0, above: float = -math.inf
) -> float | None:
    """The amount inside a piece nearest to ``origin`` with as few digits as can be, at least ``digits``, which is
    ``above`` a limit and gives the piece's verdict; None where none does."""
    for n_digits in range(digits, MOST_DIGITS + 1):
        step = 10.0**-n_digits
        is_lower = piece.end <= origin
        if is_lower:
            steps = math.ceil(piece.end / step - ON_A_STEP) - 1
        else:
            steps = math.floor(max(piece.start, origin) / step + ON_A_STEP) + 1
        amount = round(steps * step, n_digits)
        if amount > above and verdict_at(amount) == piece.verdict:
            return amount
    return None
