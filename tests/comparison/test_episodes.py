"""A setting with an environment: recorded episodes, guidance by turns, and what its cells are measured by."""

import doctest
import json

import pytest
from transformers import AutoTokenizer

from tropd.comparison.cell import episode_ruler, token_budget
from tropd.comparison.cell.prepare import prepare, read_setting
from tropd.comparison.cell.run_cell import run_cell
from tropd.comparison.cell.texts import load_model
from tropd.comparison.cell.token_budget import tail_of_turns
from tropd.comparison.cells import Cell
from tropd.comparison.plan import model_folder
from tropd.comparison.plan_file import read_plan
from tropd.comparison.report.results import metrics_of
from tropd.evaluation.episodes import play
from tropd.evaluation.exact import exact_divergence
from tropd.proving_ground.storeroom import Storeroom, orders

SETTING = {"environment": "storeroom", "student": "storeroom-student", "teacher": "storeroom-teacher"}
PLAN = {
    "settings": {"store": SETTING},
    "methods": {
        "opd": None,
        "turns": {"method": "tropd", "guidance_unit": "turns", "guidance_length": "share"},
        "by trust": {
            "method": "tropd",
            "guidance_schedule": "constant",
            "guidance_pattern": "trust",
            "turn_trust": "weight",
            "reduction": "per_turn",
        },
    },
    "seeds": [1],
    "student_tokens": 500,
    "prompts": {"train": 2, "validation": 1, "test": 2},
    "max_length": 120,
    "learning_rates": [1.0e-3],
    "prompts_per_step": 2,
    "rollouts_per_prompt": 2,
    "points": 1,
    "point_prompts": 1,
    "divergence_prompts": 1,
    "select_on": "accuracy",
    "trainer": {"max_tool_calling_iterations": 8},
}


@pytest.mark.parametrize("module", [episode_ruler, token_budget])
def test_the_examples_run(module):
    assert doctest.testmod(module).failed == 0


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Its folder, prepared."""
    folder = tmp_path_factory.mktemp("store") / "setting"
    prepare(read_plan(PLAN), "store", folder)
    return folder


def test_the_teachers_episodes_are_recorded_with_what_the_store_is_made_of(store):
    texts, before = read_setting(store)
    assert [text.part for text in texts["test"]] == [f"level {n}" for n in (1, 2, 3, 4)] * 2
    for text in texts["train"]:
        room = Storeroom()
        room.reset(**text.columns)
        replies = [
            str(getattr(room, call["function"]["name"])(**call["function"]["arguments"]))
            for message in text.episode
            for call in message.get("tool_calls") or []
        ]
        told = [message["content"] for message in text.episode if message["role"] == "tool"]
        assert told and replies[: len(told)] == told, "there may be no room for the last"
        assert sum(text.turn_lengths) == text.external.count(False) < len(text.response_ids)
        assert text.as_row()["teacher_response"] == text.episode and text.as_row()["need"] == room.need
    assert before["teacher"]["student_states/reverse_kl"] == 0 < before["student"]["student_states/reverse_kl"]
    assert before["teacher"]["accuracy"] >= before["student"]["accuracy"]


def test_a_cell_is_measured_greedy_and_sampled_by_level_and_turn(store, tmp_path):
    result = run_cell(read_plan(PLAN), Cell("store", "turns", 1e-3, 1, "report"), store, tmp_path / "cell")
    assert result["failure"] is None and result["prefix_tokens"] > 0
    assert result["student_tokens"] == pytest.approx(500, abs=150), "half a step is the most that may be missing"
    scores = result["scores"]
    assert scores.keys() <= set(metrics_of(read_plan(PLAN).settings["store"])) | {
        name for name in scores if "/level" in name
    }
    for name, field in (("accuracy", "right"), ("sampled", "sampled")):
        assert all(len(verdicts) == 2 for verdicts in result[field].values())
        share = sum(verdicts.count("1") for verdicts in result[field].values()) / 8
        assert scores[name] == pytest.approx(share)
    assert scores["calls"] > 0 and 0 <= scores["failures"] <= scores["calls"] and 0 < scores["trust_1"] <= 1


def test_a_method_of_a_plan_may_weigh_turns_and_take_them_over(store, tmp_path):
    result = run_cell(read_plan(PLAN), Cell("store", "by trust", 1e-3, 1, "report"), store, tmp_path / "cell")
    assert result["failure"] is None and result["prefix_tokens"] > 0
    assert result["student_tokens"] == pytest.approx(500, abs=150)
    logged = [json.loads(line) for line in (tmp_path / "cell" / "metrics.jsonl").read_text().splitlines()]
    assert any(entry.get("guidance/turns", 0) > 0 for entry in logged)
    assert any(entry.get("agent/turn_weight", 1) < 1 for entry in logged)


def test_what_tools_said_is_no_state_of_a_divergence():
    """The mean over what a model wrote is that of its turns, each read behind everything before it."""
    order = orders("test", 1, seed=3)[0]
    student, teacher = (load_model(model_folder(name)).eval() for name in ("storeroom-student", "storeroom-teacher"))
    tokenizer = AutoTokenizer.from_pretrained(model_folder("storeroom-student"))
    (episode,) = play(
        teacher, tokenizer, [order.row()], environment=Storeroom, eos_ids=[2], max_length=200, temperature=0.0
    )
    found = exact_divergence(student, teacher, [episode.prompt_ids], [episode.response], external=[episode.external])
    sums, count, context, turn = 0.0, 0, list(episode.prompt_ids), []
    for token, told in [*zip(episode.response, episode.external, strict=True), (None, True)]:
        if told and turn:
            of_turn = exact_divergence(student, teacher, [context], [turn])
            sums, count = sums + of_turn.reverse_kl * of_turn.num_states, count + of_turn.num_states
            context, turn = context + turn, []
        if told:
            context.append(token)
        else:
            turn.append(token)
    assert found.num_states == count == episode.external.count(False)
    assert found.reverse_kl == pytest.approx(sums / count, rel=1e-4)


def test_the_forecast_of_turns():
    """K = 3 turns of 10, 20 and 3 tokens, of which the last is always the student's."""
    turns = [[10, 20, 3]]
    assert [tail_of_turns(turns, alpha, None, False) for alpha in (0, 0.5, 0.7, 1)] == [33, 23, 3, 3]
    assert [tail_of_turns(turns, alpha, 100, False) for alpha in (0, 0.1, 0.11, 1)] == [33, 23, 3, 3]
    assert tail_of_turns(turns, 0.5, None, True) == 18


def test_an_environment_that_is_not_there_is_refused():
    wrong = PLAN | {"settings": {"store": SETTING | {"environment": "storerom"}}}
    with pytest.raises(ValueError, match=r"settings\.store\.environment is 'storerom'.*storeroom"):
        read_plan(wrong)
    with pytest.raises(ValueError, match="domains and environment; give one"):
        read_plan(PLAN | {"settings": {"store": SETTING | {"domains": ["code"]}}})
    with pytest.raises(ValueError, match=r"count is 400; the test split of the storeroom at levels 1 gave only \d+"):
        orders("test", 400, seed=1, levels=[1])
