"""Prompts that a model cannot read: without a token, or with a response beyond the positions that it was made for."""

from collections.abc import Sequence


def check_contexts(who: str, positions: int | None, contexts: Sequence[Sequence[int]], budget: int) -> None:
    """Refuse what the command line refuses before a run; a model with rotary positions would read on, and wrongly.

    Args:
        who: `the student` or a teacher, as the sentence begins.
        positions: that it has; `None` where nobody says.
        contexts: token ids of each prompt, as this model sees it.
        budget: `max_completion_length`.

    Raises:
        ValueError: with the lengths, and what to do.
    """
    if not all(contexts):
        raise ValueError(
            f"{who} is given a prompt without a token, and nothing would predict the first token of its response. "
            "Leave empty prompts out of the data."
        )
    longest = max(map(len, contexts), default=0)
    if positions is None or longest + budget <= positions:
        return
    room = positions - longest
    raise ValueError(
        f"a prompt has {longest} tokens for {who}, and max_completion_length is {budget}: {longest + budget} together, "
        f"but it was made for {positions} positions (max_position_embeddings) and cannot read beyond them. "
        + (f"Set max_completion_length to at most {room}, or leave" if room > 0 else "Leave")
        + " the longest prompts out of the data."
    )
