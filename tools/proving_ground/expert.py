"""Right episodes of the storeroom, which its models learn from."""

import random
from collections.abc import Sequence
from typing import Any

from tropd.proving_ground.storeroom import Order, Storeroom


def expert(
    order: Order, rng: random.Random, slip: float = 0.0, behind: Sequence[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """The messages of one right episode, of many.

    Args:
        order: the problem.
        rng: draws the order of the boxes, and slips.
        slip: how often a step that is none, or one that fails, is made first: how well a model that learns from these
            knows its way back. Such a message has `slip` set.
        behind: messages of another that the episode goes on with, to the replies to one of its turns; what they have
            brought is no more than was asked for.
    """
    store, messages = Storeroom(), []
    store.reset(**order.row())
    told, at_hand = _replay(store, behind)

    def say(content: str, tool: str | None = None, slipped: bool = False, **arguments: Any) -> str:
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if slipped:
            message["slip"] = True
        messages.append(message)
        if tool is None:
            return ""
        message["tool_calls"] = [{"type": "function", "function": {"name": tool, "arguments": arguments}}]
        reply = getattr(store, tool)(**arguments)
        messages.append({"role": "tool", "name": tool, "content": reply})
        return str(reply)

    need = order.need - store.brought
    left = [box for box in order.boxes if box not in told or store.boxes[box]]
    for box in sorted(rng.sample(left, len(left)), key=lambda box: box != at_hand):
        if need == 0:
            break
        there = store.boxes[box] if box == at_hand else int(say(f"need {need} .", "look", box=box))
        if rng.random() < slip:
            say(f"need {need} .", "look", slipped=True, box=rng.choice([box, *order.boxes]))
        if there == 0:
            continue
        if rng.random() < slip and there < 9:
            say(f"need {need} .", "move", slipped=True, box=box, count=rng.randint(there + 1, 9))
        taken = min(there, need)
        say(f"{need} - {taken} = {need - taken} .", "move", box=box, count=taken)
        need -= taken
    say("done" if need == 0 else f"short {need}")
    return messages


def _replay(store: Storeroom, messages: Sequence[dict[str, Any]]) -> tuple[set[str], str]:
    """Make the calls again; the boxes whose contents the replies have told, and the one told of last, if any is."""
    told: set[str] = set()
    at_hand = ""
    for call in (call["function"] for message in messages for call in message.get("tool_calls") or []):
        reply, at_hand = getattr(store, call["name"])(**call["arguments"]), ""
        if reply not in ("ok", "no such box"):
            at_hand = call["arguments"]["box"]
            told.add(at_hand)
    return told, at_hand
