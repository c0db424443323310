"""The same step on different numbers of GPUs."""

import pytest

from tropd.planning import HARDWARE, model_shape
from tropd.planning.fleet import plan_fleets
from tropd.planning.known import KNOWN, shape_by_name
from tropd.run.configuration import resolve

FIELDS = {"student": "Qwen3-1.7B", "teacher": "Qwen3-4B", "max_completion_length": "1024", "max_steps": "10"}


def fleets(gpus):
    fields = [word for name, value in FIELDS.items() for word in (f"--{name}", value)]
    configuration = resolve(None, fields, output_dir="out", data="prompts.jsonl")
    return plan_fleets(
        lambda **changes: configuration.changed(use_cpu=True, **changes).training_arguments(),
        shape_by_name("Qwen3-1.7B"),
        shape_by_name("Qwen3-4B"),
        HARDWARE["h100"],
        gpus=gpus,
        sequences_per_step=256,
        micro_rows=4,
        num_generations=4,
        prompt_tokens=100,
        teacher_writes=False,
    )


def test_every_number_of_gpus_takes_the_same_step():
    for fleet in fleets([1, 2, 8, 64]):
        assert fleet.gpus * fleet.micro_rows * fleet.accumulation == 256
        setup = fleet.plan.setup
        assert setup.work.update_rows * setup.work.response_tokens * setup.num_processes == 256 * 1024


def test_sharding_divides_what_is_kept_and_more_gpus_are_faster():
    one, eight, eight_sharded = fleets([1, 8])
    assert eight_sharded.plan.memory.total < eight.plan.memory.total
    assert eight.step_seconds < one.step_seconds
    assert eight.gpu_hours == pytest.approx(8 * eight.run_hours)


def test_a_step_that_cannot_be_split_is_refused():
    with pytest.raises(
        ValueError, match=r"gpus has 3, over which 256 sequences a step \(4 of each prompt\) cannot be split evenly"
    ):
        fleets([3])


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("DeepSeek-R1-Distill-Qwen-1.5B", 1.78),
        ("Skywork-OR1-7B", 7.62),
        ("Qwen3-1.7B", 1.72),
        ("Qwen3-4B", 4.02),
        ("Llama-3.1-8B", 8.03),
        ("meta-llama/Llama-3.1-70B", 70.55),
        ("models/Qwen3-SFT-1.7B", 1.72),
    ],
)
def test_a_known_model_has_its_published_size(name, billions):
    shape = shape_by_name(name)
    assert shape.parameters / 1e9 == pytest.approx(billions, abs=0.005)
    assert shape.stored_bytes == 2


def test_the_known_tied_models_are_tied():
    assert {name for name in KNOWN if shape_by_name(name).tied} == {"Qwen3-1.7B", "Qwen3-4B"}


def test_a_folder_is_read_from_its_files():
    from shipped import student_path

    assert shape_by_name(str(student_path())) == model_shape(str(student_path()))
