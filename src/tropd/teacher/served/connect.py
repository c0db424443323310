"""From an address to a teacher: its model, its limits, and whether its token ids are the same."""

import logging
import os
from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GenerationConfig

from ...models.files import GENERATION_CONFIG, ModelFiles, explained
from ...objective.methods import Method
from ..names import Name, field_of, teacher_phrase
from .address import TEACHER, Address, Role, is_own, is_served, read_addresses, read_key
from .http import Client, ServerRefused
from .scorer import ScorerTeacher
from .served import ServedTeacher
from .tensors import VERSION
from .wire import COMPLETIONS, MODELS, TOKENIZE, read_models, read_scores, scoring_question

logger = logging.getLogger(__name__)

FIELDS = ("model_name", "api_key_env", "concurrency", "timeout", "patience", "allow_remote")
"""About a server; `Role.option` has their whole names."""

START_PATIENCE = 5.0
"""Seconds that a server may be silent before a run begins."""

ABSENT = (404, 405, 501)
"""Statuses of a server that does not have what was asked for."""

OWN_CARD = "tropd"
"""What a `tropd serve` says of its model, beside what every server says, stands under this name."""

FIXED_TOKENS = 64
"""Tokens of the text by which a served teacher is known again."""

FIXED_TEXT = """\
Question: A train leaves at 7:45 and arrives at 12:10. How long is it on its way? Think step by step, then answer.
From 7:45 to 12:00 it is 4 hours and 15 minutes; 10 more minutes make 4 h 25 min, or 265 minutes.
π is 3.14159, not -2e-05 or 1,000.
def mean(values: list[float]) -> float:
    \"\"\"Their sum by their number.\"\"\"
    return sum(values) / len(values)  # raises ZeroDivisionError for []
\tif (x != y && !done) { a[i++] <<= 2; } <b class="c">&amp;</b> $\\frac{1}{2}\\sqrt{x^2+1}$ | A:\\B\\c.txt | ~`@#%^*
Größe, naïve, façade; Ελληνικά; Русский язык; 中文字符; 日本語のテキスト; 한국어; العربية; עברית; हिन्दी;
ไทย; 🙂👍🏽; …\u00a0end
"""
"""Read by both tokenizers before a run begins: words, numbers, code, formulas and other scripts."""


@dataclass(frozen=True)
class ServedFiles(ModelFiles):
    """A served teacher in the place of a model's small files; `config` is `None`."""

    rows: int = 0  # ids that it reads
    longest: int | None = None  # tokens that a text may have

    @property
    def head_rows(self) -> int:
        """The ids below it can be scored."""
        return self.rows

    @property
    def context_length(self) -> int | None:
        """Tokens of prompt and response; the server writes one more."""
        return self.longest


@dataclass(frozen=True)
class Connected:
    """A teacher that was found, and its tokenizer."""

    teacher: ServedTeacher | ScorerTeacher  # ready to be asked
    tokenizer: Any  # its own, or the student's in its place

    def files(self, model: str) -> ServedFiles:
        """What the preflight reads of a model, `model` as its name in sentences."""
        teacher = self.teacher
        return ServedFiles(
            model, self.tokenizer, None, teacher.generation_config, teacher.vocab_size, teacher.context_length
        )


def check_served(method: Method, args: Any, teachers: Mapping[Name, Any]) -> None:
    """Refuse what a served teacher cannot be asked for, before it is.

    Raises:
        ValueError: with the field and what to type.
    """
    served = [name for name, teacher in teachers.items() if is_served(teacher)]
    if not served:
        return
    start = f"{field_of(served[0])} is behind a server"
    vllm = [name for name in served if not is_own(teachers[name])]
    stages = [method, *filter(None, [method.second_stage])]
    if any(stage.needs_full_teacher for stage in stages):
        other = "choose a method that uses the top-k: tropd, tropd_support, fkl or jsd"
        if method.baseline == "full":
            other = "set baseline: top_k"
        elif method.support == "union":
            other = "set support: teacher"
        raise ValueError(
            f"method {method.name!r} needs whole distributions, but {start}, which returns only the likeliest tokens. "
            f"Load the teacher in this process (its folder or Hub name), or {other}."
        )
    if not vllm:
        return
    start = f"{field_of(vllm[0])} is behind a server"
    if any(stage.teacher_entropy_tau is not None for stage in stages):
        raise ValueError(
            f"method {method.name!r} needs the teacher's entropy, but {start}, which does not return it. Load the "
            "teacher in this process (its folder or Hub name), serve it with `tropd serve` (tropd://…), or choose "
            "another method, such as entropy_opd or tropd."
        )
    if args.temperature != 1.0:
        raise ValueError(
            f"temperature is {args.temperature}, but {start}, and vLLM always scores prompts at temperature 1. Set "
            "temperature: 1.0, serve the teacher with `tropd serve` (tropd://…), or load it in this process."
        )


def connect(
    model: str,
    args: Any,
    *,
    name: Name = None,
    tokenizer: Any | None = None,
    student_tokenizer: Any | None = None,
    student_rows: int | None = None,
    device: "torch.device | None" = None,
    role: Role = TEACHER,
) -> Connected:
    """Find the model that an address serves.

    Args:
        model: the address, or several with commas between.
        args: with the fields `teacher_…` (or as `role` begins them) of `MethodSettings` and `trust_remote_code`.
        name: of the teacher, where there are several.
        tokenizer: the model's, where it is at hand, as it is for every role but the teacher's.
        student_tokenizer: the fallback if the teacher's own is not available.
        student_rows: of its head; ids beyond these and the tokenizer's are of no interest.
        device: where the scores go.
        role: what the server is here for.

    Raises:
        ValueError: nobody answers, the model is not there, or its tokenizer is another than the one given.
    """
    if getattr(args, "teacher_model_init_kwargs", None):
        raise ValueError(
            f"teacher_model_init_kwargs is set, but {field_of(name)} is behind a server, which loads its model itself. "
            "Remove it."
        )
    field = field_of(name) if role is TEACHER else role.field
    given = {option: getattr(args, role.option(option)) for option in FIELDS}
    addresses = read_addresses(model, given["allow_remote"], role)
    key = read_key(given["api_key_env"], role)
    client = Client(addresses, key, given["timeout"], given["patience"], role)
    try:
        card = _find_card(client, given["model_name"], field, role)
        if is_own(model) and OWN_CARD not in card:
            raise ValueError(
                f"{field} is {addresses[0]}, but no `tropd serve` answers there. Start it (`tropd serve "
                f"--teacher DIR`), or, for a vLLM server, write http://{addresses[0].host}:{addresses[0].port}/v1."
            )
        root = str(card.get("root") or card["id"])
        generation_config = GenerationConfig.from_dict({})
        if tokenizer is None or role is TEACHER:
            tokenizer, generation_config = _find_tokenizer(args, root, tokenizer, student_tokenizer, name)
        _compare_tokenizers(client, card["id"], tokenizer, field, role)
        settings = {
            "name": root,
            "generation_config": generation_config,
            "device": device or torch.device("cpu"),
            "concurrency": given["concurrency"],
        }
        teacher: ServedTeacher | ScorerTeacher
        if OWN_CARD in card:
            teacher = _scorer(client, card, settings)
        else:
            rows = max(student_rows or 0, max(tokenizer.get_vocab().values()) + 1)
            teacher = _vllm_teacher(client, card, tokenizer, rows, settings)
    except ConnectionError as error:
        raise ValueError(_nobody(field, error, is_own(model), role)) from error
    return Connected(teacher, tokenizer)


def _scorer(client: Client, card: dict[str, Any], settings: dict[str, Any]) -> ScorerTeacher:
    own = card[OWN_CARD]
    return ScorerTeacher(
        client,
        card["id"],
        vocab_size=own["vocab_size"],
        context_length=own["context_length"],
        fingerprint=own["fingerprint"],
        most_tokens=own["most_tokens"],
        **settings | {"generation_config": GenerationConfig.from_dict({"eos_token_id": own["eos_token_id"]})},
    )


def _vllm_teacher(
    client: Client, card: dict[str, Any], tokenizer: Any, rows: int, settings: dict[str, Any]
) -> ServedTeacher:
    vocab_size = _find_vocab_size(client, card["id"], rows)
    length = card.get("max_model_len")
    fixed = [i for i in tokenizer(FIXED_TEXT, add_special_tokens=False)["input_ids"] if i < vocab_size]
    return ServedTeacher(
        client,
        card["id"],
        vocab_size=vocab_size,
        context_length=length - 1 if isinstance(length, int) else None,
        fixed_text=fixed[: min(FIXED_TOKENS, length - 1 if isinstance(length, int) else FIXED_TOKENS)],
        is_lean=all(_is_lean(client, address, card["id"]) for address in client.addresses),
        **settings,
    )


def _nobody(field: str, error: Exception, is_own: bool, role: Role) -> str:
    if is_own:
        return f"{field}: {error}. Start it, for example: tropd serve --teacher DIR --port 8001."
    length = "max_completion_length" if role is TEACHER else "max_new_tokens"
    return (
        f"{field}: {error}. Start it, for example: python -m vllm.entrypoints.openai.api_server --model DIR --host "
        f"127.0.0.1 --port 8000 --max-logprobs 64 --max-model-len N, with N the longest prompt + {length} + 1."
    )


def _find_card(client: Client, wanted: str | None, field: str, role: Role) -> dict[str, Any]:
    """The model's card; every replica has to have it."""
    cards = [_card_at(client, address, wanted, field, role) for address in client.addresses]
    if len({card["id"] for card in cards}) > 1:
        raise ValueError(
            f"{field} has replicas that offer different models ({', '.join(card['id'] for card in cards)}); a list "
            f"means replicas of one teacher. Set {role.option('model_name')} to a model that all of them offer."
        )
    if len({str(card.get(OWN_CARD)) for card in cards}) > 1:
        raise ValueError(
            f"{field} has replicas with different weights or settings; a list means replicas of one teacher."
        )
    lengths = [card["max_model_len"] for card in cards if isinstance(card.get("max_model_len"), int)]
    return cards[0] | ({"max_model_len": min(lengths)} if lengths else {})


def _card_at(client: Client, address: Address, wanted: str | None, field: str, role: Role) -> dict[str, Any]:
    cards = read_models(client.ask(MODELS, patience=START_PATIENCE, only=address))
    for card in cards.values():
        _check_own_card(card.get(OWN_CARD), address)
    option = role.option("model_name")
    if wanted is None and len(cards) != 1:
        raise ValueError(
            f"{field} is {address}, which offers {', '.join(cards) or 'no model'}; choose one with {option}."
        )
    if wanted is not None and wanted not in cards:
        raise ValueError(
            f"{option} is {wanted!r}, but {address} offers {', '.join(cards) or 'no model'}. Correct it, or "
            "serve that model."
        )
    return next(iter(cards.values())) if wanted is None else cards[wanted]


def _check_own_card(own: Any, address: Address) -> None:
    """Refuse what a `tropd serve` says of its model where it is of another release, or no such words.

    Raises:
        ServerRefused: with the address.
    """
    if own is None:
        return
    if not isinstance(own, dict) or own.get("version") != VERSION:
        version = own.get("version") if isinstance(own, dict) else None
        raise ServerRefused(
            f"the `tropd serve` at {address} uses version {version!r:.20}, but this is {VERSION}; use the same release "
            "of tropd at both ends"
        )
    kinds = {"fingerprint": str, "vocab_size": int, "most_tokens": int, "context_length": int | None}
    ends = own.get("eos_token_id")
    known = isinstance(ends, list) and all(type(token) is int and token >= 0 for token in ends)
    if not known or not all(name in own and isinstance(own[name], kind) for name, kind in kinds.items()):
        raise ServerRefused(f"the `tropd serve` at {address} does not describe its model")


def _find_tokenizer(args: Any, root: str, given: Any, student_tokenizer: Any, name: Name) -> tuple[Any, Any]:
    """The teacher's tokenizer, or the student's in its place, and the teacher's generation settings."""
    source = args.teacher_tokenizer or (root if Path(root).is_dir() else None)
    if given is not None:
        return given, _generation_config(source) if source else GenerationConfig.from_dict({})
    if source is not None:
        role = "teacher_tokenizer" if args.teacher_tokenizer else field_of(name)
        with explained(source, role):
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=args.trust_remote_code)
        return tokenizer, _generation_config(source)
    if student_tokenizer is None:
        raise ValueError(
            f"{field_of(name)} is served as {root!r}, which is not a folder here, so its tokenizer is unknown. Set "
            "teacher_tokenizer to a folder or Hub name with its tokenizer."
        )
    if args.teacher_chat_template == "teacher":
        raise ValueError(
            f"teacher_chat_template is 'teacher', but {teacher_phrase(name)} is served as {root!r}, which is not a "
            "folder here, so its chat template is unknown. Set teacher_tokenizer to a folder or Hub name that has it, "
            "or use 'student'."
        )
    logger.warning(
        "The teacher is served as %r, which is not a folder here, so the student's tokenizer is used in its place, "
        "and its endings are assumed to be the student's. Set teacher_tokenizer to a folder or Hub name with the "
        "teacher's tokenizer.",
        root,
    )
    return student_tokenizer, GenerationConfig.from_dict({})


def _generation_config(source: str) -> GenerationConfig:
    """The settings beside a tokenizer; none where there is no such file."""
    if os.path.isdir(source) and not (Path(source) / GENERATION_CONFIG).is_file():
        return GenerationConfig.from_dict({})
    try:
        return GenerationConfig.from_pretrained(source)
    except OSError:
        if os.path.isdir(source):
            raise
        return GenerationConfig.from_dict({})  # a name of the Hub without the file


def _compare_tokenizers(client: Client, served_name: str, tokenizer: Any, field: str, role: Role) -> None:
    """Refuse a server that reads a fixed text as other token ids; one that reads none for others is let through.

    Raises:
        ValueError: with the first ids that differ.
    """
    special = [token for token in tokenizer.all_special_tokens if token]
    text = FIXED_TEXT + "x".join(["", *special, ""])
    try:
        answer = client.ask(TOKENIZE, {"model": served_name, "prompt": text, "add_special_tokens": False})
    except ServerRefused as refusal:
        if refusal.status not in ABSENT:
            raise
        logger.warning(
            "The server in %s has no %s, so its token ids cannot be checked: its tokenizer must be the same as the "
            "one here.",
            field,
            TOKENIZE,
        )
        return
    ours, theirs = tokenizer(text, add_special_tokens=False)["input_ids"], answer.get("tokens")
    if theirs == ours:
        return
    if not isinstance(theirs, list):
        raise ServerRefused(f"the server's {TOKENIZE} gives no token ids")
    pairs = [*zip(ours, theirs, strict=False)]
    first = next((n for n, (a, b) in enumerate(pairs) if a != b), len(pairs))
    shown = tokenizer.decode(ours[max(first - 3, 0) : first + 3])
    other = f", or set {role.option('tokenizer')} to its own" if role is TEACHER else ""
    raise ValueError(
        f"{field} tokenises a text differently from its tokenizer here: near {shown!r} the ids are "
        f"{theirs[first : first + 3]} at the server and {ours[first : first + 3]} here. The two would not read the "
        f"same words; serve a model with the same tokenizer{other}."
    )


def _is_lean(client: Client, address: Address, served_name: str) -> bool:
    """Does the server have the endpoint that tells scores without texts, and knows it what is asked there?"""
    ids = [0, 0]
    question = scoring_question(served_name, ids, 1, is_lean=True)
    try:
        answer = client.ask(*question, patience=0.0, only=address)
        read_scores(answer, ids, [1], 1)
    except (ServerRefused, ConnectionError):  # then `/v1/completions` tells the same
        return False
    return True


def _find_vocab_size(client: Client, served_name: str, most: int) -> int:
    """How many ids of the first `most` the server reads; it refuses a text with any other."""

    def reads(token: int) -> bool:
        try:
            client.ask(COMPLETIONS, {"model": served_name, "prompt": [token], "max_tokens": 1})
        except ServerRefused as refusal:
            if refusal.status != 400 or token == 0:
                raise
            return False
        return True

    if reads(most - 1):
        return most
    reads(0)
    return bisect(range(most - 1), False, 1, key=lambda token: not reads(token))
