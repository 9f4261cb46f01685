"""Matching of a signature's names with the names that a model gives its inputs or outputs.

A known name binds to its place, wherever the signature lists it. Names bind by order only where the model does not know
any of them, or has no names itself. Every other mixture is refused: one wrong pair would exchange two tensors, and no
comparison could find it, because both sides would get the same exchange.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One tensor in the arguments or the result of a model.

    Attributes:
        name: Its full name, such as ``batch.image``, ``logits`` or ``output_0``.
        aliases: Other full names of it, such as ``batch_image``.
        key: Its innermost key, such as ``image``; empty for an element of a tuple or list.
        named: False if the model gives it only a position.
    """

    name: str
    aliases: tuple[str, ...] = ()
    key: str = ""
    named: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Result of a matching.

    Attributes:
        found: The index of the place, by name of the signature.
        ordered: The names that bound by order.
        unknown: The names that bound to no place.
    """

    found: dict[str, int]
    ordered: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def match_names(names: Sequence[str], places: Sequence[Place]) -> Match:
    """Bind each name to a place.

    Args:
        names: The names of the signature, without repetition.
        places: The model's places, in order.

    Returns:
        The match. It has unknown names when the signature mixes known and unknown names, when a name fits two places or
        two names fit one place, or when no name is known and the numbers differ.
    """
    found, ambiguous = find_known(names, places)
    if len(found) < len(names):
        # ``output_1`` is a position here and may be a plain name in a signature that counts from 1.
        found = {name: index for name, index in found.items() if places[index].named}
    unknown = tuple(name for name in names if name not in found)
    left = [index for index in range(len(places)) if index not in found.values()]
    nameless = not any(places[index].named for index in left)
    if unknown and not ambiguous and len(unknown) == len(left) and (nameless or not found):
        return Match(found=found | dict(zip(unknown, left, strict=True)), ordered=unknown)
    return Match(found=found, unknown=unknown)


def find_known(names: Iterable[str], places: Sequence[Place]) -> tuple[dict[str, int], set[str]]:
    """Return the index of the place of each known name, and the names that fit more than one place.

    A full name comes before an innermost key, and an exact name before one that differs in case or in characters that
    no identifier has: ``input-ids`` is ``input_ids``, ``class`` is ``class_``.
    """
    found: dict[str, int] = {}
    ambiguous: set[str] = set()
    for spell in (str, _plain):
        for keys in (_full_names, _innermost):
            for name in names:
                if name in found or name in ambiguous:
                    continue
                fitting = [i for i, place in enumerate(places) if spell(name) in map(spell, keys(place))]
                fitting = [index for index in fitting if index not in found.values()]
                if len(fitting) == 1:
                    found[name] = fitting[0]
                elif fitting:
                    ambiguous.add(name)
    return found, ambiguous


def _full_names(place: Place) -> tuple[str, ...]:
    return (place.name, *place.aliases)


def _innermost(place: Place) -> tuple[str, ...]:
    return (place.key,) if place.key else ()


def _plain(name: str) -> str:
    return re.sub(r"\W", "_", name).strip("_").lower()
