"""From a folder of photographs to a page, by commands; and what cannot become a page."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import photo_folder, run_cli, tiny_network
from page_cases import give, needs_browser, opened

import resnext
from resnext import Card, Preprocessing
from resnext.exporting import page as page_module
from resnext.neighbours.model_files import index_path

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
@needs_browser
def test_train_then_export_then_open(
    browser: Any, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    """The page has the index of `train`, and answers as `predict` does."""
    monkeypatch.chdir(tmp_path)
    photos = photo_folder(tmp_path / "photos", count=40, size=40)
    options = ["--epochs", 1, "--model", "resnext_nano_32px", "--size", 32]
    code, _, error = run_cli(capsys, monkeypatch, "train", "photos", *options)
    assert code == 0, error
    code, said, error = run_cli(capsys, monkeypatch, "export", "model.safetensors", "--to", "page")
    assert code == 0, error
    assert error.startswith("resnext: The page holds small copies of the images of the index")
    assert error.count("\n") == 1
    assert said.startswith("model.html: page for browsers, ")
    new = [photos / "cat" / "001.jpg", photos / "dog" / "002.jpg"]
    wanted = resnext.predict("model.safetensors", new, top=2)
    page = opened(browser, tmp_path / "model.html")
    give(page, *new)
    names = page.eval_on_selector_all("#strip span", "spans => spans.map((x) => x.textContent)")
    for one, name in zip(wanted, names, strict=True):
        likely = one.label if one.sure else "Not sure"
        assert name == ("None of these" if one.unknown else likely)
    assert page.eval_on_selector_all("#similar canvas", "all => all.length") == 6
    code, _, error = run_cli(capsys, monkeypatch, "export", "model.safetensors", "--to", "page")
    assert (code, error) == (
        2,
        "resnext: model.html exists. Give another name, or overwrite (--overwrite).\n",
    )


def test_what_cannot_become_a_page(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """Each in one line with exit code 2, and nothing is written."""
    if shutil.which("node") is None:
        pytest.skip("needs Node.js")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(page_module, "runtime", lambda: page_module.Runtime(b"", b""))
    monkeypatch.setattr("resnext.exporting.targets.runtime", page_module.runtime)
    card = Card(("cat", "dog"), Preprocessing(16, 16))
    resnext.save(tiny_network(card=card), "pets.safetensors")
    other_network = tiny_network(card=card)
    with torch.no_grad():
        other_network.fc.weight.add_(1)
    resnext.save(other_network, "other.safetensors")
    resnext.save(tiny_network(), "bare.safetensors")
    deep = Card(("cat", "dog"), Preprocessing(16, 16, value_range=(0, 4095)))
    resnext.save(tiny_network(card=deep), "deep.safetensors")
    photos = photo_folder(tmp_path / "photos")
    assert run_cli(capsys, monkeypatch, "index", photos, "--model", "other.safetensors")[0] == 0
    for name in ("file", "other.html"):
        Path(name).write_text("")
    other = index_path(Path("other.safetensors"))
    before = sorted(tmp_path.rglob("*"))
    for arguments, line in (
        (["pets.safetensors", "--index", other], "other.index was made with other weights than"),
        (["pets.safetensors", "--index", "no.index"], "no.index does not exist. Make it with"),
        (["pets.safetensors", "--index", "pets.safetensors"], "is not an index of images"),
        (["bare.safetensors"], "labels"),
        (["deep.safetensors"], "its card has a value_range"),
        (["none.safetensors"], "none.safetensors"),
        (["other.safetensors"], "other.html exists"),  # a line about its index came before
        (["pets.safetensors", "--out", "file/page.html"], "file/page.html cannot be written"),
        (["pets.safetensors", "--out", "photos.txt"], "a page may also be a folder"),
        (["pets.safetensors", "--input", "images"], "input of --to page must be one of pixels"),
    ):
        code, said, error = run_cli(capsys, monkeypatch, "export", *arguments, "--to", "page")
        assert (code, said) == (2, ""), arguments
        assert line in error
        assert error.count("\n") == 1, error
        assert sorted(tmp_path.rglob("*")) == before
    arguments = ["pets.safetensors", "--index", other]
    code, _, error = run_cli(capsys, monkeypatch, "export", *arguments)
    assert (code, "Only a page holds an index" in error) == (2, True)
