"""No password leaves the process: not in a message, a log line or a record."""

import logging
import re
from collections.abc import Mapping
from typing import Any

_SECRETS = (
    # Also one with a slash in it; but what is a port is none, whatever follows.
    (re.compile(r"(://[^/:@\s]*):(?!\d+(?:[/\s]|$))[^\s'\"]*@"), r"\1:***@"),
    (re.compile(r"(https?://)[^/:@\s]+@"), r"\1***@"),
    (
        re.compile(
            r"([?&](?:password|passwd|pwd|token|secret|api_?key|access_?key)=)[^&\s'\"]+",
            re.IGNORECASE,
        ),
        r"\1***",
    ),
)


def without_passwords(text: str) -> str:
    """``postgresql://user:secret@host/db`` -> ``postgresql://user:***@host/db``.

    Anywhere in the text; also ``https://token@host`` and ``...?password=secret``.
    """
    for secret, mark in _SECRETS:
        text = secret.sub(mark, text)
    return text


def tree_without_passwords(tree: Any) -> Any:
    """The same of every string in nested mappings and lists."""
    if isinstance(tree, Mapping):
        return {key: tree_without_passwords(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [tree_without_passwords(value) for value in tree]
    return without_passwords(tree) if isinstance(tree, str) else tree


class Formatter(logging.Formatter):
    """For Hydra's log, which tells of every job with all that was typed for it."""

    def format(self, record: logging.LogRecord) -> str:
        return without_passwords(super().format(record))
