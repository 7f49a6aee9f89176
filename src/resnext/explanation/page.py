"""Explanations as one HTML page without anything outside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from resnext.explanation.deletion import FRACTIONS
from resnext.explanation.explanation import METHODS, Explanation
from resnext.explanation.overlay import enlarged
from resnext.explanation.sheet import legend, title, verdict
from resnext.pages.template import fill, read_template
from resnext.prediction.contact_sheet import by_class

_SIDE = 480  # pixels of a picture's longer side


def explanation_page(explanations: Sequence[Explanation], model: str) -> str:
    """The page, as HTML.

    Args:
        explanations: What to show, in order.
        model: Name of the model.
    """
    cards = "\n".join(map(_card, explanations))
    methods = {explanation.how: _READING[explanation.how] for explanation in explanations}
    reading = "\n".join(f"<p>{text}</p>" for text in methods.values())
    values = {"model": escape(model), "reading": reading, "cards": cards}
    return fill(read_template("resnext.explanation", "page.html"), values)


_READING = {
    "map": "<b>Exact class map.</b> The values of all places and the bias add up to the logit.",
    "ig": "<b>Integrated gradients.</b> The values of all pixels add up to the change of the logit "
    "from an image of the mean colour.",
    "occlusion": "<b>Occlusion.</b> Colours show by how much the logit changes if the place is "
    "hidden.",
    "layercam": "<b>LayerCAM.</b> Features times positive gradients; it has no unit.",
}


def _card(explanation: Explanation) -> str:
    name = escape(explanation.name)
    parts = "".join(
        f"<span>{_swatch(colour)}{escape(text)}</span>" for colour, text in legend(explanation)
    )
    facts = [f"{METHODS[explanation.how]}"]
    if explanation.label != explanation.predicted:
        facts.append(f"predicted is {explanation.predicted}")
    if explanation.completeness_error is not None:
        facts.append(f"sum off by {explanation.completeness_error:.0e}")
    h, w = explanation.map.shape
    facts.append(f"{w}×{h} places")
    check = ""
    if explanation.check is not None:
        kind = "good" if explanation.check.passed else "bad"
        check = f'<p class="check {kind}">{escape(verdict(explanation))}</p>{_curve(explanation)}'
    return (
        f'<article><div class="pictures">'
        f'<img src="{image_url(enlarged(explanation.image, _SIDE))}" alt="{name}">'
        f'<img src="{image_url(explanation.overlay(_SIDE))}" '
        f'alt="Evidence for {escape(title(explanation))} in {name}"></div>'
        f"<h2><bdi>{escape(title(explanation))}</bdi><small>{explanation.probability:.1%}</small></h2>"
        f'<p class="legend">{parts}</p>{check}{_similar(explanation)}'
        f'<p class="soft"><bdi>{name}</bdi> · {escape(", ".join(facts))}</p></article>'
    )


def _similar(explanation: Explanation) -> str:
    """Similar images, class by class."""
    rows = ""
    for row in by_class(explanation.like):
        label = "Similar images" if row[0].label is None else f"Similar images of {row[0].label}"
        pictures = "".join(
            f'<figure><img src="{image_url(one.thumbnail)}" alt="{escape(one.name)}" '
            f'title="{escape(one.name)}"><figcaption>{one.distance:.3f}</figcaption></figure>'
            for one in row
        )
        rows += f'<p class="key like"><bdi>{escape(label)}</bdi></p>'
        rows += f'<div class="similar">{pictures}</div>'
    return rows


def _swatch(colour: str) -> str:
    return f'<i style="background:{colour}"></i>' if colour else ""


def _curve(explanation: Explanation) -> str:
    """The deletion curve of the map, and that of random maps dashed."""
    check = explanation.check
    assert check is not None
    low, high = (pick(*check.curve, *check.random) for pick in (min, max))
    span = (high - low) or 1.0

    def line(values: Sequence[float]) -> str:
        points = zip((0.0, *FRACTIONS), values, strict=True)
        return " ".join(
            f"{4 + 380 * x / 0.5:.0f},{4 + 56 * (high - y) / span:.1f}" for x, y in points
        )

    return (
        '<svg viewBox="0 0 388 64" role="img" aria-label="The explained number while up to half of '
        f'the image is hidden"><polyline class="random" points="{line(check.random)}"/>'
        f'<polyline class="own" points="{line(check.curve)}"/></svg>'
        '<p class="key"><span>Up to half of the image hidden:</span>'
        '<span><i class="own"></i>where the map is strongest</span>'
        '<span><i class="random"></i>at random</span></p>'
    )


def image_url(image: Image.Image) -> str:
    """An image inside an address: JPEG, or PNG if it is so small that its pixels are seen."""
    kind = "png" if max(image.size) < 64 else "jpeg"
    content = io.BytesIO()
    image.save(content, kind, **({"quality": 85} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"
