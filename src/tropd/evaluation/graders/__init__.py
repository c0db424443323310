"""Graders: a response and what is known of its problem make a verdict, and nothing else does.

`text` finds the answer in a response; `mathematics`, `choice`, `code` and `instructions` judge it. Whatever has to be
computed from a model's text is computed in the sandbox, under limits of processor time, so that no verdict depends on
how busy the machine is.
"""
