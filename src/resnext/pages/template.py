"""Templates of HTML pages, with what pages share built in."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from importlib.resources import files


def read_template(package: str, name: str) -> str:
    """A template of a package; `{{ shared/NAME }}` in it stands for a file beside this module."""
    text = _read(package, name)
    while "{{ shared/" in text:
        text = re.sub(r"\{\{ shared/([\w.]+) \}\}\n?", lambda one: _read(__package__, one[1]), text)
    return text


def fill(template: str, values: Mapping[str, str]) -> str:
    """A page: each `{{ NAME }}` of its template replaced by a value, in which none is replaced."""
    return re.sub(r"\{\{ (\w+) \}\}", lambda one: values[one[1]], template)


def digests(page: str, tag: str) -> str:
    """The sources in a policy that allow all elements `style` or `script` without attributes."""
    parts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    hashes = (base64.b64encode(hashlib.sha256(part.encode()).digest()) for part in parts)
    return " ".join(f"'sha256-{one.decode()}'" for one in hashes)


def _read(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8")
