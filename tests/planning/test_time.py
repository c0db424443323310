"""Work and seconds: by hand, and how they answer to lengths, rows and settings."""

from dataclasses import replace

import pytest

from tropd.planning.time import (
    BANDWIDTH_UTILISATION,
    COMPUTE_UTILISATION,
    SECONDS_PER_LAYER,
    Hardware,
    Rates,
    step_work,
    time_from_hardware,
    time_from_rates,
    update_factor,
)

RATES = Rates(rollout=10.0, student_scoring=100.0, teacher_scoring=50.0, teacher_writing=4.0, update=20.0)


def test_by_hand(setup):
    work = step_work(setup)
    # Scoring 4 rows of 4 + 6 tokens: 2·800 FLOPs a token in the layers and, with 5 tokens of context on average,
    # 4·2·10·5 for attention; 2·100 in the head for each of 6 response tokens. Weights pass once for each 2 rows.
    scoring = 4 * (10 * (2 * 800 + 4 * 2 * 10 * 5) + 6 * 2 * 100)
    assert work["student scoring"].flops == scoring
    assert work["student scoring"].bytes_moved == 2 * 900 * 4
    # Decoding goes on for all rows until the longest response, 8, with 4 + 4 tokens of context on average.
    prefill = 4 * 4 * (2 * 800 + 4 * 2 * 10 * 2)
    decode = 4 * 8 * (2 * 900 + 4 * 2 * 10 * 8)
    assert work["rollout"].flops == prefill + decode
    assert work["rollout"].bytes_moved == 8 * 900 * 4 + 4 * 8 * 8 * (2 * 2 * 5 * 4 * 3)
    # Without checkpointing the layers and the head cost 3 forward passes.
    assert work["update"].flops == pytest.approx(4 * (3 * 10 * (1600 + 400) + 3 * 6 * 200))


def test_fewer_rows_at_once_read_the_weights_again_for_each_part(setup):
    parts = step_work(replace(setup, work=replace(setup.work, rows_at_once=1)))["rollout"]
    whole = step_work(setup)["rollout"]
    assert parts.flops == whole.flops
    assert parts.bytes_moved - whole.bytes_moved == 3 * 8 * 900 * 4
    assert parts.launched_layers == 4 * whole.launched_layers


def test_measured_rates_by_hand(setup):
    step = time_from_rates(setup, RATES)
    assert step.parts == pytest.approx(
        {"rollout": 24 / 10, "student scoring": 24 / 100, "teacher scoring": 24 / 50, "update": 24 / 20}
    )
    assert step.total == pytest.approx(4.32)
    assert step.tokens_per_second == pytest.approx(24 / 4.32)
    assert step.run_seconds(100) == pytest.approx(432)
    assert not step.assumed


def test_an_update_that_was_not_measured_costs_its_share_of_scoring(setup):
    derived = time_from_rates(setup, replace(RATES, update=None))
    assert derived.parts["update"] == pytest.approx(update_factor(setup) * derived.parts["student scoring"])


def test_the_update_costs_three_to_four_forward_passes(setup):
    assert update_factor(setup) == pytest.approx(3)
    assert 3 < update_factor(replace(setup, checkpointing=True)) < 4  # the layers run forward again, the head does not
    assert update_factor(replace(setup, lora=True)) == pytest.approx(2)


def test_teacher_prefixes_are_written_once_for_a_prompt(setup):
    guided = replace(setup, guided=True, teacher_writes=True)
    assert time_from_rates(guided, RATES).parts["teacher prefixes"] == pytest.approx(24 / 2 / 4)
    assert next(iter(step_work(guided))) == "teacher prefixes"
    assert "teacher prefixes" not in step_work(setup)


def test_several_updates_share_a_rollout(setup):
    repeated = replace(setup, scoring_passes=2, work=replace(setup.work, num_iterations=2))
    once, twice = time_from_rates(setup, RATES), time_from_rates(repeated, RATES)
    assert twice.parts["rollout"] == once.parts["rollout"] / 2
    assert twice.parts["teacher scoring"] == once.parts["teacher scoring"] / 2
    assert twice.parts["student scoring"] == once.parts["student scoring"]
    assert twice.parts["update"] == once.parts["update"]


@pytest.mark.parametrize("field", ["prompt_tokens", "response_tokens", "longest_response", "update_rows"])
def test_more_rows_or_tokens_never_cost_less(setup, field):
    more = replace(setup, work=replace(setup.work, **{field: 2 * getattr(setup.work, field)}))
    before, after = step_work(setup), step_work(more)
    assert all(before[name].flops <= after[name].flops for name in before)
    assert sum(stage.flops for stage in before.values()) < sum(stage.flops for stage in after.values())


def test_peak_numbers_by_hand(setup):
    device = Hardware(flops=1e6, bandwidth=1e3, memory=1)
    step = time_from_hardware(setup, device)
    work = step_work(setup)
    assert step.assumed
    # 7200 bytes of weights; float32 arithmetic at half the peak.
    assert step.parts["student scoring"] == pytest.approx(7200 / (1e3 * BANDWIDTH_UTILISATION))
    slow = time_from_hardware(setup, replace(device, bandwidth=1e12))
    assert slow.parts["student scoring"] == pytest.approx(work["student scoring"].flops / (5e5 * COMPUTE_UTILISATION))
    instant = time_from_hardware(setup, Hardware(1e30, 1e30, 1))
    assert instant.parts["rollout"] == pytest.approx(8 * 2 * SECONDS_PER_LAYER)  # decode steps × layers


def test_tokens_are_counted_over_all_processes(setup):
    alone, four = (time_from_rates(replace(setup, num_processes=n), RATES) for n in (1, 4))
    assert four.response_tokens == 4 * alone.response_tokens
    assert four.total == alone.total


def test_autocast_over_wide_weights_costs_their_copies(setup):
    halved = replace(setup, autocast=True, compute_bytes=2)
    assert step_work(halved)["student scoring"].bytes_moved == 2 * step_work(setup)["student scoring"].bytes_moved


def test_vllm_decodes_no_further_than_responses_go_and_the_teacher_still_does(setup):
    guided = replace(setup, guided=True, teacher_writes=True)
    slow, fast = step_work(guided), step_work(replace(guided, vllm="colocate"))
    assert fast["rollout"].bytes_moved < slow["rollout"].bytes_moved
    assert fast["rollout"].launched_layers == 0 < slow["rollout"].launched_layers
    assert fast["teacher prefixes"] == slow["teacher prefixes"]
