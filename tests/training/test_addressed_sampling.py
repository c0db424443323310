"""Rollouts by address through the trainer: splits, ranks, padding, prefixes, tools and adapters.

Run as a script, alone or through `torch.distributed.run`, this file is the worker of its own test of two ranks.
"""

import copy
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from accelerate.utils import gather_object
from peft import LoraConfig
from transformers import GenerationMixin, TrainerCallback

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torchrun import written_by
from training import tiny, trl_contract
from training.tiny import build, clone, ids
from tropd import TrOPDConfig
from tropd.rollout.turns import Turns
from tropd.training.records import Prefix
from tropd.training.rollout_stage import _Batch

ROWS = [{"prompt": prompt, "teacher_response": "xyz+"} for prompt in tiny.PROMPTS]
PROMPTS = [{"prompt": f"{first}+{second}="} for first in "abcd" for second in "ef"]
WRITTEN = {"guidance_schedule": "constant", "guidance_length": "share", "guidance_min_tail": 4}
"""Prefixes of several tokens, of responses that the teacher writes itself."""


def made(tmp_path, method="opd", **options):
    trainer = build(tmp_path, tiny.llama(seed=1), tiny.llama(seed=2), method, **options)
    trainer.state.max_steps = 1  # the schedules' end, for rollouts outside of training
    return trainer


def recorded(trainer, of=lambda rollout: rollout.response) -> list[dict[int, list[int]]]:
    """What every later rollout of this rank writes: row to response, one record for each batch."""
    seen, roll_out = [], trainer.rollout_stage.roll_out

    def and_note(*args):
        rollouts = roll_out(*args)
        seen.append({rollout.row: of(rollout) for rollout in rollouts})
        return rollouts

    trainer.rollout_stage.roll_out = and_note
    return seen


def responses(trainer, rows=None, step=0, training=True) -> list[list[int]]:
    """One batch of rollouts outside of training."""
    trainer.state.global_step = step
    trainer.model.train(training)
    given = rows or [row for row in ROWS[:2] for _ in range(4)]
    return [rollout.response for rollout in tiny.roll_out(trainer, [dict(row) for row in given])]


class Scrambles(TrainerCallback):
    """Another state of PyTorch's generator before each step, in every run."""

    def on_step_begin(self, args, state, control, **kwargs):
        torch.seed()


# ---------------------------------------------------------------------- splits


@pytest.mark.parametrize(("size", "accumulated"), [(8, 1), (4, 2), (2, 4)])
def test_micro_batches_write_what_one_batch_writes(tmp_path, size, accumulated):
    settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated, "max_steps": 2}
    trainer = made(tmp_path, rows=ROWS, callbacks=[Scrambles()], **settings)
    seen = recorded(trainer)
    trainer.train()
    assert [sorted(batch) for batch in seen] == [list(range(8))] * 2
    assert seen == reference_of_two_steps(tmp_path / "reference")


def reference_of_two_steps(tmp_path):
    trainer = made(tmp_path, rows=ROWS, callbacks=[Scrambles()], max_steps=2)
    seen = recorded(trainer)
    trainer.train()
    return seen


def prefix(rollout):
    return rollout.response[: rollout.prefix_length]


def test_micro_batches_begin_with_the_prefixes_of_one_batch(tmp_path):
    """The teacher writes them, while PyTorch's generator is in another state in every run."""
    seen = []
    for size, accumulated in ((8, 1), (4, 2)):
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated, "max_steps": 2}
        options = {"rows": PROMPTS[:4], "callbacks": [Scrambles()]}
        trainer = made(tmp_path / str(size), "tropd", **options, **settings, **WRITTEN)
        seen.append(recorded(trainer, prefix))
        trainer.train()
    assert seen[0] == seen[1]
    for batch in seen[0]:
        assert batch[0] == batch[3] and batch[4] == batch[7], "the rollouts of a prompt share theirs"
    assert len({tuple(batch[row]) for batch in seen[0] for row in (0, 4)}) == 4, "steps and prompts differ"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Rollouts of one rank of eight and of two ranks of four: {"tropd": [steps], "eval": [batches]}."""
    root = tmp_path_factory.mktemp("addressed")
    return seen_by(root / "one", 1), seen_by(root / "two", 2)


def seen_by(out: Path, count: int) -> dict:
    return json.loads((written_by(count, Path(__file__), out) / "seen.json").read_text())


@pytest.mark.parametrize("part", ["guided", "written", "unguided", "evaluation"])
def test_two_ranks_of_four_write_what_one_of_eight_writes(ranks, part):
    one, two = (seen[part] for seen in ranks)
    assert [len(batch) for batch in one] == [8, 8]
    assert len({tuple(response) for batch in one for response in batch.values()}) > 8
    assert two == one


def worker(out: Path) -> None:
    """Two training steps with prefixes of the data, of the teacher and without, and one evaluation; rank 0 writes."""
    torch.set_num_threads(1)
    share = 8 // int(os.environ.get("WORLD_SIZE", "1"))
    seen = {}
    for name, method, rows in (("guided", "tropd", ROWS), ("written", "tropd", PROMPTS[:4]), ("unguided", "opd", ROWS)):
        torch.seed()
        trainer = made(out / name, method, rows=rows, per_device_train_batch_size=share, max_steps=2)
        batches = recorded(trainer)
        trainer.train()
        seen[name] = joined(batches)
    trainer = made(out / "evaluation", rows=ROWS, per_device_train_batch_size=share, per_device_eval_batch_size=share)
    batches = recorded(trainer)
    trainer.evaluate(tiny.same_dataset(ROWS))
    seen["evaluation"] = joined(batches)
    if trainer.accelerator.is_main_process:
        (out / "seen.json").write_text(json.dumps(seen))


def joined(batches):
    """All ranks' rows of each batch, in order."""
    everyone = gather_object([batches])
    return [
        {row: part[row] for rank in everyone for part in [rank[number]] for row in part}
        for number in range(len(batches))
    ]


# ---------------------------------------------------------------------- addresses


@pytest.mark.parametrize("method", ["opd", "tropd"])
def test_a_rollout_depends_on_no_generator_and_moves_none(tmp_path, method):
    """With prefixes that the teacher writes, and without."""
    trainer = made(tmp_path, method, **(WRITTEN if method == "tropd" else {}))
    rows = [row for row in PROMPTS[:2] for _ in range(4)]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = responses(trainer, rows)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert responses(trainer, rows) == first
    assert len({tuple(row) for row in first}) == 8, "rollouts of a prompt differ"
    assert "generate" not in vars(trainer.model) and "generate" not in vars(trainer.teacher.model)
    assert trainer.rollout_stage._batch is None


@pytest.mark.parametrize("part", ["rollouts", "prefixes"])
def test_without_addresses_the_generator_of_the_rank_decides(tmp_path, part):
    trainer = made(tmp_path, "tropd", addressed_sampling=False, **WRITTEN)
    rows = [dict(row) for row in PROMPTS[:2] for _ in range(4)]
    written = {
        "rollouts": lambda: responses(trainer, [{**row, "teacher_response": "xy"} for row in rows]),
        "prefixes": lambda: trainer.rollout_stage.find_prefixes(rows, 0, 1.0, trainer.method),
    }[part]
    torch.manual_seed(1)
    first = written()
    assert written() != first
    torch.manual_seed(1)
    assert written() == first


def test_seeds_steps_and_evaluation_write_something_else(tmp_path):
    trainer = made(tmp_path / "one")
    other = made(tmp_path / "other", seed=8)
    everything = [
        responses(trainer),
        responses(trainer, step=1),
        responses(trainer, training=False),
        responses(other),
    ]
    assert len({json.dumps(rows) for rows in everything}) == 4


def test_prompts_of_another_length_in_the_batch_change_nothing(tmp_path):
    trainer = made(tmp_path)
    rows = [{"prompt": "ab="}, {"prompt": "g="}] * 4
    longer = [*rows[:7], {"prompt": "hi+jk+lm+no+pq+rs="}]
    assert responses(trainer, rows)[:7] == responses(trainer, longer)[:7]


def test_a_token_does_not_depend_on_how_the_ones_before_it_came_about(tmp_path, monkeypatch):
    """Prefixes of several lengths that say what the student would have said itself."""
    trainer = made(tmp_path)
    alone = responses(trainer)
    lengths = [0, 1, 2, 3, 5, 7, 4, 0]
    starts = [Prefix(row[:length]) for row, length in zip(alone, lengths, strict=True)]
    assert [len(start.ids) for start in starts] == lengths
    rows = [dict(row) for row in ROWS[:2] for _ in range(4)]
    assert [rollout.response for rollout in trainer.rollout_stage.roll_out(rows, 0, starts)] == alone


def test_an_evaluation_in_the_middle_leaves_training_as_it_was(tmp_path):
    settings = {"rows": ROWS, "max_steps": 2}
    evaluated = made(
        tmp_path,
        **settings,
        eval_strategy="steps",
        eval_steps=1,
        trainer_options={
            "processing_class": tiny.tokenizer(),
            "eval_dataset": tiny.same_dataset(ROWS[2:]),
        },
    )
    seen = recorded(evaluated)
    evaluated.train()
    plain = reference_of_two_steps(tmp_path / "plain")
    assert len(seen) == 4, "two steps and an evaluation after each"
    assert [seen[0], seen[2]] == plain
    assert seen[1] not in plain


# ---------------------------------------------------------------------- what else there is


def test_truncated_sampling_is_honoured(tmp_path):
    """With top-k at 1 and at 2: the likeliest tokens only, by plain Transformers."""
    for k in (1, 2):
        trainer = made(tmp_path / str(k), top_k=k)
        student = clone(trainer.model)
        for row, response in zip([row for row in ROWS[:2] for _ in range(4)], responses(trainer), strict=True):
            best = tiny.plain_logps(student, ids(row["prompt"]), response).topk(k).indices
            assert (best == torch.tensor(response)[:, None]).any(-1).all()


def test_greedy_decoding_is_left_alone(tmp_path):
    trainer = made(tmp_path, generation_kwargs={"do_sample": False, "temperature": None, "top_p": None, "top_k": None})
    rows = responses(trainer)
    assert rows[:4] == [rows[0]] * 4 and rows[4:] == [rows[4]] * 4


def test_an_adapter_samples_by_address(tmp_path):
    options = {"processing_class": tiny.tokenizer(), "peft_config": LoraConfig(r=2, target_modules=["q_proj"])}
    trainer = made(tmp_path / "adapter", trainer_options=options)
    before = torch.get_rng_state()
    assert responses(trainer) == responses(made(tmp_path / "plain")), "a fresh adapter changes nothing"
    torch.manual_seed(3)
    before = torch.get_rng_state()
    responses(trainer)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("engine", ["use_vllm", "use_transformers_continuous_batching"])
def test_an_engine_with_generators_of_its_own_is_told_apart(tmp_path, engine):
    settings = {"use_cpu": True, "bf16": False, engine: True}
    with pytest.raises(ValueError, match=f"addressed_sampling is True, but .*{engine}.*Remove addressed_sampling"):
        TrOPDConfig(str(tmp_path), addressed_sampling=True, **settings)
    assert not TrOPDConfig(str(tmp_path), **settings).addresses_sampling()
    assert TrOPDConfig(str(tmp_path), use_cpu=True, bf16=False).addresses_sampling()


# ---------------------------------------------------------------------- tool loops


def lookup(word: str) -> str:
    """Look a word up.

    Args:
        word: what is looked up.
    """
    return f"{word}{word}"


@pytest.fixture
def parsed(monkeypatch):
    """TRL's real tool loop, with a parser under which every response with a token below 25 calls the tool."""
    calls = []

    def parse_response(tokenizer, token_ids, **_):
        message = {"role": "assistant", "content": tokenizer.decode(token_ids)}
        calls.append(list(token_ids))
        if min(token_ids) < 25 and len(token_ids) > 1:
            message["tool_calls"] = [{"type": "function", "function": {"name": "lookup", "arguments": {"word": "x"}}}]
        return message

    monkeypatch.setattr("trl.trainer.grpo_trainer.parse_response", parse_response)
    return calls


def with_tools(trainer):
    """As TRL's constructor leaves a trainer with a tool, for a tokenizer whose responses can be parsed."""
    trainer.tools = trainer._standalone_tools = [lookup]
    trainer.environments = None
    trainer.max_tool_calling_iterations = 2
    trainer.processing_class = trainer._tokenizer = copy.deepcopy(trainer._tokenizer)
    trainer._tokenizer.response_schema = {"type": "object"}
    trainer.generation_config.max_new_tokens = 4
    return trainer


@pytest.mark.parametrize("guided", [False, True])
def test_rows_that_come_back_from_a_tool_keep_their_address(tmp_path, monkeypatch, parsed, guided):
    """Eight rows at once, or four and four: the loop asks again for a subset, which is another one in each half."""
    trainer = with_tools(made(tmp_path, max_completion_length=40))
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in ("ab", "cde") for _ in range(4)]
    starts = [Prefix(ids("xyz"[: 1 + row % 3]) if guided else []) for row in range(8)]

    def written(first, last):
        trainer.generation_config.max_new_tokens = 4
        return trainer.rollout_stage.roll_out(copy.deepcopy(rows[first:last]), first, starts[first:last])

    trainer.model.train()
    whole, turns = written(0, 8), len(parsed)
    again = [rollout for rollout in whole if rollout.external and any(rollout.external)]
    assert turns > 8 and 2 <= len(again) < 8, "some rows come back and some do not"
    halves = [*written(0, 4), *written(4, 8)]
    assert [rollout.response for rollout in halves] == [rollout.response for rollout in whole]
    assert [rollout.row for rollout in halves] == list(range(8))


def test_a_context_of_no_row_falls_back_in_words(tmp_path, caplog):
    trainer = made(tmp_path)
    trainer.model.train()
    trainer.rollout_stage._batch = _Batch([], 0, None, Turns(first_row=0), None)
    trainer._generate_single_turn([ids("ab="), ids("g=")], None, {}, 1)
    trainer._generate_single_turn([ids("hi+j")], None, {}, 1)
    assert "belongs to no response of its batch" in caplog.text
    assert "generate" not in vars(trainer.model)


# ---------------------------------------------------------------------- the contract with Transformers


def test_the_installed_transformers_has_the_hooks():
    trl_contract.check_sampler()


@pytest.mark.parametrize("name", trl_contract.SAMPLER)
def test_a_moved_hook_is_reported_by_name(name):
    for moved in (lambda self, something_else: None, None):
        hooks = {name: moved} if moved else {}
        bases = (GenerationMixin,) if moved else ()
        with pytest.raises(RuntimeError, match=r"s' Moved\.\w+ no longer takes .*transformers>=5\.17,<5\.25"):
            trl_contract.check_sampler(type("Moved", bases, hooks))


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        os._exit(0)  # gloo's threads abort one interpreter's end in three, after everything is written
