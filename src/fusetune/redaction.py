"""Texts without what must stay secret, and without what would act on a terminal.

Passwords in URLs, tokens and the values of environment variables that hold them must never
reach a log, a report or a file of the run folder. Errors, logs and stored recipes pass through
here. What is recognised is listed in `SECURITY.md`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"
LONGEST = 8_000  # characters of a message; more is the work of a damaged or hostile file
SHORTEST = 8  # characters of a secret in the environment; shorter ones stand in many words

# scheme://user:password@host. A number alone after the colon is a port. The password ends at
# the last @ before the path, for those who forgot to write it as %40.
_PASSWORD = re.compile(
    r"""(?P<head>\b[a-z][a-z0-9+.\-]*://[^\s:/?\#@'"<>]*):(?!\d{1,5}(?:[/?\#\s'"]|$))"""
    r"""[^\s@'"<>]*@(?:[^\s/?\#@'"<>]*@)*""",
    re.IGNORECASE,
)
_USER_TOKEN = re.compile(r"""(https?://)[^\s/:?\#@'"<>]+@""", re.IGNORECASE)
# A parameter of a URL: also those by which clouds sign one, as X-Amz-Signature and Azure's sig.
_PARAMETER = re.compile(
    r"([?&;](?:[\w.\-]*(?:password|passwd|secret|token|api[_\-]?key|access[_\-]?key(?:[_\-]?id)?"
    r"""|signature|credential)[\w.\-]*|pwd|sig|key|auth|policy|key-pair-id)=)[^&;\s'"<>#]+""",
    re.IGNORECASE,
)
_SETTING = re.compile(
    r"""\b((?:\w*password|passwd|passphrase|api[_\-]?key|\w+[_\-]secret|private[_\-]key"""
    r"""|\w*(?:hub|hf|access|auth|secret|bearer|session|refresh)[_\-]?(?:token|key))"""
    r"""["']?\s*[:=]\s*["']?)(?!null\b|none\b|\*\*\*)[^\s"',;&}]+""",
    re.IGNORECASE,
)
_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|(?:sk|ghp|gho|ghs|glpat|xox[abp])[-_][\w-]{16,}"
    r"|AKIA[0-9A-Z]{16})\b"
)
_BEARER = re.compile(r"\b(bearer\s+)[\w.~+/-]{8,}=*", re.IGNORECASE)
_VARIABLE = re.compile(
    r"TOKEN(?!IZ)|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|CREDENTIAL", re.IGNORECASE
)
# A variable that says where a secret is kept, and not the secret.
_PLACE = re.compile(r"_(?:PATH|FILE|DIR|URL|URI|HOST)$", re.IGNORECASE)
# Control characters but tab and line feed, and the marks that turn the reading direction.
# Surrogates stand for bytes of a file's name that are no UTF-8: no stream takes them.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def without_secrets(text: str) -> str:
    """The text with passwords left out of URLs, and other secrets as `***`.

    A URL stays one that can be used, with the password from elsewhere (`PGPASSWORD`).
    Doing it twice changes nothing.
    """
    if "://" in text:
        text = _PASSWORD.sub(r"\g<head>@", text)
        text = _USER_TOKEN.sub(rf"\1{HIDDEN}@", text)
        text = _PARAMETER.sub(rf"\1{HIDDEN}", text)
    text = _SETTING.sub(rf"\1{HIDDEN}", text)
    text = _BEARER.sub(rf"\1{HIDDEN}", _TOKEN.sub(HIDDEN, text))
    for secret in _in_environment():
        if secret in text:
            # A password that is a word, as postgres, is hidden as a word: not in postgresql.
            edge = "[A-Za-z]" if secret.isalpha() else "(?!)"
            pattern = rf"(?<!{edge}){re.escape(secret)}(?!{edge})"
            text = re.sub(pattern, HIDDEN, text)
    return text


def tree_without_secrets(value: Any) -> Any:
    """The same for every text in nested mappings and lists; what has a secret's name is hidden.

    Args:
        value: As JSON or YAML has it.
    """
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if _is_secret(key, item) else tree_without_secrets(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [tree_without_secrets(item) for item in value]
    return value


def shown(text: str) -> str:
    """What may be printed: no secret, no control character, not without end."""
    text = printable(without_secrets(text))
    if len(text) > LONGEST:
        return f"{text[:LONGEST]} … ({len(text):,} characters)"
    return text


def printable(text: str) -> str:
    """The text with control characters written out: nothing in it acts on a terminal."""
    return _CONTROL.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def _is_secret(key: object, item: object) -> bool:
    told = item is not None and not isinstance(item, bool | Mapping | list | tuple)
    named = _SETTING.fullmatch(f"{key}={'x' if item else ''}") is not None
    return told and named


def _in_environment() -> list[str]:
    """Values of variables whose names say that they are secret; the longest first."""
    found = {
        value
        for name, value in os.environ.items()
        if len(value) >= SHORTEST
        and _VARIABLE.search(name)
        and not _PLACE.search(name)
        and not os.path.exists(value)
    }
    return sorted(found, key=len, reverse=True)
