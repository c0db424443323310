"""Addresses of a served teacher: one, or those of its replicas, as one text."""

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

SCHEMES = {"http": 80, "https": 443, "tropd": 8001, "tropds": 443}
"""With their ports. `tropd` and `tropds` are http and https to a `tropd serve`."""

OWN = ("tropd", "tropds")

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

EXAMPLE = "http://127.0.0.1:8000/v1"


@dataclass(frozen=True)
class Role:
    """The role of a server, for messages."""

    noun: str  # what it is called
    field: str  # where its address is written
    prefix: str  # how the fields about it begin

    def option(self, name: str) -> str:
        """A field about it.

        >>> TEACHER.option("timeout")
        'teacher_timeout'
        """
        return f"{self.prefix}_{name}"

    @property
    def key_variable(self) -> str:
        """Where its key is, unless another variable is named."""
        return f"TROPD_{self.prefix.upper()}_API_KEY"


TEACHER = Role("the teacher", "teacher", "teacher")

ENGINE = Role("the server", "engine", "server")
"""Writes responses for an evaluation."""


@dataclass(frozen=True)
class Address:
    """One server."""

    scheme: str  # of `SCHEMES`
    host: str  # name or number
    port: int  # of TCP
    base: str = ""  # path before `/v1`, without a slash at its end

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.base}{'' if self.scheme in OWN else '/v1'}"

    @property
    def is_encrypted(self) -> bool:
        """Is it asked over TLS?"""
        return self.scheme in ("https", "tropds")

    @property
    def is_loopback(self) -> bool:
        """Is it this machine, whatever a name server says?"""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def is_served(model: Any) -> bool:
    """Is the teacher behind a server?

    >>> is_served("http://127.0.0.1:8000/v1"), is_served("models/teacher")
    (True, False)
    """
    return isinstance(model, str) and model.lower().startswith(tuple(f"{scheme}://" for scheme in SCHEMES))


def is_own(model: Any) -> bool:
    """Is the address that of a `tropd serve`?

    >>> is_own("tropd://127.0.0.1:8001"), is_own("http://127.0.0.1:8000/v1")
    (True, False)
    """
    return isinstance(model, str) and model.lower().startswith(tuple(f"{scheme}://" for scheme in OWN))


def are_all_served(teachers: Mapping[Any, Any]) -> bool:
    """Is there no teacher in this process?"""
    return all(map(is_served, teachers.values()))


def join_replicas(model: Any) -> Any:
    """A list of replicas as one text, which is what a served teacher is called everywhere; others as they are.

    >>> join_replicas(["http://a/v1", "http://b/v1"])
    'http://a/v1,http://b/v1'

    Raises:
        ValueError: a list of something else.
    """
    if not isinstance(model, (list, tuple)):
        return model
    if not model or not all(map(is_served, model)):
        raise ValueError(
            f"teacher is the list {list(model)!r:.200}; a list means replicas of one served teacher ([{EXAMPLE}, …]). "
            "Give one model, or a mapping from names for several teachers: {math: path, code: path}."
        )
    return ",".join(model)


def read_addresses(model: str, allow_remote: bool = False, role: Role = TEACHER) -> tuple[Address, ...]:
    """The addresses of a server and its replicas.

    Several have commas between; `allow_remote` takes unencrypted addresses of other machines.

    Raises:
        ValueError: an invalid address, one with a password, or another machine's without encryption.
    """
    addresses = tuple(_read(one.strip(), allow_remote, role) for one in model.split(","))
    if len(set(addresses)) < len(addresses):
        raise ValueError(f"{role.field} has the same address twice; give each replica once.")
    if len({address.scheme in OWN for address in addresses}) > 1:
        raise ValueError(
            f"{role.field} has replicas behind `tropd serve` (tropd://) and behind another server (http://), whose "
            "scores differ by rounding. Give replicas of one kind."
        )
    return addresses


def _read(text: str, allow_remote: bool, role: Role) -> Address:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{role.field} has an invalid address ({error}). Write it like {EXAMPLE}.") from error
    if parts.username is not None or parts.password is not None:
        raise ValueError(
            f"{role.field} has an address with a user or a password in it, which logs and records would keep. Remove "
            f"it; the key is read from the environment: export {role.key_variable}=…"
        )
    if parts.scheme not in SCHEMES or not host or parts.query or parts.fragment or not text.isprintable():
        raise ValueError(
            f"{role.field} is {text!r:.200}, which is not the address of a server. Write it like {EXAMPLE}."
        )
    address = Address(
        parts.scheme, host, port or SCHEMES[parts.scheme], parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    )
    if not address.is_encrypted and not address.is_loopback and not allow_remote:
        raise ValueError(
            f"{role.field} is {text!r}, another machine over http: anyone on the network between could read the "
            f"prompts and change the answers. Use {'tropds' if address.scheme in OWN else 'https'}, a tunnel to "
            "127.0.0.1 (ssh -L 8000:127.0.0.1:8000 HOST), or, in a network that you trust, "
            f"{role.option('allow_remote')}: true."
        )
    return address


def read_key(variable: str | None, role: Role = TEACHER, field: str | None = None) -> str | None:
    """The key of the server, from the environment; `None` if there is none.

    Args:
        variable: its name; `None` is `role.key_variable`.
        role: of the server, for sentences.
        field: what names the variable, where that is not the role's own option.

    Raises:
        ValueError: a variable that was asked for by name and is not set, or that no header can carry.
    """
    name, field = variable or role.key_variable, field or role.option("api_key_env")
    if not VARIABLE.fullmatch(name):
        raise ValueError(
            f"{field} is not the name of an environment variable (it is not shown, in case it is the key itself). "
            f"Export the key, and name the variable: {role.key_variable}."
        )
    key = os.environ.get(name, "").strip()
    if not key and name != role.key_variable:
        raise ValueError(f"{field} is {name!r:.100}, but there is no such environment variable. Export it.")
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"the environment variable {name} has characters that a key cannot have. Export it again.")
    return key or None
