#!/usr/bin/env bash
# TrOPD under verl 0.9.x: Ray workers, FSDP for the student, vLLM for rollouts and for the teacher. docs/verl.md explains
# every override. Its overrides have a test (make test-verl); the run itself was never made (no GPU was at hand).
#
#   STUDENT=Qwen/Qwen3-1.7B TEACHER=Qwen/Qwen3-8B TRAIN=train.parquet VAL=val.parquet bash tropd.sh
#
# Data first, with the same numbers (STUDENT's tokenizer decides the prefixes):
#   tropd generate --teacher "$TEACHER" --data prompts.jsonl --chat --max_new_tokens 4096 --out responses.jsonl
#   tropd export --to verl --student "$STUDENT" --data responses.jsonl --chat --method tropd \
#       --batch_size 128 --max_prompt_length 1024 --max_response_length 4096 --out "$TRAIN"
#   tropd export --to verl --student "$STUDENT" --data test.jsonl --chat --validation --out "$VAL"
#
# A method without prefixes (METHOD=fkl_outlier) reads the same file: the agent loop takes a row's prefix where it has one,
# so export it with the method that trains.
set -euo pipefail
: "${STUDENT:?is the folder or Hub name of the student: STUDENT=... TEACHER=... TRAIN=... VAL=... bash $0}"
: "${TEACHER:?is the folder or Hub name of the teacher}"
: "${TRAIN:?is the Parquet file that tropd export has written}"
: "${VAL:?is the Parquet file of tropd export --validation}"

METHOD=${METHOD:-tropd}
BATCH=${BATCH:-128}
PROMPT=${PROMPT:-1024}
RESPONSE=${RESPONSE:-4096}
TOPK=${TOPK:-64}
NODES=${NODES:-1}
GPUS=${GPUS:-4}                 # of each node, for the student
TEACHER_NODES=${TEACHER_NODES:-1}
TEACHER_GPUS=${TEACHER_GPUS:-4} # of each node, for the teacher; they are no others' GPUs
TEACHER_TP=${TEACHER_TP:-2}
ENDINGS=${ENDINGS:-[]}          # ids that end a response for either model, such as [151645,151643]

python3 -m verl.trainer.main_ppo \
    data.train_files="$TRAIN" \
    data.val_files="$VAL" \
    data.train_batch_size="$BATCH" \
    data.max_prompt_length="$PROMPT" \
    data.max_response_length="$RESPONSE" \
    data.shuffle=False \
    data.filter_overlong_prompts=False \
    trainer.total_epochs=1 \
    actor_rollout_ref.model.path="$STUDENT" \
    actor_rollout_ref.model.use_fused_kernels=False \
    actor_rollout_ref.actor.strategy=fsdp2 \
    actor_rollout_ref.actor.optim.lr=1e-6 \
    actor_rollout_ref.actor.ppo_mini_batch_size="$BATCH" \
    actor_rollout_ref.actor.ppo_epochs=1 \
    actor_rollout_ref.actor.loss_agg_mode=token-mean \
    actor_rollout_ref.actor.use_kl_loss=False \
    actor_rollout_ref.actor.entropy_coeff=0 \
    actor_rollout_ref.actor.use_dynamic_bsz=True \
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=$((2 * (PROMPT + RESPONSE))) \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=1 \
    actor_rollout_ref.rollout.temperature=1.0 \
    actor_rollout_ref.rollout.top_p=1.0 \
    actor_rollout_ref.rollout.agent.default_agent_loop=tropd_prefix \
    actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=True \
    actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=$((4 * (PROMPT + RESPONSE))) \
    algorithm.adv_estimator=grpo \
    algorithm.use_kl_in_reward=False \
    reward.custom_reward_function.path=pkg://tropd.verl.reward \
    reward.custom_reward_function.name=no_reward \
    distillation.enabled=True \
    distillation.nnodes="$TEACHER_NODES" \
    distillation.n_gpus_per_node="$TEACHER_GPUS" \
    distillation.teacher_models.teacher_model.model_path="$TEACHER" \
    distillation.teacher_models.teacher_model.inference.name=vllm \
    distillation.teacher_models.teacher_model.inference.tensor_model_parallel_size="$TEACHER_TP" \
    distillation.distillation_loss._target_=tropd.verl.config.TropdLossConfig \
    distillation.distillation_loss.loss_mode="$METHOD" \
    distillation.distillation_loss.topk="$TOPK" \
    distillation.distillation_loss.use_task_rewards=False \
    distillation.distillation_loss.use_policy_gradient=False \
    distillation.distillation_loss.loss_max_clamp=null \
    distillation.distillation_loss.log_prob_min_clamp=null \
    +distillation.distillation_loss.endings="$ENDINGS" \
    trainer.use_v1=True \
    trainer.nnodes="$NODES" \
    trainer.n_gpus_per_node="$GPUS" \
    trainer.project_name=tropd \
    trainer.experiment_name="$METHOD" \
    "$@"
