"""From the `teacher_model` argument to a teacher: loaded and spread over the processes, or the student's own base."""

import logging
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ..teacher.base import BaseTeacher
from ..teacher.local import LocalTeacher
from .sharding import in_autocast, prepare_teacher, shards_teacher

logger = logging.getLogger(__name__)


def load_teacher(trainer: Any, teacher: "str | PreTrainedModel | LocalTeacher") -> LocalTeacher:
    """The teacher of a built trainer; sets its `teacher_tokenizer` where none was given.

    Raises:
        ValueError: settings that have no effect on this teacher.
    """
    args = trainer.args
    if isinstance(teacher, str) and trainer.teacher_tokenizer is None:
        trainer.teacher_tokenizer = AutoTokenizer.from_pretrained(teacher, trust_remote_code=args.trust_remote_code)
    if args.teacher_chat_template == "teacher" and trainer.teacher_tokenizer is None:
        raise ValueError(
            "teacher_chat_template is 'teacher', but the teacher has no tokenizer; pass teacher_processing_class, "
            "or use 'student'."
        )
    if trainer.shares_base:
        logger.info("The teacher is the student's own base, with the adapter switched off; it is loaded once.")
        forward = in_autocast(trainer.accelerator, trainer.model)
        return BaseTeacher(trainer.model, forward, by_length=not shards_teacher(trainer))
    if isinstance(teacher, LocalTeacher):
        if shards_teacher(trainer):
            raise ValueError("a teacher that is built already cannot be sharded; set shard_teacher: false.")
        return teacher
    if isinstance(teacher, str):
        options = {"dtype": "auto", "trust_remote_code": args.trust_remote_code}
        teacher = AutoModelForCausalLM.from_pretrained(teacher, **options | dict(args.teacher_model_init_kwargs or {}))
    elif args.teacher_model_init_kwargs:
        raise ValueError("teacher_model_init_kwargs is set, but the teacher is already loaded; remove it.")
    local = LocalTeacher(teacher, by_length=not shards_teacher(trainer))
    local.forward = prepare_teacher(trainer, teacher)
    return local
