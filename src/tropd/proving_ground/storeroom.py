"""The storeroom: a task of several turns with tools and a hidden state, that models of half a million parameters learn.

    <user> bring 3 to a . boxes b c d . <end>
    <agent> need 3 . <call> look box c </call> <end>          <reply> 0 <end>
    <agent> need 3 . <call> look box b </call> <end>          <reply> 8 <end>
    <agent> 3 - 3 = 0 . <call> move box b count 3 </call> <end> <reply> ok <end>
    <agent> done <end>

What the boxes hold is told by looking alone; the order is free; sums go on over turns, so that errors add up; an error
is answered and can be mended. An episode is right where the store is, at its end. Use it as any environment:

    tropd train ... --environment tropd.proving_ground.storeroom.Storeroom

>>> store = Storeroom()
>>> store.reset(need=3, boxes='{"b": 8, "c": 0}')
>>> store.look("b"), store.move("b", 9), store.move("b", 3), store.get_reward()
('8', 'error only 8', 'ok', 1.0)
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..shipped import locate_field
from .problems import Split, split_of

BOXES = "bcdefg"
FILLED = (0.4, 0.7, 0.9, 1.2)
"""What is asked for, as a share of all that is there: sometimes more than there is."""
MOST = 30
MODELS = ("teacher", "student", "robust-teacher", "unreliable-teacher")
"""What each teacher has learned from says how far it can be relied on off its own path: models/storeroom/README.md."""
DRAWS_WITHOUT_NEWS = 3_000
"""After so many there are no further problems."""


@dataclass(frozen=True)
class Order:
    """One problem: bring `need` to `a`, out of what each box holds; level 1 to 5 has 2 to 6 boxes."""

    need: int
    boxes: dict[str, int]
    level: int

    @property
    def prompt(self) -> str:
        """What a model is told."""
        return f"bring {self.need} to a . boxes {' '.join(self.boxes)} ."

    @property
    def key(self) -> str:
        """One text for one problem."""
        return f"{self.need} {sorted(self.boxes.items())}"

    def row(self) -> dict[str, Any]:
        """As the trainer's data set has it; what the boxes hold reaches the environment alone."""
        return {
            "prompt": [{"role": "user", "content": self.prompt}],
            "need": self.need,
            "boxes": json.dumps(self.boxes),
            "level": self.level,
        }


class Storeroom:
    """Boxes whose contents nobody has told."""

    def reset(self, need: int = 0, boxes: str = "{}", **row: Any) -> None:
        """Begin an episode."""
        self.need, self.boxes, self.brought = int(need), dict(json.loads(boxes)), 0
        self.there = sum(self.boxes.values())
        self.calls = self.errors = 0

    def look(self, box: str) -> str:
        """How many are in a box.

        Args:
            box: its letter.
        """
        self.calls += 1
        if box not in self.boxes:
            self.errors += 1
            return "no such box"
        return str(self.boxes[box])

    def move(self, box: str, count: int) -> str:
        """Bring some of a box to a.

        Args:
            box: its letter.
            count: how many.
        """
        self.calls += 1
        if box not in self.boxes:
            self.errors += 1
            return "no such box"
        if not 0 <= int(count) <= self.boxes[box]:
            self.errors += 1
            return f"error only {self.boxes[box]}"
        self.boxes[box] -= int(count)
        self.brought += int(count)
        return "ok"

    def get_reward(self) -> float:
        """1 where as many were brought as were asked for, or all that there were."""
        return float(self.brought == min(self.need, self.there))


def is_right(store: Storeroom, last: str) -> bool:
    """Is the store as it should be, and does the last word say so: `done`, or `short` by how many?"""
    lacking = store.need - store.there
    return store.get_reward() == 1.0 and last.split() == (["short", str(lacking)] if lacking > 0 else ["done"])


# ---------------------------------------------------------------------- problems


def draw(rng: random.Random, level: int) -> Order:
    """A problem of a level, 1 to 5."""
    boxes = {box: rng.randint(0, 9) for box in BOXES[: level + 1]}
    most = min(MOST, max(3, int(sum(boxes.values()) * rng.choice(FILLED))))
    return Order(rng.randint(2, most), boxes, level)


def orders(split: Split, count: int, seed: int, levels: Sequence[int] = (1, 2, 3, 4)) -> list[Order]:
    """Different problems of a split; the same arguments give the same."""
    rng = random.Random(f"{split} {seed}")
    found: dict[str, Order] = {}
    without_news = 0
    while len(found) < count:
        order = draw(rng, rng.choice(list(levels)))
        is_new = split_of(order) == split and order.key not in found
        without_news = 0 if is_new else without_news + 1
        if is_new:
            found[order.key] = order
        if without_news == DRAWS_WITHOUT_NEWS:
            raise ValueError(
                f"count is {count}; the {split} split of the storeroom at levels {', '.join(map(str, levels))} gave "
                f"only {len(found)} problems. Choose at most {len(found)}, or higher levels."
            )
    return list(found.values())


# ---------------------------------------------------------------------- models


def model_path(name: str) -> Path:
    """Folder of a shipped teacher or the student, for `from_pretrained`.

    Raises:
        ValueError: there is no model of this name, or not in this installation.
    """
    if name not in MODELS:
        raise ValueError(f"name is {name!r}; the storeroom has no such model. Choose {' or '.join(MODELS)}.")
    return Path(locate_field("name", f"shipped:storeroom-{name}"))
