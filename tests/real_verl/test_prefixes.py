"""Teacher prefixes in verl: the exported file in its data set, and the agent loop with a server that recites."""

import asyncio
import importlib.util
from types import SimpleNamespace

import pytest

if importlib.util.find_spec("verl") is None:
    pytest.skip("verl is not installed: make test-verl", allow_module_level=True)

import torch
import verl  # noqa: F401  arms tropd
from omegaconf import OmegaConf
from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import DictConfigWrap, _agent_loop_registry
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn
from verl.workers.rollout.replica import TokenOutput

from shipped import student_path
from tropd.cli.export import write_parquet
from tropd.objective import get_method
from tropd.verl.prefix_loop import PrefixAgentLoop
from tropd.verl.rows import Order, Prompt, training_rows

pytestmark = pytest.mark.slow

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
LENGTH = 6


@pytest.fixture(scope="module")
def tokenizer():
    loaded = AutoTokenizer.from_pretrained(student_path())
    loaded.chat_template = TEMPLATE
    return loaded


class Server:
    """Writes the same tokens whatever it is asked, as many as it may."""

    def __init__(self, writes: list[int]):
        self.writes = writes

    async def generate(self, *, prompt_ids, sampling_params, **rest):
        self.prompt_ids, self.sampling_params = prompt_ids, sampling_params
        room = sampling_params.get("max_tokens", LENGTH)
        kept = self.writes[:room]
        return TokenOutput(token_ids=kept, log_probs=[-0.5] * len(kept), stop_reason="completed", extra_fields={})


def answer(tokenizer, server: Server, **row):
    config = OmegaConf.create(
        {"actor_rollout_ref": {"rollout": {"prompt_length": 64, "response_length": LENGTH}}, "data": {}}
    )

    async def run():
        loop = PrefixAgentLoop(
            trainer_config=DictConfigWrap(config),
            server_manager=server,
            tokenizer=tokenizer,
            processor=None,
            dataset_cls=RLHFDataset,
            data_config=DictConfigWrap(config.data),
        )
        return await loop.run({"temperature": 1.0}, raw_prompt=[{"role": "user", "content": "12+3"}], **row)

    return asyncio.run(run())


def test_the_agent_loop_has_a_name_in_verl():
    assert _agent_loop_registry["tropd_prefix"] == {"_target_": "tropd.verl.prefix_loop.PrefixAgentLoop"}


def test_the_student_goes_on_behind_the_prefix_which_is_masked(tokenizer):
    server = Server([21, 22, 23, 24, 25, 26, 27])
    output = answer(tokenizer, server, extra_info={"tropd_prefix_ids": [8, 9], "tropd_step": 1}, global_steps=1)
    prompt = tokenizer("12+3=", add_special_tokens=False)["input_ids"]
    assert server.prompt_ids == [*prompt, 8, 9] and server.sampling_params["max_tokens"] == LENGTH - 2
    assert output.prompt_ids == prompt
    assert output.response_ids == [8, 9, 21, 22, 23, 24]
    assert output.response_mask == [0, 0, 1, 1, 1, 1]
    assert output.response_logprobs == [0.0, 0.0, -0.5, -0.5, -0.5, -0.5]


@pytest.mark.parametrize("row", [{}, {"extra_info": {"tropd_prefix_ids": []}}], ids=["no column", "no prefix"])
def test_without_a_prefix_it_is_verls_own_loop(tokenizer, row):
    server = Server([21, 22])
    output = answer(tokenizer, server, **row)
    assert (output.response_ids, output.response_mask) == ([21, 22], [1, 1])
    assert "max_tokens" not in server.sampling_params


def test_a_prefix_that_leaves_no_room_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"a prefix has 6 tokens, and data\.max_response_length is 6"):
        answer(tokenizer, Server([21]), extra_info={"tropd_prefix_ids": [8] * LENGTH})


def test_rows_in_another_order_are_said_once(tokenizer, capfd, monkeypatch):
    monkeypatch.setattr(PrefixAgentLoop, "warned", False)
    for _ in range(2):
        answer(tokenizer, Server([21]), extra_info={"tropd_prefix_ids": [8], "tropd_step": 5}, global_steps=7)
    assert capfd.readouterr().err.count("written for step 5 is used in step 7") == 1


def test_verls_data_set_reads_the_exported_rows_in_their_order(tokenizer, tmp_path):
    prompts = [
        Prompt([{"role": "user", "content": f"{n}+1"}], response_ids=list(range(10, 16)), source="math")
        for n in range(4)
    ]
    order = Order(batch=2, steps=4, max_response_length=LENGTH)
    rows = list(training_rows(prompts, get_method("tropd"), order))
    write_parquet(rows, tmp_path / "train.parquet")
    config = OmegaConf.create(
        {"filter_overlong_prompts": False, "cache_dir": str(tmp_path / "cache"), "max_prompt_length": 64}
    )
    data = RLHFDataset(str(tmp_path / "train.parquet"), tokenizer, config)
    batches = [collate_fn([data[2 * step], data[2 * step + 1]]) for step in range(4)]
    assert [[extra["tropd_step"] for extra in batch["extra_info"]] for batch in batches] == [
        [n, n] for n in (1, 2, 3, 4)
    ]
    lengths = [[len(extra["tropd_prefix_ids"]) for extra in batch["extra_info"]] for batch in batches]
    assert lengths == [[5, 5], [5, 5], [3, 3], [0, 0]]  # ⌊α·6⌋ of 6, and one token left to the student
    assert [extra["index"] for batch in batches for extra in batch["extra_info"]] == list(order.numbers(4))
    assert batches[0]["raw_prompt"][0] == rows[0]["prompt"] and batches[0]["data_source"][0] == "math"


def test_a_row_travels_through_verls_tensordict(tokenizer):
    """The trainer V1 carries the columns of a prompt through a TensorDict."""
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    rows = [{"extra_info": {"tropd_prefix_ids": ids}, "prompts": torch.tensor([1])} for ids in ([1, 2], [])]
    found = list_of_dict_to_tensordict(rows)
    assert [found[n]["extra_info"]["tropd_prefix_ids"] for n in range(2)] == [[1, 2], []]


def test_rewards_of_nothing_are_found_by_verl():
    from verl.utils.import_utils import load_extern_object

    assert load_extern_object("pkg://tropd.verl.reward", "no_reward")("tropd", "a", "b", SimpleNamespace()) == 0.0
