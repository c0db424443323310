"""verl's single-turn agent loop, after a prefix of the teacher's response.

The prefix comes with the row (`extra_info.tropd_prefix_ids`, written by `tropd export --to verl`). It is a part of the
response whose mask is 0: neither model is scored on it, the student continues after it, and both share the budget.
"""

from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from .arming import say
from .rows import PREFIX, STEP


class PrefixAgentLoop(SingleTurnAgentLoop):
    """One answer after `extra_info.tropd_prefix_ids`; verl's own loop if there is none."""

    server_manager: Any
    warned = False

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> AgentLoopOutput:
        """The row's prompt, its prefix, and what the student writes behind them."""
        row = kwargs.get("extra_info") or {}
        prefix = [int(token) for token in (row[PREFIX] if row.get(PREFIX) is not None else [])]
        self._watch_order(row.get(STEP), kwargs.get("global_steps"))
        if not prefix:
            return await super().run(sampling_params, priority=priority, **kwargs)
        room = self.response_length - len(prefix)
        if room < 1:
            raise ValueError(
                f"a prefix has {len(prefix)} tokens, and data.max_response_length is {self.response_length}: nothing "
                "is left to the student. Use the length that `tropd export` was given."
            )
        server = self.server_manager
        self.server_manager = _BehindPrefix(server, prefix)
        try:
            output = await super().run({**sampling_params, "max_tokens": room}, priority=priority, **kwargs)
        finally:
            self.server_manager = server
        return self._with_prefix(output, prefix)

    def _with_prefix(self, output: AgentLoopOutput, prefix: list[int]) -> AgentLoopOutput:
        room = self.response_length - len(prefix)
        output.response_ids = [*prefix, *output.response_ids[:room]]
        output.response_mask = [*([0] * len(prefix)), *output.response_mask[:room]]
        if output.response_logprobs is not None:
            output.response_logprobs = [*([0.0] * len(prefix)), *output.response_logprobs[:room]]
        return output

    @classmethod
    def _watch_order(cls, meant: Any, now: Any) -> None:
        """Say once that the rows come in another order than they were written for."""
        if meant is None or now is None or int(meant) == int(now) or cls.warned:
            return
        cls.warned = True
        say(
            f"a row that was written for step {int(meant)} is used in step {int(now)}, so its prefix does "
            "not have the scheduled length. Set data.shuffle=false, trainer.total_epochs=1, "
            "data.filter_overlong_prompts=false and data.train_batch_size to the --batch_size of `tropd export`."
        )


class _BehindPrefix:
    """The server, asked for what follows prompt and prefix."""

    def __init__(self, server: Any, prefix: list[int]):
        self.server, self.prefix = server, prefix

    async def generate(self, *, prompt_ids: list[int], **kwargs: Any) -> Any:
        return await self.server.generate(prompt_ids=[*prompt_ids, *self.prefix], **kwargs)
