"""The fields that distillation adds to TRL's `GRPOConfig`. No heavy import, so that they can be listed quickly."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from ..objective.methods import SETTINGS, Method, get_method

# Which values a field of ours may have, and the sentence for the others.
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "ending": (lambda ending: ending in ("one_action", "as_given"), "choose one_action or as_given"),
    "max_tool_result_tokens": (lambda n: n is None or n >= 1, "use at least 1, or remove it to keep replies whole"),
    "guidance_min_tail": (lambda n: n >= 1, "the student needs at least 1 token"),
    "teacher_batch_size": (lambda n: n is None or n >= 1, "use at least 1, or None for the student's batch size"),
    "rollout_batch_size": (lambda n: n is None or n >= 1, "use at least 1, or None for all rollouts at once"),
    "vllm_request_timeout": (lambda seconds: seconds > 0, "use a number of seconds"),
    "teacher_concurrency": (lambda n: 1 <= n <= 1024, "use 1 to 1024 questions at once"),
    "teacher_timeout": (lambda seconds: seconds > 0, "use a number of seconds"),
    "teacher_patience": (lambda seconds: seconds >= 0, "use a number of seconds; 0 stops at the first failure"),
    "reward_mixing_weight": (lambda weight: weight >= 0, "rewards are maximised, use >= 0"),
    "collapse_share": (lambda share: 0 < share <= 1, "it is a share of rollouts, in (0, 1]"),
    "collapse_patience": (lambda n: n is None or n >= 1, "use at least 1, or None to switch off"),
    "eval_benchmarks_max_problems": (lambda n: n is None or n >= 1, "use at least 1, or None to ask all"),
    "eval_benchmarks_max_new_tokens": (lambda n: n is None or n >= 1, "a response needs room for at least 1 token"),
    "eval_benchmarks_samples": (lambda n: n >= 1, "ask each problem at least once"),
    "eval_benchmarks_temperature": (lambda t: 0 <= t < float("inf"), "use 0 for the likeliest token, or more"),
    "rollout_log_steps": (lambda n: n >= 0, "use 0 for never, or a number of steps"),
    "alternatives_per_token": (lambda n: n >= 0, "use 0 for none, or a number of tokens"),
    "rollouts_per_log": (lambda n: n >= 1, "use at least 1, or rollout_log_steps=0 to log none"),
}


SERVED = (
    "teacher_model_name", "teacher_tokenizer", "teacher_api_key_env", "teacher_concurrency", "teacher_timeout",
    "teacher_patience", "teacher_allow_remote",
)  # fmt: skip
"""The fields about a teacher behind a server."""


def check_ranges(settings: Any, ranges: dict[str, tuple[Callable[[Any], bool], str]]) -> None:
    """Refuse a value that its field cannot have, by the field's name."""
    for name, (allowed, sentence) in ranges.items():
        value = getattr(settings, name)
        if not allowed(value):
            raise ValueError(f"{name} is {value!r:.200}; {sentence}.")


@dataclass
class MethodSettings:
    """The method, its parts, the teacher, and what is written down; `TrOPDConfig` has these and all of TRL's fields.

    `method` names vetted settings (see `tropd.METHODS`), or one of your own (docs/add_a_method.md); a part of it that
    is left at `None` keeps the method's own value, and one that the method would never read is refused.

    Attributes:
        method: name of the method, or `package.module:NAME`, a `tropd.Method` of your own.
        gate: `bernoulli` (the paper's), `expected` or `hard`.
        support: `teacher`, the top-k on which reverse KL is exact, or `union`, joined with the student's top-k.
        outlier: `fkl_direct`, `fkl_scalar`, `rkl_direct`, `mask`, `clip` or `k1`.
        outlier_tau: τ of hard gates and clipping, in nats of r = log π_T − log π_S.
        advantage_floor: REOPOLD phase II's lower bound of the advantage, nats.
        advantage: what K1 learns from on trusted tokens: `log_ratio`, `mixture`, `power` or `sign`.
        advantage_alpha: α of `mixture` and `power`.
        advantage_scale: `total_variation` (TV-OPD's coefficient): the advantage `sign` shrinks as the student nears
            the teacher (docs/equations.md); or `none`.
        baseline: of K1 on every token: `none`, `full` (the state's reverse KL) or `top_k` (its part on the teacher's
            top-k and one bucket).
        fkl_top_k: k of the teacher's top-k.
        fkl_truncation: `none` (as printed), `teacher_renorm` or `tail`.
        fkl_weight: factor of the forward-KL term.
        entropy_share: share of tokens selected by student entropy, in (0, 1].
        teacher_entropy_tau: EOPD's threshold, nats.
        jsd_beta: mixture of JSD and GKD; 0 forward, 1 reverse KL.
        ratio_clip: PPO's ε for several updates per batch.
        guidance_schedule: `cosine`, `linear`, `constant` or `none`.
        guidance_length: `cap`, min(⌊α·L_max⌋, L), or `share`, ⌊α·L⌋.
        guidance_beta: β of the prefix's term.
        guidance_term: `nll`, the prefix's negative log-likelihood, or `k1`, a detached advantage that pushes down.
        guidance_min_tail: tokens of the teacher's response, and of the budget, that are always left to the student.
        guidance_unit: `tokens`: the teacher's prefix is so many of its tokens, in whose last turn the student goes
            on; `turns`: whole turns of an episode with tools. `None`: turns where there are tools or an environment.
        guidance_pattern: of turns, `prefix`: the first ones are the teacher's, `mixed`: each with probability α, or
            `trust`: each with α times what the mean acceptance of the episode before it lacks of 1.
        max_tool_result_tokens: a tool's reply that is longer is cut there, with a mark of how much is missing; `None`
            cuts none.
        reduction: `shared`, `per_region`, `per_turn` or `selected`.
        turn_trust: `weight` lets a turn count by the mean acceptance of the episode before it (docs/agents.md).
        switch_at: fraction of training at which a two-stage method switches.
        ending: `one_action` scores all ids that end a response, for student or teacher, as one action, and rollouts
            stop at each; `as_given` scores each id separately, and rollouts stop at the student's (docs/endings.md).
        ending_ids: these ids replace what generation_config, tokenizer and chat template of the models name;
            with `as_given`, the ids at which rollouts stop.
        teacher_model_init_kwargs: keyword arguments of the teacher's `from_pretrained`. Of several teachers, for all of
            them or by name: `{"math": {"dtype": "bfloat16"}}`; likewise the two settings of their chat template.
        teacher_batch_size: sequences per teacher forward, of `tropd serve` too; `None` is
            `per_device_train_batch_size`.
        shard_teacher: with FSDP2, shard the teacher as the student is; `False` keeps a whole copy on each process,
            which is faster where it fits, and can write teacher prefixes while training. (ZeRO-3 always shards it.)
        teacher_chat_template: what renders the teacher's context: `student` (the student's tokenizer and template),
            `teacher` (the teacher's own), or a Jinja template.
        teacher_chat_template_kwargs: keyword arguments of that template, such as `{"enable_thinking": True}`.
        teacher_model_name: of a teacher behind a server (docs/engines.md), what the server calls it; `None`: the only
            one that it offers. Of several teachers, for all of them or by name.
        teacher_tokenizer: folder or Hub name of a served teacher's tokenizer; `None`: of the folder that the server
            names, where it is on this machine, else the student's. Of several teachers, for all of them or by name.
        teacher_api_key_env: name of the environment variable with the server's key; `None`: `TROPD_TEACHER_API_KEY`,
            where it is set. The key itself is written nowhere.
        teacher_concurrency: concurrent requests of each process to a served teacher.
        teacher_timeout: seconds that a served teacher may take for one answer.
        teacher_patience: seconds to keep retrying a served teacher that does not answer, fails or is restarted;
            the run then stops with its last checkpoint kept.
        teacher_allow_remote: allow a served teacher on another machine over unencrypted http.
        reward_mixing_weight: weight of the rewards' group-normalised advantage in the policy gradient; at 0 reward
            functions are only monitored.
        addressed_sampling: draw a rollout's tokens, and a prefix that the teacher writes, from noise that depends on
            (seed, step, row, position) alone, so that another split, padding or resumption draws the same ones
            (docs/reliability.md). `None`: wherever Transformers' `generate` samples; `True`: the same, and engines
            that draw for themselves (vLLM, continuous batching) are refused; `False`: PyTorch's generator of each rank.
        rollout_batch_size: rollouts that each process writes at once, at most, with Transformers' `generate` and
            addressed sampling; as some end, waiting ones take their places, and what is written is the same. Lower it
            where keys and values do not fit; `None` is all of a generation batch, and the fastest.
        vllm_request_timeout: with `vllm_mode: server`, seconds that the server may take for one answer; the run then
            stops with its last checkpoint kept.
        rescore_rollouts: read each rollout in a pass of the student before the update, for log π_old and entropies.
            `None`: only if the sampler's log-probs are not exact enough; with Transformers' `generate`, addressed
            sampling and a student that computes in float32 they are. `False`: not if the sampler records any, even in
            half precision, where they are rounded (docs/performance.md). `True`: always.
        mask_repetitive_completions: exclude rollouts that end in a repeating cycle from the loss (truncated ones:
            TRL's `mask_truncated_completions`).
        collapse_share: a step counts as collapsed when this share of its rollouts is empty, only repeats itself, or no
            longer ends though most once did.
        collapse_patience: collapsed steps in a row after which the run stops with its checkpoint kept; `None` never.
        rollout_log_steps: write sampled rollouts with every token's region and terms each so many steps; 0 never.
        rollouts_per_log: sequences written each time.
        master_weights: keep the weights that are trained in float32, whatever dtype the student was loaded in, since
            updates of about the learning rate round away in half precision; the model is saved in float32, too. With
            `bf16` it still computes in half precision. Adapters and DeepSpeed have a precision of their own.
        stop_at_signals: where SIGTERM, or a closed terminal (SIGHUP), would end the process, `train()` finishes its
            step, writes a checkpoint and raises `Interrupted`. `False` leaves signals alone.
        alternatives_per_token: the teacher's likeliest tokens written beside each token of these; 0 none. A served
            teacher is asked for no more than the method reads: there they are written with methods that read its top-k.
        eval_benchmarks: benchmarks that each evaluation (`eval_strategy`, `eval_steps`) asks the student, graded as
            `tropd evaluate` does: names (`tropd evaluate --list`), or JSONL files of your own. Prompts to evaluate
            on are not needed beside them. Their metrics are `eval_benchmark/NAME/accuracy` and others, for
            `metric_for_best_model` too.
        eval_benchmarks_data: folder of the benchmarks' files.
        eval_benchmarks_max_problems: ask only so many of each, evenly spaced; `None` asks all.
        eval_benchmarks_max_new_tokens: length at which a response is cut; `None` is `max_completion_length`.
        eval_benchmarks_samples: responses to each problem.
        eval_benchmarks_temperature: of the softmax that they are drawn from; 0 takes the likeliest token.
        eval_benchmarks_system_prompt: a system message before every problem.
        save_final_model: write the model to `output_dir` when training ends.
        checkpoint_digests: write a SHA-256 of each file into `checkpoint.json`, so that a checkpoint that was altered
            is refused too. It reads every byte, about a second a gigabyte, while all processes wait. Names and sizes
            are compared in any case (docs/reliability.md).
    """

    method: str = field(
        default="tropd", metadata={"help": "distillation method, see `tropd methods`; or package.module:NAME"}
    )
    gate: str | None = field(default=None, metadata={"help": "bernoulli, expected or hard."})
    support: str | None = field(default=None, metadata={"help": "teacher or union (both models' top-k)."})
    outlier: str | None = field(
        default=None, metadata={"help": "fkl_direct, fkl_scalar, rkl_direct, mask, clip or k1."}
    )
    outlier_tau: float | None = field(default=None, metadata={"help": "Threshold of hard gates and clip, in nats."})
    advantage_floor: float | None = field(default=None, metadata={"help": "REOPOLD phase II's floor, in nats."})
    advantage: str | None = field(default=None, metadata={"help": "log_ratio, mixture, power or sign."})
    advantage_alpha: float | None = field(default=None, metadata={"help": "Alpha of mixture and power."})
    advantage_scale: str | None = field(default=None, metadata={"help": "none or total_variation, of sign."})
    baseline: str | None = field(default=None, metadata={"help": "none, full or top_k."})
    fkl_top_k: int | None = field(default=None, metadata={"help": "k of the teacher's top-k."})
    fkl_truncation: str | None = field(default=None, metadata={"help": "none, teacher_renorm or tail."})
    fkl_weight: float | None = field(default=None, metadata={"help": "Factor of the forward-KL term."})
    entropy_share: float | None = field(default=None, metadata={"help": "Share of tokens of highest entropy."})
    teacher_entropy_tau: float | None = field(default=None, metadata={"help": "EOPD's threshold, in nats."})
    jsd_beta: float | None = field(default=None, metadata={"help": "Mixture of JSD and GKD."})
    ratio_clip: float | None = field(default=None, metadata={"help": "PPO's epsilon for several updates per batch."})
    guidance_schedule: str | None = field(default=None, metadata={"help": "cosine, linear, constant or none."})
    guidance_length: str | None = field(default=None, metadata={"help": "cap or share."})
    guidance_beta: float | None = field(default=None, metadata={"help": "Weight of the prefix's term."})
    guidance_term: str | None = field(default=None, metadata={"help": "nll or k1."})
    guidance_min_tail: int = field(default=1, metadata={"help": "Tokens always left to the student."})
    guidance_unit: str | None = field(default=None, metadata={"help": "tokens or turns; None: turns with tools."})
    guidance_pattern: str = field(default="prefix", metadata={"help": "prefix, mixed or trust, for turns."})
    max_tool_result_tokens: int | None = field(default=None, metadata={"help": "Longer replies of tools are cut."})
    reduction: str | None = field(default=None, metadata={"help": "shared, per_region, per_turn or selected."})
    turn_trust: str | None = field(default=None, metadata={"help": "none or weight."})
    switch_at: float | None = field(default=None, metadata={"help": "When a two-stage method switches."})
    ending: str = field(default="one_action", metadata={"help": "one_action or as_given."})
    ending_ids: list[int] | None = field(
        default=None, metadata={"help": "Ids that end a response; None: what the models name."}
    )
    teacher_model_init_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Keyword arguments of the teacher's from_pretrained."}
    )
    teacher_batch_size: int | None = field(default=None, metadata={"help": "Sequences per teacher forward."})
    shard_teacher: bool = field(default=True, metadata={"help": "With FSDP2, shard the teacher too."})
    teacher_chat_template: str | dict[str, str] = field(
        default="student", metadata={"help": "student, teacher or a template; of several: name to one."}
    )
    teacher_chat_template_kwargs: dict | str | None = field(
        default=None, metadata={"help": "Keyword arguments of the teacher's chat template."}
    )
    teacher_model_name: str | dict[str, str] | None = field(
        default=None, metadata={"help": "Of a served teacher: its name there; None: the only one."}
    )
    teacher_tokenizer: str | dict[str, str] | None = field(
        default=None, metadata={"help": "Of a served teacher: folder or Hub name of its tokenizer."}
    )
    teacher_api_key_env: str | None = field(
        default=None, metadata={"help": "Environment variable with its key; None: TROPD_TEACHER_API_KEY."}
    )
    teacher_concurrency: int = field(default=16, metadata={"help": "Concurrent requests to it, per process."})
    teacher_timeout: float = field(default=300.0, metadata={"help": "Seconds that it may take for one answer."})
    teacher_patience: float = field(default=600.0, metadata={"help": "Seconds to keep retrying if it does not answer."})
    teacher_allow_remote: bool = field(default=False, metadata={"help": "Allow unencrypted http to another machine."})
    reward_mixing_weight: float = field(default=0.0, metadata={"help": "Weight of rewards; 0 only monitors."})
    addressed_sampling: bool | None = field(
        default=None, metadata={"help": "Noise by seed, step, row, position; None: where Transformers samples."}
    )
    rollout_batch_size: int | None = field(default=None, metadata={"help": "Rollouts written at once, per process."})
    vllm_request_timeout: float = field(default=3600.0, metadata={"help": "Seconds that a vLLM server may take."})
    rescore_rollouts: bool | None = field(
        default=None, metadata={"help": "Rescore rollouts before the update; None: only if the sampler's are inexact."}
    )
    mask_repetitive_completions: bool = field(default=False, metadata={"help": "Exclude repetitive rollouts."})
    collapse_share: float = field(default=0.9, metadata={"help": "Share of bad rollouts that means collapse."})
    collapse_patience: int | None = field(default=5, metadata={"help": "Collapsed steps before the run stops."})
    rollout_log_steps: int = field(default=10, metadata={"help": "Steps between logged rollouts; 0 never."})
    rollouts_per_log: int = field(default=4, metadata={"help": "Rollouts logged each time."})
    master_weights: bool = field(default=True, metadata={"help": "Keep trained weights in float32."})
    stop_at_signals: bool = field(
        default=True, metadata={"help": "At SIGTERM or SIGHUP finish the step and write a checkpoint."}
    )
    alternatives_per_token: int = field(default=5, metadata={"help": "Teacher's likeliest tokens logged beside each."})
    eval_benchmarks: list[str] = field(
        default_factory=list, metadata={"help": "Benchmarks asked in each evaluation: names, or JSONL files."}
    )
    eval_benchmarks_data: str | None = field(default=None, metadata={"help": "Folder of the benchmarks' files."})
    eval_benchmarks_max_problems: int | None = field(default=None, metadata={"help": "Problems of each; None: all."})
    eval_benchmarks_max_new_tokens: int | None = field(
        default=None, metadata={"help": "Length that cuts a response; None: max_completion_length."}
    )
    eval_benchmarks_samples: int = field(default=1, metadata={"help": "Responses to each problem."})
    eval_benchmarks_temperature: float = field(default=0.0, metadata={"help": "Of their softmax; 0: the likeliest."})
    eval_benchmarks_system_prompt: str | None = field(default=None, metadata={"help": "Message before each problem."})
    save_final_model: bool = field(default=True, metadata={"help": "Save the model to output_dir at the end."})
    checkpoint_digests: bool = field(default=False, metadata={"help": "Write SHA-256 of checkpoints, and check them."})

    def resolved_method(self) -> Method:
        """The method with this configuration's changes."""
        return get_method(self.method, **{name: getattr(self, name) for name in SETTINGS})

    def check_ranges(self) -> None:
        """Refuse a value that its field cannot have, with a sentence."""
        check_ranges(self, _RANGES)
        if self.addressed_sampling and (engine := self._engine_of_its_own()):
            raise ValueError(
                f"addressed_sampling is True, but {engine} draws tokens with generators of its own, which cannot be "
                "addressed by row and position. Remove addressed_sampling, or let Transformers' generate sample."
            )

        if self.rollout_batch_size is not None and not self.addresses_sampling():
            raise ValueError(
                f"rollout_batch_size is {self.rollout_batch_size}, but rollouts are not drawn by row and position "
                f"({self._engine_of_its_own() or 'addressed_sampling is False'}), so it would have no effect. "
                "Remove one of the two."
            )

        if self.rescore_rollouts is False and not self.addresses_sampling():
            raise ValueError(
                "rescore_rollouts is False, but log-probabilities and entropies are recorded only by the sampler of "
                f"addressed rollouts ({self._engine_of_its_own() or 'addressed_sampling is False'}). Remove it."
            )

    def check_benchmarks(self) -> None:
        """Refuse settings of benchmarks that would have no effect, or that repeat one response."""
        given = [
            one.name
            for one in fields(MethodSettings)
            if one.name.startswith("eval_benchmarks_") and getattr(self, one.name) != one.default
        ]
        if given and not self.eval_benchmarks:
            raise ValueError(f"{given[0]} is {getattr(self, given[0])!r}, but eval_benchmarks names none. Remove it.")
        if self.eval_benchmarks and getattr(self.eval_strategy, "value", self.eval_strategy) == "no":  # type: ignore[attr-defined]
            raise ValueError(
                f"eval_benchmarks is {self.eval_benchmarks!r}, but eval_strategy is 'no', so they are never asked. Set "
                "eval_strategy: steps (and eval_steps), or remove it."
            )
        if self.eval_benchmarks_samples > 1 and self.eval_benchmarks_temperature == 0:
            raise ValueError(
                f"eval_benchmarks_samples is {self.eval_benchmarks_samples} with eval_benchmarks_temperature 0: all "
                "samples of a problem would be the same. Set a temperature, such as 0.6."
            )

    def addresses_sampling(self) -> bool:
        """Are rollouts drawn with addressed noise, if they are sampled at all?"""
        return self.addressed_sampling is not False and self._engine_of_its_own() is None

    def _engine_of_its_own(self) -> str | None:
        """The engine that TRL's fields, beside ours in `TrOPDConfig`, set instead of Transformers' `generate`."""
        if getattr(self, "use_vllm", False):
            return "vLLM (use_vllm)"
        if getattr(self, "use_transformers_continuous_batching", False):
            return "continuous batching (use_transformers_continuous_batching)"
        return None
