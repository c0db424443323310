"""Which engine writes responses for `tropd evaluate` and `tropd generate`: its options, and how it is begun."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..suggestions import hint
from ..teacher.served.address import ENGINE, is_own, is_served, read_addresses, read_key
from . import console

if TYPE_CHECKING:
    from ..engines.drawing import Writer
    from ..models.files import ModelFiles

HERE = ("hf", "vllm")
"""Engines in this process."""

BATCH_SIZES = {"hf": 16, "vllm": 256, "server": 256}
"""Responses sampled together, unless said otherwise: vLLM makes up its batches itself, out of what it is given."""

VLLM: dict[str, tuple[Any, str]] = {
    "vllm_gpu_memory_utilization": (0.9, "share of each GPU that vLLM takes (default: 0.9)"),
    "vllm_tensor_parallel_size": (1, "GPUs over which vLLM splits the weights (default: 1)"),
    "vllm_enforce_eager": (False, "vLLM neither compiles nor captures graphs: it starts sooner and runs slower"),
}

SERVER: dict[str, tuple[Any, str]] = {
    "server_model_name": ("", "what the server calls the model (default: the only one it offers)"),
    "server_api_key_env": ("", f"environment variable with the server's key (default: {ENGINE.key_variable})"),
    "server_concurrency": (64, "concurrent requests (default: 64)"),
    "server_timeout": (3600.0, "seconds that the server may take for one response (default: 3600)"),
    "server_patience": (600.0, "seconds to keep retrying a server that does not answer (default: 600)"),
    "server_allow_remote": (False, "allow unencrypted http to another machine"),
}


def kind_of(engine: str) -> str:
    """`hf`, `vllm` or `server`."""
    if is_own(engine):
        raise ValueError(_own(engine))
    if is_served(engine):
        return "server"
    if engine not in HERE:
        raise ValueError(
            f"engine is {engine!r}{hint(engine, HERE)}; choose hf, vllm, or a server's address such as "
            "http://127.0.0.1:8000/v1."
        )
    return engine


def _own(engine: str) -> str:
    return (
        f"engine is {engine!r}, a `tropd serve`, which only serves teachers and does not support top_p, top_k and "
        "min_p. Serve the model with vLLM (http://127.0.0.1:8000/v1), or remove engine."
    )


def check(settings: Mapping[str, Any]) -> None:
    """Refuse an engine that cannot be begun, and say which options have no effect on the one that is asked for."""
    kind = kind_of(settings["engine"])
    if kind == "vllm":
        from ..engines.vllm import check_installed

        check_installed()
    if kind == "server":
        _check_server(settings)
    if settings["vllm_tensor_parallel_size"] < 1:
        raise ValueError(
            f"vllm_tensor_parallel_size is {settings['vllm_tensor_parallel_size']}; give a number of GPUs."
        )
    if not 0 < settings["vllm_gpu_memory_utilization"] <= 1:
        raise ValueError(
            f"vllm_gpu_memory_utilization is {settings['vllm_gpu_memory_utilization']}; it is a share of each GPU, in "
            "(0, 1]."
        )
    say_idle(kind, settings)


def say_idle(kind: str, settings: Mapping[str, Any]) -> None:
    """Warn of options that are given and have no effect on this engine."""
    for name in [*(VLLM if kind != "vllm" else ()), *(SERVER if kind != "server" else ())]:
        if name in settings and settings[name] != (VLLM | SERVER)[name][0]:
            console.warn(f"{name} has no effect with engine {kind}.")
    if kind != "hf" and settings["use_cpu"]:
        console.warn(f"use_cpu has no effect with engine {kind}, which chooses its own device.")


def _check_server(settings: Mapping[str, Any]) -> None:
    if settings["dtype"] != "auto":
        raise ValueError(f"dtype is {settings['dtype']!r}, but the engine is a server, which sets its own. Remove it.")
    for name in ("server_concurrency", "server_timeout", "server_patience"):
        if settings[name] <= 0:
            raise ValueError(f"{name} is {settings[name]}; use a number above 0.")
    read_addresses(settings["engine"], settings["server_allow_remote"], ENGINE)
    read_key(settings["server_api_key_env"] or None, ENGINE)


def begin(files: "ModelFiles", role: str, settings: Mapping[str, Any], longest_prompt: int) -> "Writer":
    """The engine with the model, ready to write."""
    kind, length = kind_of(settings["engine"]), longest_prompt + settings["max_new_tokens"]
    remote = settings["trust_remote_code"]
    if kind == "hf":
        from ..engines.transformers import TransformersWriter

        return TransformersWriter.load(
            files, role, dtype=settings["dtype"], use_cpu=settings["use_cpu"], trust_remote_code=remote
        )
    if kind == "vllm":
        from ..engines.vllm import VllmWriter

        own = {name.removeprefix("vllm_"): settings[name] for name in VLLM}
        console.say("starting vLLM, which takes a minute or more")
        return VllmWriter(files, role, dtype=settings["dtype"], max_model_len=length, trust_remote_code=remote, **own)
    return _connect(files, settings, length)


def _connect(files: "ModelFiles", settings: Mapping[str, Any], length: int) -> "Writer":
    from ..engines.server import ServerWriter
    from ..teacher.served.connect import connect
    from ..teacher.served.served import ServedTeacher

    # An option that is not given is empty text, and `None` to whoever connects.
    args = SimpleNamespace(**{name: None if settings[name] == "" else settings[name] for name in SERVER})
    served = connect(
        settings["engine"], args, tokenizer=files.tokenizer, student_rows=files.head_rows, role=ENGINE
    ).teacher
    if not isinstance(served, ServedTeacher):
        raise ValueError(_own(settings["engine"]))
    if served.context_length is not None and length > served.context_length + 1:
        raise ValueError(
            f"the longest prompt and max_new_tokens are {length} tokens together, but the server's context has "
            f"{served.context_length + 1}. Start it with --max-model-len {length}, or lower max_new_tokens."
        )
    return ServerWriter(served, settings["engine"])


def described(name: str, writer: "Writer") -> str:
    """What writes, in a few words; `name` is the model's."""
    words = writer.describe()
    if words["engine"] == "hf":
        return f"{name} on {words['device']} in {words['dtype']}"
    if words["engine"] == "vllm":
        return f"{name} in vLLM {words['version']} in {words['dtype']}"
    return f"{words['model']} at {words['address']}"
