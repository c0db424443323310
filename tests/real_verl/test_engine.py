"""The loss inside verl's own engine: what it makes of a model's output, and a step over two processes."""

import importlib.util
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

if importlib.util.find_spec("verl") is None:
    pytest.skip("verl is not installed: make test-verl", allow_module_level=True)

import torch
from verl.utils import tensordict_utils as tu
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from real_verl.batch import READ, Batch, by_tropd, loss_function, settings

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


class Engine:
    """What `prepare_model_outputs` uses of its engine, on one process."""

    engine_config = SimpleNamespace(entropy_checkpointing=False, entropy_from_logits_with_chunking=False)

    def _gather_and_unpad_packed(self, values, pad_size):
        assert pad_size == 0
        return values


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("rewards", [True, False], ids=["with log-probs", "alone"])
def test_verls_engine_hands_our_numbers_to_our_loss(packed, rewards):
    """`alone` is verl's `distillation_only`, which leaves its own log-probabilities out."""
    batch, config = Batch(seed=4), settings("tropd", fkl_top_k=READ)
    data, function = batch.data(), loss_function(config)
    tu.assign_non_tensor(
        data, use_remove_padding=packed, distillation_use_topk=True, distillation_only=not rewards, temperature=1.0
    )
    logits = batch.logits.clone().requires_grad_()
    rows = logits if packed else _padded(logits, data["input_ids"])
    arguments = {"input_ids_rmpad_rolled": batch.ids.roll(-1), "pad_size": 0, "temperature_is_one": True}
    ones = torch.ones(len(batch.ids) if packed else 3, dtype=torch.float64)
    arguments["temperature_rmpad" if packed else "temperature"] = ones
    outputs = FSDPEngineWithLMHead.prepare_model_outputs(
        Engine(), SimpleNamespace(logits=rows.unsqueeze(0) if packed else rows), arguments, data, function
    )
    assert ("log_probs" in outputs) == rewards
    loss, _ = function(model_output=outputs, data=data)
    loss.backward()
    expected, gradient = by_tropd(config, batch)
    torch.testing.assert_close(loss.detach(), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(logits.grad, gradient, rtol=0, atol=1e-10)


def _padded(logits, input_ids):
    offsets = input_ids.offsets().tolist()
    rows = [logits[start:stop] for start, stop in pairwise(offsets)]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def test_a_step_over_two_processes_has_the_gradients_of_tropds_objective(tmp_path):
    """FSDP 2 on gloo, the shipped pair, answers with masked prefixes; see worker.py for what is verl's."""
    seen = tmp_path / "seen.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
            *(str(Path(__file__).with_name("worker.py")), str(seen)),
        ],
        capture_output=True,
        check=False,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}/src:{ROOT}/tests", "OMP_NUM_THREADS": "1"},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(seen.read_text())
    assert found["largest"] > 1e-2
    assert found["loss"] == pytest.approx(found["expected"], abs=1e-6)
    assert found["apart"] < 1e-5 * max(1.0, found["largest"])
    assert {"distillation/trust_fraction", "distillation/sampled_outside_topk"} <= set(found["metrics"])
