"""Runs programs that a model wrote in a sandbox.

`Sandbox` starts a fork server (`server`), whose children lock themselves down (`lockdown`: limits, `landlock`,
`seccomp`) before they read a line of a program. It tests itself first (`self_test`), and where the machine cannot
contain a program, none is run.
"""

from .client import Outcome, Sandbox, SandboxRefused
from .lockdown import Limits, why_not_here

__all__ = ["Limits", "Outcome", "Sandbox", "SandboxRefused", "why_not_here"]
