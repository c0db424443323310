"""An evaluation's numbers are of its tokens and rollouts, not of the batches that it happened to be cut into."""

import pytest

from training import tiny

ROWS = [{"prompt": prompt} for prompt in (*tiny.PROMPTS, "kk=", "l+m=")]
CLOCKS = ("runtime", "per_second", "speed/", "step_time")


def evaluated(folder, batch_size, method, **settings):
    trainer = tiny.build(
        folder,
        tiny.llama(seed=1),
        tiny.llama(seed=2),
        method,
        per_device_eval_batch_size=batch_size,
        num_generations_eval=2,
        trainer_options={"eval_dataset": tiny.same_dataset(ROWS)},
        **settings,
    )
    found = trainer.evaluate()
    logged = [entry for entry in trainer.state.log_history if "eval_loss" in entry][-1]
    return {name: value for name, value in (found | logged).items() if not any(clock in name for clock in CLOCKS)}


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("opd", {}),
        ("fkl_outlier", {}),
        ("gkd", {}),
        ("tropd", {"reduction": "per_region"}),
        ("reopold_2stage", {}),
        ("entropy_opd", {}),
    ],
)
def test_no_metric_of_an_evaluation_depends_on_the_batch_size(method, settings, tmp_path):
    whole = evaluated(tmp_path / "whole", 12, method, **settings)
    assert {"eval_loss", "eval_trust/fraction", "eval_log_ratio/p01", "eval_response/length"} <= whole.keys()
    for size in (2, 4):
        cut = evaluated(tmp_path / str(size), size, method, **settings)
        assert cut.keys() == whole.keys()
        for name, value in whole.items():
            assert cut[name] == pytest.approx(value, rel=2e-4, abs=2e-5), name


def test_the_loss_of_an_evaluation_is_the_sum_of_its_parts(tmp_path):
    found = evaluated(tmp_path, 4, "fkl_outlier")
    parts = [found[f"eval_loss/{name}"] for name in ("trust", "outlier", "guidance", "reward")]
    assert found["eval_loss"] == pytest.approx(sum(parts))


def with_sets(folder, sets):
    return tiny.build(folder, tiny.llama(seed=1), tiny.llama(seed=2), "opd", trainer_options={"eval_dataset": sets})


def test_each_of_several_evaluation_sets_has_its_own_metrics(tmp_path):
    easy, hard = tiny.same_dataset(ROWS[:3]), tiny.same_dataset(ROWS[3:])
    found = with_sets(tmp_path / "both", {"easy": easy, "hard": hard}).evaluate()
    assert not any(name.startswith("eval_trust") for name in found), "whose would it be?"
    alone = with_sets(tmp_path / "easy", {"easy": easy}).evaluate()
    first = {name: value for name, value in alone.items() if not any(clock in name for clock in CLOCKS)}
    assert {"eval_easy_loss", "eval_easy_trust/fraction", "eval_easy_log_ratio/p01"} <= first.keys()
    assert first == {name: found[name] for name in first} and "eval_hard_trust/fraction" in found


def test_predictions_do_not_reach_the_next_evaluation(tmp_path):
    trainer = with_sets(tmp_path, tiny.same_dataset(ROWS))
    before = trainer.evaluate()["eval_trust/fraction"]
    predicted = trainer.predict(tiny.same_dataset(ROWS[:2])).metrics
    assert predicted["test_trust/fraction"] != before and "test_loss" in predicted
    assert trainer.evaluate()["eval_trust/fraction"] == before
