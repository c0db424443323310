"""Worker of `test_tool_loop.py`: eight rows; those of one prompt call a tool twice, those of the other never.

    python agent_ranks.py OUT plain|ddp|fsdp2|zero3 MICRO_BATCHES

Everything that is written comes from a script, but the model runs for it: where weights are sharded, in step.
"""

import os
import sys
from pathlib import Path

import torch
from accelerate.utils import gather_object
from trl import GRPOTrainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training import agents
from training.rank_worker import SHARDED, shard_on_cpu
from training.tiny import Recorder, config, same_dataset, weights_of
from tropd import TrOPDTrainer

CALLER = [{"role": "user", "content": "What is 12+3?"}]
OTHER = [{"role": "user", "content": "Guess."}]


def play(context: list[int]) -> str:
    read = agents.text(context)
    if "user" not in read:  # of a rank that only takes part
        return agents.ANSWER
    if "Guess." in read.split("<|im_start|>user\n")[1]:
        return "I guess 14.<|im_end|>"
    return agents.ANSWER if read.count("<tool_response>\n15") == 2 else agents.CALL


class Playing(GRPOTrainer):
    def _generate_single_turn(self, prompt_ids, *rest, **more):
        super()._generate_single_turn(prompt_ids, *rest, **more)
        return [agents.ids(play(context)) for context in prompt_ids], None


class PlayingTrainer(TrOPDTrainer, Playing):
    pass


def main(out: Path, kind: str, micro_batches: int) -> None:
    torch.set_num_threads(1)
    more = shard_on_cpu(kind) if kind in SHARDED else {}
    share = 8 // int(os.environ.get("WORLD_SIZE", "1"))
    recorder = Recorder()
    trainer = PlayingTrainer(
        agents.qwen(1),
        agents.qwen(2),
        args=config(
            out / "run",
            "fkl_outlier",
            per_device_train_batch_size=share // micro_batches,
            gradient_accumulation_steps=micro_batches,
            max_completion_length=300,
            max_steps=2,
            optim="sgd",
            learning_rate=0.05,
            **more,
        ),
        train_dataset=same_dataset([{"prompt": CALLER}, {"prompt": OTHER}]),
        processing_class=agents.new_tokenizer(),
        teacher_processing_class=agents.new_tokenizer(),
        callbacks=[recorder],
        tools=[agents.calculator],
    )
    trainer.generation_config.max_new_tokens = trainer.generation_kwargs["max_new_tokens"] = 6
    trainer.train()
    rollouts = [r for batch in trainer._buffered_inputs for r in batch.rollouts]
    written = sorted(gather_object([(r.row, agents.text(r.response), r.ended) for r in rollouts]))
    weights = weights_of(trainer.accelerator.unwrap_model(trainer.model_wrapped))
    log = trainer.state.log_history[1]
    if int(os.environ.get("RANK", "0")) == 0:
        torch.save({"weights": weights, "written": written, "log": log}, out / "seen.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        os._exit(0)  # gloo's threads abort one interpreter's end in three, after everything is written
