"""From a trainer's arguments to models that can be read: the student prepared, teachers loaded, their endings found."""

import logging
from collections.abc import Mapping
from typing import Any

from accelerate.utils import is_peft_model
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from ..messages import TOOLS
from ..models.hidden_states import expose_hidden_states, freeze_what_text_does_not_reach, language_model_class
from ..teacher.adapter_base import BaseTeacher
from ..teacher.context import Row, TeacherContexts, check_renders_tools, tools_of
from ..teacher.endings import PairEndings, as_ids, declared_endings, pair_endings
from ..teacher.local import LocalTeacher
from ..teacher.names import Name, teacher_phrase
from ..teacher.per_teacher_settings import args_of, loading_key, of_teacher
from ..teacher.served.address import is_served
from ..teacher.served.connect import connect
from ..teacher.teacher import Teacher
from ..teacher.teachers import Teachers
from ..teacher.vocabulary import check_vocabularies, own_tokens, own_tokens_sentence
from .distributed.sharding import in_autocast, keep_outputs_exact, prepare_teacher, shards_teacher
from .guards.arguments import check_host_model, check_padding, check_teacher_apart
from .guards.host_settings import settle_checkpointing
from .guards.reading import silence
from .guards.updates import keep_master_weights

logger = logging.getLogger(__name__)

WHICH = ("trust_remote_code", "revision", "subfolder", "token", "cache_dir")
"""Keyword arguments of loading that say which configuration it is."""


def prepare_student(trainer: Any, teachers: Mapping[Any, Any]) -> None:
    """Prepare the host's model: its states can be read, and each pass gives the same."""
    check_host_model(trainer)
    freeze_what_text_does_not_reach(trainer.model)
    keep_master_weights(trainer)
    check_padding(trainer)
    check_teacher_apart(trainer, teachers)
    student = trainer.model.get_base_model() if is_peft_model(trainer.model) else trainer.model
    # Whether somebody set `True` explicitly, the default, is not known here; the command line knows.
    asked = {name: getattr(trainer.args, name, None) for name in ("gradient_checkpointing_kwargs",)}
    note = settle_checkpointing(trainer.args, student, asked)
    if note is not None:
        logger.warning(note)
    keep_outputs_exact(trainer.accelerator)
    if trainer.args.disable_dropout:
        silence(trainer.model)
    # Truncated rollouts are left out by us: the host would blank them before they can be measured.
    trainer.mask_truncated_completions = False
    # Training with gradient checkpointing leaves `use_cache: false` in a model's configuration, and each token that is
    # written would read all before it.
    if not trainer.use_vllm and "use_cache" not in (trainer.args.generation_kwargs or {}):
        trainer.generation_config.use_cache = trainer.generation_kwargs["use_cache"] = True
    expose_hidden_states(student)


def find_endings(trainer: Any) -> PairEndings:
    """How this run's responses end; the sampler, and the model as it is saved, stop accordingly."""
    teachers = {
        name: declared_endings(teacher.generation_config, trainer.teacher_tokenizers[name])
        for name, teacher in trainer.teachers.by_name.items()
    }
    found = pair_endings(
        declared_endings(trainer.model.generation_config, trainer._tokenizer),
        teachers,
        ending=trainer.args.ending,
        ending_ids=trainer.args.ending_ids,
        vocab_size=trainer.shared_vocab_size,
    )
    if set(found.stop_ids) - set(as_ids(trainer.model.generation_config.eos_token_id)):
        trainer.model.generation_config.eos_token_id = list(found.stop_ids)
    if set(found.stop_ids) != set(trainer.eos_token_ids):
        trainer.eos_token_ids = trainer.model.generation_config.eos_token_id = list(found.stop_ids)
        if trainer.use_vllm:
            own = trainer.vllm_generation.generation_kwargs
            stops = {*own.get("stop_token_ids", []), *found.stop_ids}
            trainer.vllm_generation.generation_kwargs = {**own, "stop_token_ids": sorted(stops)}
        else:
            trainer.generation_config.eos_token_id = trainer.generation_kwargs["eos_token_id"] = trainer.eos_token_ids
    return found


def load_teachers(trainer: Any, given: Mapping[Name, Any], tokenizers: Any) -> tuple[Teachers, dict[Name, Any]]:
    """The teachers of a built trainer, and their tokenizers.

    A model that two names share is loaded once. One teacher has the name `None`. `tokenizers` is one for all, or a
    mapping from names.

    Raises:
        ValueError: settings that have no effect on a teacher, or one that does not share the student's vocabulary.
    """
    loaded: dict[Any, Any] = {}
    teachers: dict[Name, Teacher] = {}
    contexts: dict[Name, TeacherContexts] = {}
    found: dict[Name, Any] = {}
    for name, model in given.items():
        args = args_of(trainer.args, name, given)
        key = loading_key(args, model)
        if is_served(model):
            connected = loaded.get(key) or connect(
                model,
                args,
                name=name,
                tokenizer=of_teacher(tokenizers, name),
                student_tokenizer=trainer._tokenizer,
                student_rows=trainer._student_vocab_size,
                device=trainer.accelerator.device,
            )
            loaded[key], teachers[name], tokenizer = connected, connected.teacher, connected.tokenizer
        else:
            tokenizer = _tokenizer(model, of_teacher(tokenizers, name), args, name)
            loaded[key] = loaded.get(key) or _load(trainer, model, args, own_base=name in trainer.own_bases)
            teachers[name] = loaded[key]
        found[name] = tokenizer
        if tokenizer is None:
            logger.warning(
                "T%s came without a tokenizer, so only vocabulary sizes are compared. Pass "
                "teacher_processing_class to have the token ids compared too.",
                teacher_phrase(name)[1:],
            )
        _check_vocabulary(trainer, name, tokenizer, teachers[name])
        contexts[name] = TeacherContexts.from_args(
            args,
            trainer._tokenizer,
            tokenizer,
            tools=lambda row: _tools_for(trainer, row),
            student_template=trainer.chat_template,
        )
        _check_tools(trainer, contexts[name])
    most = trainer.ranks.max if len(given) > 1 and shards_teacher(trainer) else None
    return Teachers(teachers, contexts, most), found


def model_name(model: Any) -> str:
    """The name of a loaded model in its configuration; empty if it has none."""
    return str(getattr(model.config, "_name_or_path", "") or "")


def model_names(teachers: Teachers) -> Any:
    """The teacher's model, or the models by name."""
    names = {name: teacher.name for name, teacher in teachers.by_name.items()}
    return names.get(None, names)


def _tokenizer(model: Any, given: Any, args: Any, name: Name) -> Any:
    if isinstance(model, str) and given is None:
        given = AutoTokenizer.from_pretrained(model, trust_remote_code=args.trust_remote_code)
    if args.teacher_chat_template == "teacher" and given is None:
        raise ValueError(
            f"teacher_chat_template is 'teacher', but {teacher_phrase(name)} has no tokenizer; pass "
            "teacher_processing_class, or use 'student'."
        )
    return given


def _check_vocabulary(trainer: Any, name: Name, tokenizer: Any, teacher: Teacher) -> None:
    try:
        check_vocabularies(trainer._tokenizer, tokenizer, teacher.vocab_size)
    except ValueError as error:
        if name is None:
            raise
        raise ValueError(f"{teacher_phrase(name)} cannot be used: {error}") from error
    own = own_tokens(trainer._tokenizer, tokenizer, teacher.vocab_size)
    if own:
        logger.warning(own_tokens_sentence(trainer._tokenizer, own))


def _tools_for(trainer: Any, row: Row) -> Any:
    """The tools that the host renders into a row's prompt: its own, its environment's, or the row's."""
    if trainer.environment_factories is not None:
        return trainer._env_tools[row.get("environment") if trainer._multi_environment else None]
    return trainer.tools or tools_of(row)


def _check_tools(trainer: Any, contexts: TeacherContexts) -> None:
    """Refuse tools that a model would not see, or that come from two places; warn where they have no effect.

    Raises:
        ValueError: with what to type.
    """
    hosts = trainer.tools or trainer.environment_factories is not None
    rows = trainer.train_dataset if TOOLS in (getattr(trainer.train_dataset, "column_names", None) or ()) else None
    if rows is not None and hosts:
        raise ValueError(
            f"the training data has a column {TOOLS!r}, and the trainer has tools of its own (tools, or an "
            "environment), which are the only ones that can be called: a prompt would describe one set or the other. "
            f"Remove the column: dataset.remove_columns({TOOLS!r})."
        )
    first = None if rows is None else next(iter(rows))
    if first is not None and isinstance(first["prompt"], str):
        logger.warning(
            "The training data has a column %r, which reaches no chat template, as the prompts are text; only the "
            "reward functions get it. Make each prompt a user's message to have it rendered.",
            TOOLS,
        )
    elif hosts or (first is not None and tools_of(first)):  # later rows are refused when they are met
        check_renders_tools(contexts.tokenizer, contexts.options)


def _load(trainer: Any, teacher: "str | PreTrainedModel", args: Any, own_base: bool) -> LocalTeacher:
    if own_base:
        logger.info("The teacher is the student's own base, with the adapter switched off; it is loaded once.")
        forward = in_autocast(trainer.accelerator, trainer.model)
        return BaseTeacher(trainer.model, forward, by_length=not shards_teacher(trainer))
    if isinstance(teacher, str):
        options = {"dtype": "auto", "trust_remote_code": args.trust_remote_code}
        options |= dict(args.teacher_model_init_kwargs or {})
        config = AutoConfig.from_pretrained(teacher, **{key: options[key] for key in WHICH if key in options})
        model = language_model_class(config, f"teacher is {teacher!r}").from_pretrained(teacher, **options)
    elif args.teacher_model_init_kwargs:
        raise ValueError("teacher_model_init_kwargs is set, but the teacher is already loaded; remove it.")
    else:
        model = teacher
    local = LocalTeacher(model, by_length=not shards_teacher(trainer))
    local.forward = prepare_teacher(trainer, model)
    return local
