"""The entry point, the configuration, and what is sent of the teacher's scores."""

import asyncio
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

if importlib.util.find_spec("verl") is None:
    pytest.skip("verl is not installed: make test-verl", allow_module_level=True)

import torch
import verl
from hydra.utils import instantiate
from omegaconf import OmegaConf
from verl.experimental.teacher_loop.teacher_manager import AsyncTeacherLLMServerManager
from verl.trainer.distillation.losses import DISTILLATION_LOSS_REGISTRY
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import DistillationLossConfig

from tropd.verl import arming
from tropd.verl.config import TropdLossConfig
from tropd.verl.losses import method_loss
from tropd.verl.methods import verl_methods

pytestmark = pytest.mark.slow


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ | environment
    )


def test_importing_verl_alone_registers_the_losses_and_says_so():
    code = "import verl; from verl.trainer.distillation.losses import get_distillation_loss_fn as f; print(f('tropd'))"
    done = run(code)
    assert done.stdout.startswith("<function method_loss"), done.stderr[-2000:]
    assert "is armed for verl 0.9" in done.stderr and "losses registered: opd, " in done.stderr


def test_importing_verl_does_not_import_its_trainer():
    done = run("import sys, verl; print(*[m for m in sys.modules if m.startswith(('verl.trainer', 'vllm'))])")
    assert done.stdout.split() == [], done.stderr[-2000:]


def test_verl_can_be_told_to_leave_tropd_out():
    code = (
        "import verl; from verl.trainer.distillation.losses import DISTILLATION_LOSS_REGISTRY as r; print('tropd' in r)"
    )
    done = run(code, VERL_USE_EXTERNAL_PLUGINS="none")
    assert done.stdout.split() == ["False"] and "tropd (process" not in done.stderr


def test_every_method_that_verl_can_run_is_one_of_its_losses():
    assert {name for name, loss in DISTILLATION_LOSS_REGISTRY.items() if loss is method_loss} >= set(verl_methods())


def test_the_command_says_what_is_armed_and_what_is_not():
    """In a process of its own: it imports verl as a run does."""
    done = subprocess.run([sys.executable, "-m", "tropd", "verl"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for words in (
        "losses registered: opd, fkl",
        "agent loop registered: tropd_prefix",
        "no: it reads the teacher's whole",
    ):
        assert words in done.stdout
    if importlib.util.find_spec("vllm") is None:
        assert "not here: vLLM's server sends" in done.stdout and "vllm is not installed" in done.stdout


def test_the_command_refuses_a_process_in_which_verl_leaves_tropd_out():
    environment = os.environ | {"VERL_USE_EXTERNAL_PLUGINS": "none"}
    done = subprocess.run(
        [sys.executable, "-m", "tropd", "verl"], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 2 and "VERL_USE_EXTERNAL_PLUGINS is 'none'" in done.stderr


# ---------------------------------------------------------------------- configuration


def written(**fields) -> dict:
    """distillation_loss as verl's own YAML has it, with our overrides."""
    import verl.trainer.config as folder

    path = next(iter(folder.__path__))
    own = OmegaConf.load(f"{path}/distillation/distillation.yaml").distillation_loss
    return OmegaConf.merge(
        own,
        {"_target_": "tropd.verl.config.TropdLossConfig", "loss_mode": "tropd", "topk": 64, "use_task_rewards": False},
        fields,
    )


def test_the_configuration_is_made_of_verls_own_yaml_and_our_fields():
    config = instantiate(written(gate="expected", endings=[7, 9], fkl_top_k=16), _convert_="partial")
    assert isinstance(config, TropdLossConfig) and config.loss_settings.use_topk
    assert (config.method.gate, config.method.fkl_top_k, config.method.guidance_beta) == ("expected", 16, 0.0)
    assert list(config.endings) == [7, 9]


def test_it_is_found_inside_the_configuration_of_the_whole_distillation():
    config = OmegaConf.create(
        {"_target_": "verl.workers.config.DistillationConfig", "enabled": False, "distillation_loss": written()}
    )
    assert omega_conf_to_dataclass(config).distillation_loss.method.name == "tropd"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"use_policy_gradient": True}, "use_policy_gradient is true"),
        ({"loss_max_clamp": 10.0}, "loss_max_clamp is 10.0, which would change the method"),
        ({"log_prob_min_clamp": -10.0}, "log_prob_min_clamp is -10.0"),
        ({"topk": 32}, "topk is 32, but method 'tropd' reads the teacher's top-64"),
        ({"loss_mode": "gkd"}, "cannot run in verl: it reads the teacher's whole distribution"),
        ({"loss_mode": "k3"}, "loss_mode is 'k3', which is not a method of tropd"),
        ({"loss_mode": "opd", "gate": "hard"}, "gate is 'hard', which would have no effect under method 'opd'"),
        ({"endings": [7, 7]}, "endings is .*write different token ids"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_would_break_the_loss_is_refused_before_a_run(fields, sentence):
    with pytest.raises(Exception, match=sentence):
        instantiate(written(**fields), _convert_="partial")


def test_a_method_of_ones_own_is_named_by_its_module(tmp_path, monkeypatch):
    (tmp_path / "my_verl_methods.py").write_text(
        "from tropd.objective import Method\n"
        "MINE = Method('mine', 'K1 with max(r, -3)', 'ours', gate='open', advantage_floor=-3.0)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert TropdLossConfig(loss_mode="my_verl_methods:MINE").method.advantage_floor == -3.0
    assert TropdLossConfig(loss_mode="my_verl_methods:MINE").loss_mode in DISTILLATION_LOSS_REGISTRY


# ---------------------------------------------------------------------- the teacher's scores


@pytest.fixture
def vllm_utils(monkeypatch):
    """verl's module with `extract_prompt_logprobs`, imported with names that only a machine with vLLM has."""
    for name in (
        "vllm",
        "vllm.outputs",
        "verl.utils.vllm",
        "verl.utils.vllm.patch",
        "verl.utils.vllm.vllm_quant_utils",
    ):
        monkeypatch.setitem(sys.modules, name, _Anything(name))
    name = "verl.workers.rollout.vllm_rollout.utils"
    monkeypatch.setitem(sys.modules, "verl.workers.rollout.vllm_rollout", _package("verl/workers/rollout/vllm_rollout"))
    weights = "verl.workers.rollout.vllm_rollout.weight_update_utils"
    monkeypatch.setitem(sys.modules, weights, _Anything(weights))
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name)
    sys.modules.pop(name, None)


class _Anything(ModuleType):
    """A module that has every name."""

    __path__: tuple = ()

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _package(path: str) -> ModuleType:
    package = ModuleType(path.replace("/", "."))
    package.__path__ = [f"{next(iter(verl.__path__))}/../{path}"]
    return package


def scores(**of_token: tuple[int, float]) -> dict:
    return {int(name[1:]): SimpleNamespace(rank=rank, logprob=logp) for name, (rank, logp) in of_token.items()}


def test_vllms_answer_keeps_the_sampled_token_beyond_rank_k(vllm_utils):
    """Three tokens, top-2: the second token has rank 5, the third rank 1."""
    answer = SimpleNamespace(
        prompt_token_ids=[4, 9, 3],
        prompt_logprobs=[None, scores(t9=(5, -4.0), t7=(1, -0.1), t8=(2, -2.5)), scores(t3=(1, -0.2), t6=(2, -2.0))],
    )
    found: dict = {}
    vllm_utils.extract_prompt_logprobs(answer, 2, found)
    assert found["prompt_ids"] == [[7, 8, 9], [3, 6, 3], [0, 0, 0]]
    assert found["prompt_logprobs"] == [[-0.1, -2.5, -4.0], [-0.2, -2.0, -0.2], [0.0, 0.0, 0.0]]
    assert "sampled token beyond rank k" in arming.ARMED["verl.workers.rollout.vllm_rollout.utils"]


@pytest.mark.parametrize("asked", [None, 0], ids=["nothing", "the sampled token alone"])
def test_an_answer_without_a_top_k_is_as_verl_makes_it(vllm_utils, asked):
    answer = SimpleNamespace(prompt_token_ids=[4, 9], prompt_logprobs=[None, scores(t9=(5, -4.0))])
    found: dict = {}
    vllm_utils.extract_prompt_logprobs(answer, asked, found)
    assert found == ({} if asked is None else {"prompt_ids": [[9], [0]], "prompt_logprobs": [[-4.0], [0.0]]})


class Server:
    """Answers as verl's client of a teacher does."""

    def __init__(self, ids: list[list[int]]):
        self.ids = ids

    async def generate(self, **asked):
        self.asked = asked
        logps = [[-float(token) for token in row] for row in self.ids]
        return SimpleNamespace(extra_fields={"prompt_ids": self.ids, "prompt_logprobs": logps})


def ask(loss: DistillationLossConfig, ids: list[list[int]], tokens: list[int]):
    manager = object.__new__(AsyncTeacherLLMServerManager)
    manager.distillation_loss_config = loss
    inference = SimpleNamespace(temperature=1.0)
    manager.teacher_model_configs = {"default": SimpleNamespace(inference=inference)}
    manager.teacher_client = {"default": Server(ids)}
    return asyncio.run(manager.compute_teacher_logprobs_single(tokens))


OURS = {"loss_mode": "fkl_outlier", "topk": 2, "fkl_top_k": 2}
OF_VERL = {"loss_mode": "forward_kl_topk", "topk": 2, "use_policy_gradient": False}


def test_the_client_hands_the_slot_to_our_losses_and_to_no_other():
    sent = [[7, 8, 9], [3, 6, 3], [0, 0, 0]]
    ids, logps = ask(TropdLossConfig(**OURS), sent, [4, 9, 3])
    assert ids.tolist() == sent and logps[0].tolist() == [-7, -8, -9]
    ids, logps = ask(DistillationLossConfig(**OF_VERL), sent, [4, 9, 3])
    assert ids.tolist() == [[7, 8], [3, 6], [0, 0]] and logps.shape == torch.Size([3, 2])


def test_the_client_refuses_a_server_without_tropd_at_the_first_answer():
    with pytest.raises(RuntimeError, match="have 2 columns, but top-2 and the sampled token make 3"):
        ask(TropdLossConfig(**OURS), [[7, 8], [3, 6], [0, 0]], [4, 9, 3])


def test_the_client_refuses_scores_of_other_tokens():
    with pytest.raises(RuntimeError, match="scored tokens other than"):
        ask(TropdLossConfig(**OURS), [[7, 8, 5], [3, 6, 3], [0, 0, 0]], [4, 9, 3])


# ---------------------------------------------------------------------- the recipe


def test_the_recipes_overrides_are_ones_that_verl_knows(tmp_path):
    """The shell script's own words, composed with verl's configuration files; the distillation is then built."""
    import hydra
    import verl.trainer.config as folder

    shown = tmp_path / "python3"
    shown.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    shown.chmod(0o755)
    models = {"STUDENT": "student", "TEACHER": "teacher", "TRAIN": "train.parquet", "VAL": "val.parquet"}
    environment = os.environ | models | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ENDINGS": "[7,9]"}
    script = Path(__file__).parents[2] / "recipes" / "verl" / "tropd.sh"
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=True, env=environment)
    module, *overrides = done.stdout.splitlines()[1:]
    assert module == "verl.trainer.main_ppo" and len(overrides) > 30
    with hydra.initialize_config_dir(next(iter(folder.__path__)), version_base=None):
        config = hydra.compose("ppo_trainer", overrides)
    distillation = omega_conf_to_dataclass(config.distillation)
    assert isinstance(distillation.distillation_loss, TropdLossConfig)
    assert list(distillation.distillation_loss.endings) == [7, 9]
    assert distillation.teacher_models["default"].world_size == 4
    assert config.actor_rollout_ref.rollout.agent.default_agent_loop == arming.AGENT_LOOP
