"""What is kept is what was trained: ruined weights, missing rewards, a second run in the folder."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import TrainerCallback

from training import tiny
from tropd.training.checkpointing import directory_lock
from tropd.training.checkpointing.checkpoints import checkpoints_in, fault_of
from tropd.training.checkpointing.directory_lock import only_run_in
from tropd.training.checkpointing.interruption import Interrupted, Signals
from tropd.training.guards.errors import NotFinite


def build(folder, student=None, **settings):
    student = student or tiny.llama(seed=1)
    return tiny.build(folder, student, tiny.llama(seed=2), settings.pop("method", "opd"), **settings)


class StopAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step >= self.step


class During(TrainerCallback):
    """Does something in the middle of step 2."""

    def __init__(self, act):
        self.act = act

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.act()


@pytest.mark.parametrize("rate", [1e39, 1e30])
@pytest.mark.parametrize("steps", [1, 3])
def test_ruined_weights_are_never_saved_nor_called_untouched(rate, steps, tmp_path):
    trainer = build(tmp_path, learning_rate=rate, max_steps=steps, save_strategy="steps", save_steps=1)
    with pytest.raises(NotFinite, match=r"weights are not finite.*after step 1.*has no checkpoint yet"):
        trainer.train()
    assert checkpoints_in(tmp_path) == [] and not (tmp_path / "model.safetensors").exists()


def test_the_last_step_is_looked_at_without_checkpoints_too(tmp_path):
    trainer = build(tmp_path, learning_rate=1e39, max_steps=1, save_final_model=True)
    with pytest.raises(NotFinite, match="it is not saved"):
        trainer.train()
    assert not (tmp_path / "model.safetensors").exists()


def test_a_checkpoint_before_the_ruin_is_there_and_whole(tmp_path):
    trainer = build(tmp_path, learning_rate=1e-3, max_steps=3, save_strategy="steps", save_steps=1)
    step = trainer.training_step

    def ruin(model, *args, **kwargs):
        if trainer.state.global_step == 1:
            with torch.no_grad():
                next(model.parameters()).fill_(torch.inf)
        return step(model, *args, **kwargs)

    trainer.training_step = ruin
    with pytest.raises(NotFinite, match="checkpoint-1, is untouched"):
        trainer.train()
    (checkpoint,) = checkpoints_in(tmp_path)
    assert fault_of(checkpoint) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_buffer_that_no_forward_reads_is_looked_at_too_unless_it_always_was_so(value, tmp_path):
    student = tiny.llama(seed=1)
    student.model.register_buffer("running", torch.zeros(3))
    student.model.register_buffer("mask", torch.full((3,), -torch.inf))
    ruin = During(lambda: student.model.running.fill_(value))
    saving = {"save_strategy": "steps", "save_steps": 1}
    trainer = build(tmp_path, student, max_steps=3, callbacks=[ruin], **saving)
    with pytest.raises(NotFinite, match=r"after step 2, so it is not saved; the last checkpoint, .*checkpoint-1, is"):
        trainer.train()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_rewards_that_are_no_number_are_counted_and_named_and_end_nothing(value, tmp_path, caplog):
    def odd(completions, **_):
        return [value if i % 2 else 1.0 * i for i in range(len(completions))]

    with caplog.at_level(logging.WARNING):
        trainer = build(tmp_path, trainer_options={"reward_funcs": odd}, reward_mixing_weight=0.5, max_steps=2)
        trainer.train()
    shares = [
        entry["rewards/nonfinite_share"] for entry in trainer.state.log_history if "rewards/nonfinite_share" in entry
    ]
    assert shares == [0.5, 0.5]
    named = [r.getMessage() for r in caplog.records if "gave no finite number" in r.getMessage()]
    assert len(named) == 1 and "the reward function odd" in named[0] and "4 of 8 rollouts in step 1" in named[0]
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert all(entry["loss"] == entry["loss"] for entry in trainer.state.log_history if "loss" in entry)


def _hold(folder, held, done):
    with only_run_in(folder):
        held.set()
        done.wait(60)


def test_a_second_run_in_a_folder_is_refused_and_a_kill_leaves_no_lock(tmp_path):
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, held, done))
    other.start()
    assert held.wait(60)
    with pytest.raises(ValueError, match=rf"where another process is training \(process {other.pid} on "):
        build(tmp_path, max_steps=1).train()
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    build(tmp_path, max_steps=1).train()


def test_a_run_may_ask_for_its_own_folder_again(tmp_path):
    with only_run_in(tmp_path), only_run_in(str(tmp_path)):
        assert directory_lock._held
    assert not directory_lock._held


def test_a_file_system_without_locks_is_said_and_keeps_nobody_out(tmp_path, monkeypatch, caplog):
    def none(*_):
        raise OSError(directory_lock.UNSUPPORTED[0], "no locks available")

    monkeypatch.setattr(directory_lock.fcntl, "flock", none)
    with caplog.at_level(logging.WARNING), only_run_in(tmp_path):
        pass
    assert "does not support locks" in caplog.text


@pytest.mark.usefixtures("signals_of_a_terminal")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_stops_a_run_in_python_with_a_checkpoint(number, tmp_path):
    whole = build(tmp_path / "whole", rows=ROWS, max_steps=4)
    whole.train()
    before = signal.getsignal(number)
    send = During(lambda: os.kill(os.getpid(), number))
    trainer = build(tmp_path / "out", rows=ROWS, max_steps=4, save_final_model=True, callbacks=[send])
    with pytest.raises(Interrupted, match=r"stopped at step 2; the last checkpoint, .*checkpoint-2, is unt") as stop:
        trainer.train()
    assert stop.value.exit_code == 128 + number and signal.getsignal(number) == before
    assert not (tmp_path / "out" / "model.safetensors").exists()
    trainer.remove_callback(send)
    trainer.train(resume_from_checkpoint=True)
    assert tiny.largest_difference(tiny.weights_of(trainer.model), tiny.weights_of(whole.model)) == 0


@pytest.mark.parametrize("left_alone", [False, True])
def test_a_signal_that_somebody_handles_stops_nothing(left_alone, tmp_path):
    came = []
    earlier = signal.signal(signal.SIGTERM, lambda *_: came.append(1))
    try:
        send = During(lambda: os.kill(os.getpid(), signal.SIGTERM))
        trainer = build(tmp_path, callbacks=[send], max_steps=3, stop_at_signals=not left_alone)
        trainer.train()
    finally:
        signal.signal(signal.SIGTERM, earlier)
    assert came == [1] and trainer.state.global_step == 3 and checkpoints_in(tmp_path) == []


def test_a_signal_that_is_to_be_left_alone_ends_the_process(tmp_path):
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_end_in_step_2, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGTERM


def _end_in_step_2(folder):
    send = During(lambda: os.kill(os.getpid(), signal.SIGTERM))
    build(folder, callbacks=[send], max_steps=3, stop_at_signals=False).train()


def test_a_signal_behind_the_last_step_is_handed_on_once_the_model_is_there(tmp_path):
    class AtTheEnd(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            os.kill(os.getpid(), signal.SIGINT)

    trainer = build(tmp_path, callbacks=[AtTheEnd()], max_steps=1, save_final_model=True)
    trainer.stops_at = (signal.SIGINT,)
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert (tmp_path / "model.safetensors").exists()


@pytest.mark.usefixtures("signals_of_a_terminal")
def test_a_closed_terminal_stops_a_run_as_sigterm_does_unless_it_is_to_go_on():
    with Signals().caught() as signals:
        os.kill(os.getpid(), signal.SIGHUP)
    assert signals.received == signal.SIGHUP
    code = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from tropd.training.checkpointing.interruption import Signals\n"
        "with Signals().caught() as s: os.kill(os.getpid(), signal.SIGHUP)\n"
        "print(s.received)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


ROWS = [{"prompt": prompt} for prompt in (*tiny.PROMPTS, "kk=", "l+m=", "n=", "o=")]


def interrupted(folder, **settings):
    trainer = tiny.build(folder, tiny.llama(seed=1), tiny.llama(seed=2), "opd", rows=ROWS, **SAVED | settings)
    trainer.train()
    return checkpoints_in(folder)[0]


SAVED = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}


@pytest.mark.parametrize("changed", ["data", "teacher", "method", "nothing", "data, not skipped"])
def test_a_resume_with_other_data_or_another_teacher_is_refused_and_says_which(changed, tmp_path):
    checkpoint = interrupted(tmp_path)
    teacher, rows, settings = tiny.llama(seed=2), list(ROWS), dict(SAVED)
    if changed.startswith("data"):
        rows[5] = {"prompt": "zz="}
        settings["ignore_data_skip"] = "not" in changed
    if changed == "teacher":
        with torch.no_grad():
            for parameter in teacher.parameters():
                parameter.mul_(1.01)
    if changed == "method":
        settings["advantage_floor"] = -2.0
    trainer = tiny.build(tmp_path, tiny.llama(seed=1), teacher, "opd", rows=rows, **settings)
    if changed in ("data", "teacher", "method"):
        with pytest.raises(ValueError, match=rf"but the {changed} (is|are) not what the run began with"):
            trainer.train(resume_from_checkpoint=str(checkpoint))
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint))


def test_a_checkpoint_of_the_model_alone_is_none_to_go_on_from(tmp_path):
    build(tmp_path, save_only_model=True, **SAVED).train()
    with pytest.raises(ValueError, match=r"checkpoint-2, which holds only the model \(save_only_model\)"):
        build(tmp_path, **SAVED | {"max_steps": 3}).train(resume_from_checkpoint=True)


def test_an_optimiser_that_would_ruin_the_next_step_is_not_saved(tmp_path):
    class Ruin(TrainerCallback):
        def on_step_end(self, args, state, control, optimizer=None, **kwargs):
            if state.global_step == 2:
                next(iter(optimizer.state.values()))["exp_avg_sq"].fill_(torch.inf)

    trainer = build(tmp_path, callbacks=[Ruin()], **SAVED)
    with pytest.raises(NotFinite, match=r"optimiser's state is not finite after step 2.*checkpoint-1, is untouched"):
        trainer.train()


def test_an_adapter_does_not_go_on_upon_another_base(tmp_path):
    adapter = {"peft_config": LoraConfig(r=2, target_modules=["q_proj"])}
    build(tmp_path, trainer_options=adapter, **SAVED).train()
    longer = SAVED | {"max_steps": 3}
    other = build(tmp_path, tiny.llama(seed=9), trainer_options=adapter, **longer)
    with pytest.raises(ValueError, match="but the student's base is not what the run began with"):
        other.train(resume_from_checkpoint=True)
    build(tmp_path, trainer_options=adapter, **longer).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_the_final_model_is_not_written_over_a_model_that_is_read(role, tmp_path):
    models = {"student": tiny.llama(seed=1), "teacher": tiny.llama(seed=2)}
    models[role].save_pretrained(tmp_path)
    models[role] = str(tmp_path)
    with pytest.raises(ValueError, match=f"the folder of the {role}, whose weights the final model would overwrite"):
        tiny.build(f"{tmp_path}/.", models["student"], models["teacher"], "opd")


def test_a_resume_in_python_says_which_settings_are_others(tmp_path, caplog):
    checkpoint = interrupted(tmp_path)
    changed = SAVED | {"temperature": 0.5, "learning_rate": 0.25}
    tiny.build(tmp_path, tiny.llama(seed=1), tiny.llama(seed=2), "opd", rows=ROWS, **changed).train(str(checkpoint))
    said = [record.message for record in caplog.records if "when the run in" in record.message]
    assert [line.split(" when ")[0] for line in said] == ["learning_rate was 0.001", "temperature was 1.0"]
    assert said[1].endswith("began, and is 0.5 now")


@pytest.mark.parametrize("lost", [True, False])
def test_a_complete_run_without_its_final_model_gets_it_by_resuming_in_python_too(lost, tmp_path):
    interrupted(tmp_path, save_final_model=True)
    if lost:
        (tmp_path / "model.safetensors").unlink()
    trainer = tiny.build(
        tmp_path, tiny.llama(seed=1), tiny.llama(seed=2), "opd", rows=ROWS, **SAVED, save_final_model=True
    )
    with pytest.raises(ValueError, match="the run is complete") as refused:
        trainer.train(resume_from_checkpoint=True)
    assert ("Its final model was not in" in str(refused.value)) == lost
    assert str(refused.value).endswith(f"it has been made from {tmp_path / 'checkpoint-2'}.") == lost
    final, last = (load_file(folder / "model.safetensors") for folder in (tmp_path, tmp_path / "checkpoint-2"))
    assert final.keys() == last.keys() and all(torch.equal(final[name], last[name]) for name in last)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_student_loaded_in_half_precision_is_trained_and_kept_in_float32_bit_for_bit(bf16, tmp_path, caplog):
    def trainer(folder, **settings):
        student = tiny.qwen(seed=1, sharpness=0.02).bfloat16()  # with tied weights
        settings = {"learning_rate": 5e-6, "weight_decay": 0.0, "bf16": bf16, "rows": ROWS} | settings
        return student, tiny.build(folder, student, tiny.llama(seed=2), "opd", max_steps=4, **settings)

    student, whole = trainer(tmp_path / "whole", save_final_model=True)
    assert student.lm_head.weight.data_ptr() == student.model.embed_tokens.weight.data_ptr()
    before = tiny.weights_of(whole.model)
    with caplog.at_level(logging.WARNING):
        whole.train()
    after = tiny.weights_of(whole.model)
    moved = torch.cat([(after[name] != before[name]).flatten() for name in before])
    assert moved.float().mean() > 0.9, "what a gradient of 0 does not reach alone stays"
    assert all(weight.dtype == torch.float32 for weight in after.values()) and "rounds away" not in caplog.text
    kept = load_file(tmp_path / "whole" / "model.safetensors")
    assert all(torch.equal(kept[name], after[name]) for name in kept)

    _, first = trainer(tmp_path / "pieces", save_strategy="steps", save_steps=2)
    first.add_callback(StopAfter(2))
    first.train()
    _, resumed = trainer(tmp_path / "pieces")
    resumed.train(resume_from_checkpoint=True)
    assert tiny.largest_difference(tiny.weights_of(resumed.model), after) == 0


def test_half_precision_says_what_it_costs_and_can_be_kept(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = build(tmp_path, tiny.llama(seed=1).bfloat16())
        assert "was loaded in bfloat16" in caplog.text and trainer.model.dtype == torch.float32
        caplog.clear()
        trainer = build(tmp_path, tiny.llama(seed=1).bfloat16(), master_weights=False)
        assert "was loaded in" not in caplog.text and trainer.model.dtype == torch.bfloat16


def test_an_engine_that_casts_the_weights_themselves_is_refused(tmp_path):
    with pytest.raises(ValueError, match="use_transformers_continuous_batching is True and bf16 is True"):
        build(tmp_path, use_transformers_continuous_batching=True, bf16=True)


@pytest.mark.parametrize(
    ("dtype", "rate", "told"), [("bfloat16", 5e-6, True), ("bfloat16", 0.05, False), ("float32", 5e-6, False)]
)
def test_a_student_whose_updates_round_away_is_told_so_in_the_first_step(dtype, rate, told, tmp_path, caplog):
    student = tiny.llama(seed=1).to(getattr(torch, dtype))
    with caplog.at_level(logging.WARNING):
        build(tmp_path, student, learning_rate=rate, max_steps=2, master_weights=False).train()
    said = [r.getMessage() for r in caplog.records if "rounds away" in r.getMessage()]
    assert len(said) == told
    assert not told or "kept in bfloat16" in said[0]
