"""What pages share: one source, built into each when it is written."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

import pytest

from resnext.pages.template import digests, fill, read_template

PAGES = [
    ("resnext.explanation", "page.html"),
    ("resnext.exporting", "page.html"),
    ("resnext.review", "map_page.html"),
    ("resnext.review", "page.html"),
    ("resnext.serving", "docs.html"),
    ("resnext.serving", "page.html"),
    ("resnext.training.report", "report.html"),
]


@pytest.mark.parametrize(("package", "name"), PAGES)
def test_every_page_has_the_shared_colours_once(package: str, name: str) -> None:
    """Seven pages each had their own copy, and a few had drifted."""
    page = read_template(package, name)
    shared = files("resnext.pages").joinpath("base.css").read_text(encoding="utf-8")
    assert page.count(shared) == 1
    own = files(package).joinpath(name).read_text(encoding="utf-8")
    for value in ("#fcfcfb", "#131416", "system-ui", "viewport", "createElement(tag)"):
        assert value not in own
    assert "{{ shared/" not in page
    assert page.startswith("<!doctype html>\n")


def test_shared_files_are_all_used() -> None:
    own = "".join(files(p).joinpath(n).read_text(encoding="utf-8") for p, n in PAGES)
    folder = files("resnext.pages")
    kinds = (".css", ".html", ".js")
    shared = {one.name: one.read_text() for one in folder.iterdir() if one.name.endswith(kinds)}
    used = set(re.findall(r"\{\{ shared/([\w.]+) \}\}", own + "".join(shared.values())))
    assert used == set(shared)


def test_values_are_not_templates() -> None:
    """A folder called "{{ cards }}" was replaced once more."""
    assert fill("<b>{{ a }}</b>{{ b }}", {"a": "{{ b }}", "b": "x"}) == "<b>{{ b }}</b>x"
    with pytest.raises(KeyError):
        fill("{{ missing }}", {})


def test_the_hash_is_that_of_the_content() -> None:
    """A browser refuses styles and scripts whose hash is not in the policy."""
    wanted = base64.b64encode(hashlib.sha256(b"let a\n").digest()).decode()
    page = '<script>let a\n</script><script id="data">{}</script><style></style>'
    assert digests(page, "script") == f"'sha256-{wanted}'"
    assert digests("<p>", "style") == ""
