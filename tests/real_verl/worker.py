"""One of two processes with a share of the shipped student under FSDP 2 on gloo: verl's own engine makes the step.

verl has no platform for a CPU, so the test shards the model and gives it to verl's engine; from the micro-batches to
the gradients everything is verl's. The first process writes what came out, beside tropd's objective on the whole model.
"""

import json
import sys
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import torch
import torch.distributed as dist
import verl.workers.engine.fsdp.transformer_impl as verl_engine
from tensordict import TensorDict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, AutoTokenizer
from verl.trainer.distillation.losses import distillation_ppo_loss
from verl.utils import tensordict_utils as tu

from shipped import problems, student_path, teacher_path
from tropd.objective import Head, TokenSignals, TopKTerm, student_terms, token_losses, topk_function, trust_weight
from tropd.verl.config import TropdLossConfig

TOPK, PREFIX = 16, 2
FIELDS = {"loss_mode": "tropd", "gate": "expected", "topk": TOPK, "fkl_top_k": TOPK}


def sequences() -> list[tuple[list[int], list[int]]]:
    """Four prompts and answers of different lengths; the first tokens of an answer are a prefix."""
    tokenizer = AutoTokenizer.from_pretrained(student_path())
    found = []
    for number, problem in enumerate(problems(4)):
        prompt = tokenizer(problem["prompt"], add_special_tokens=False)["input_ids"]
        answer = tokenizer("40+7=47", add_special_tokens=False)["input_ids"]
        found.append((prompt, [*answer[: 3 + number], 2]))
    return found


@torch.no_grad()
def logps_of(model, rows: list[list[int]]) -> list[torch.Tensor]:
    return [model(torch.tensor([ids])).logits[0].float().log_softmax(-1) for ids in rows]


def payload(teacher, student, pairs: list[tuple[list[int], list[int]]]) -> TensorDict:
    """The micro-batches' columns, as the trainer V1 has them."""
    rows = [prompt + answer for prompt, answer in pairs]
    columns: dict[str, list[torch.Tensor]] = {}
    for (prompt, answer), ids, of_teacher, of_student in zip(
        pairs, rows, logps_of(teacher, rows), logps_of(student, rows), strict=True
    ):
        top, sampled = of_teacher.topk(TOPK, -1), torch.tensor([*ids[1:], 0]).unsqueeze(-1)
        own = of_student.gather(-1, sampled).squeeze(-1)[len(prompt) - 1 : -1]
        mask = torch.tensor([0] * PREFIX + [1] * (len(answer) - PREFIX))
        for name, value in {
            "input_ids": torch.tensor(ids),
            "position_ids": torch.arange(len(ids)),
            "prompts": torch.tensor(prompt),
            "responses": torch.tensor(answer),
            "response_mask": mask,
            "loss_mask": mask,
            "old_log_probs": own - 0.1,
            "teacher_ids": torch.cat([top.indices, sampled], -1).int(),
            "teacher_logprobs": torch.cat([top.values, of_teacher.gather(-1, sampled)], -1),
        }.items():
            columns.setdefault(name, []).append(value)
    nested = {name: torch.nested.as_nested_tensor(values, layout=torch.jagged) for name, values in columns.items()}
    return TensorDict(nested, batch_size=[len(pairs)])


def engine_of(model) -> verl_engine.FSDPEngineWithLMHead:
    """verl's engine around a model that is sharded already."""
    engine = object.__new__(verl_engine.FSDPEngineWithLMHead)
    engine.module, engine._autocast_dtype, engine.scaler = model, torch.float32, None
    engine.ulysses_sequence_parallel_size, engine.pad_to_length = 1, False
    engine.engine_config = SimpleNamespace(use_no_sync_for_gradient_accumulation=True, entropy_checkpointing=False)
    engine.get_data_parallel_group = lambda: dist.group.WORLD
    engine.get_data_parallel_size = dist.get_world_size
    return engine


def expected(model, data: TensorDict) -> torch.Tensor:
    """The loss of all four answers by tropd's objective, whose gradients it leaves in the model."""
    method, offsets = TropdLossConfig(**FIELDS).method, data["input_ids"].offsets().tolist()
    logits, tokens, old, teacher_ids, teacher_logp = [], [], [], [], []
    for row, (start, stop) in enumerate(pairwise(offsets)):
        ids = data["input_ids"].values()[start:stop]
        learned = len(data["responses"][row]) - PREFIX
        places = slice(len(ids) - learned - 1, len(ids) - 1)
        logits.append(model(ids.unsqueeze(0)).logits[0, places])
        tokens.append(ids[-learned:])
        old.append(data["old_log_probs"][row][PREFIX:])
        teacher_ids.append(data["teacher_ids"].values()[start:stop][places])
        teacher_logp.append(data["teacher_logprobs"].values()[start:stop][places])
    states, sampled, rollout_logp, ids, logp = map(torch.cat, (logits, tokens, old, teacher_ids, teacher_logp))
    term = TopKTerm(torch.arange(len(sampled)), ids[:, :TOPK], logp[:, :TOPK], topk_function(method))
    student, direct, _ = student_terms(states, Head(torch.eye(states.shape[-1])), sampled, term)
    trust = trust_weight(method.gate, logp[:, TOPK] - rollout_logp)
    signals = TokenSignals(rollout_logp, logp[:, TOPK], trust, 1 - trust, torch.zeros_like(trust))
    losses = token_losses(method, signals, student, direct)
    loss = (losses.trust + losses.outlier).sum() / len(sampled)
    loss.backward()
    return loss.detach()


def main(path: str) -> None:
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    verl_engine.get_device_id = lambda: "cpu"
    verl_engine.get_device_name = lambda: "cpu"
    model, whole, teacher = (
        AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        for name in (student_path(), student_path(), teacher_path())
    )
    pairs = sequences()
    everything, mine = (payload(teacher, whole, some) for some in (pairs, pairs[rank::ranks]))
    for layer in model.model.layers:
        fully_shard(layer, mesh=init_device_mesh("cpu", (ranks,)))
    fully_shard(model, mesh=init_device_mesh("cpu", (ranks,)))
    tu.assign_non_tensor(
        mine,
        use_remove_padding=False,
        use_dynamic_bsz=False,
        micro_batch_size_per_gpu=1,
        temperature=1.0,
        distillation_use_topk=True,
        distillation_only=True,
        global_batch_size=len(pairs),
    )
    actor = SimpleNamespace(strategy="fsdp2", loss_agg_mode="token-mean", global_batch_info={}, loss_scale_factor=None)
    distillation = SimpleNamespace(distillation_loss=TropdLossConfig(**FIELDS), enabled=True)
    loss_of = partial(distillation_ppo_loss, config=actor, distillation_config=distillation)
    output = engine_of(model).forward_backward_batch(mine, loss_of)
    gradients = {name: weight.grad.full_tensor() for name, weight in model.named_parameters()}
    loss = torch.tensor(sum(output["loss"]))
    dist.all_reduce(loss)
    if rank == 0:
        of_tropd = expected(whole, everything)
        apart = {name: float((gradients[name] - weight.grad).abs().max()) for name, weight in whole.named_parameters()}
        largest = max(float(weight.grad.abs().max()) for weight in whole.parameters())
        seen = {
            "loss": float(loss / ranks),
            "expected": float(of_tropd),
            "apart": max(apart.values()),
            "largest": largest,
            "metrics": sorted(output["metrics"]),
        }
        with open(path, "w") as file:
            json.dump(seen, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
