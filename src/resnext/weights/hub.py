"""Sharing on the Hugging Face Hub: writes a folder that timm can also load, and uploads it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from resnext.architectures import nearest_variant
from resnext.card import Card, card_of
from resnext.dialects.table import DIALECTS
from resnext.errors import CheckpointError, InputError
from resnext.network import ResNeXt
from resnext.summary import summarize
from resnext.weights.save import save


def save_pretrained(model: ResNeXt, folder: str | Path, *, repo: str = "owner/name") -> Path:
    """Write a folder that `resnext.load` can read, and timm too if it has the architecture.

    Args:
        model: A network with a card.
        folder: Where to write model.safetensors, config.json and README.md, the model card.
        repo: `owner/name` in the model card's example.

    Returns:
        The folder.

    Raises:
        InputError: The model has no card with labels.
        CheckpointError: A file cannot be written.
    """
    card, folder = card_of(model), Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save(model, folder / "model.safetensors")
        values = _config(model, card)
        (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(model_card(model, repo), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error}.") from error
    return folder


def push(model: ResNeXt, repo: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a model with its card to the Hugging Face Hub.

    Args:
        model: A network with a card.
        repo: `owner/name`; created if it does not exist.
        private: Whether a new repository is private.
        token: An access token; by default that of `hf auth login` or `HF_TOKEN`.

    Returns:
        The address of the commit.

    Raises:
        InputError: `repo` is not `owner/name`, the model has no labels, or huggingface_hub is not
            installed.
        CheckpointError: The upload fails.
    """
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise InputError(f"The repository must be owner/name, not {repo!r}.")
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise InputError("Uploading needs huggingface_hub: pip install 'resnext[hub]'.") from error
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, repo=repo)
        try:
            api = HfApi(token=token)
            api.create_repo(repo, private=private, exist_ok=True)
            return str(api.upload_folder(repo_id=repo, folder_path=folder).commit_url)
        except Exception as error:  # the Hub's errors have no common root besides OSError
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise CheckpointError(f"{repo} cannot be uploaded: {reason}") from error


def model_card(model: ResNeXt, repo: str = "owner/name") -> str:
    """The model card as Markdown with a header: architecture, cost, accuracy, use, origin.

    Raises:
        InputError: The model has no card with labels.
    """
    card, config = card_of(model), model.config
    preprocessing = card.preprocessing
    cost = summarize(config, preprocessing.size)
    architecture = _variant_name(model) or "a ResNeXt"
    title = architecture if repo == "owner/name" else repo.partition("/")[2]
    header = ["library_name: resnext", "pipeline_tag: image-classification"]
    header += [f"license: {card.licence}"] if card.licence else []
    header += ["tags:", "- image-classification", "- resnext", "- pytorch"]
    header += [f"- {x.name}" for x in DIALECTS.values() if x.hub_config(config, card)]
    facts = [
        ("Architecture", architecture),
        ("Parameters", f"{cost.parameters:,}"),
        ("Cost", f"{cost.macs / 1e9:.2f} GMACs for {preprocessing.size}×{preprocessing.size}"),
        ("Classes", f"{len(card.labels):,}: {_shown(card.labels)}"),
        (
            "Preprocessing",
            f"shorter side to {preprocessing.resize} ({preprocessing.interpolation}), "
            f"centre {preprocessing.size}, {preprocessing.colour}, mean "
            f"{_numbers(preprocessing.mean)}, deviation {_numbers(preprocessing.std)}",
        ),
        ("Licence", card.licence or "not stated"),
    ]
    lines = ["---", *header, "---", "", f"# {title}", ""]
    lines += ["| | |", "|---|---|", *(f"| {what} | {value} |" for what, value in facts), ""]
    if card.metrics:
        lines += ["## Measured", "", "| | |", "|---|---|"]
        lines += [f"| {what} | {value:.4g} |" for what, value in card.metrics.items()] + [""]
    lines += ["## Use", "", "```python", "import resnext", ""]
    lines += [f'model = resnext.load("hf://{repo}")', 'resnext.predict(model, "photo.jpg")']
    lines += ["```", ""]
    if card.provenance:
        lines += ["## Origin", "", "| | |", "|---|---|"]
        lines += [f"| {what} | {_cell(value)} |" for what, value in card.provenance.items()] + [""]
    return "\n".join(lines)


def _variant_name(model: ResNeXt) -> str:
    name, other = nearest_variant(model.config)
    return "" if other else name


def _config(model: ResNeXt, card: Card) -> dict[str, Any]:
    """config.json: our labels, and the entries for each library that has the architecture."""
    values: dict[str, Any] = {}
    for dialect in DIALECTS.values():
        values |= dialect.hub_config(model.config, card)
    values |= {"library": "resnext", "label_names": list(card.labels)}
    return {**values, "num_classes": model.config.num_classes}


def _shown(labels: tuple[str, ...]) -> str:
    return ", ".join(labels[:10]) + (", …" if len(labels) > 10 else "")


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _cell(value: object) -> str:
    text = "; ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")[:300]
