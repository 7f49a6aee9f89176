"""`explain`: why a classifier gave an image its class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from resnext.card import Preprocessing, card_of
from resnext.checks import at_least, brief, is_finite
from resnext.errors import InputError
from resnext.explanation.classes import GAMMA, Target, choose_target
from resnext.explanation.deletion import check_by_deletion
from resnext.explanation.explanation import METHODS, Explanation
from resnext.explanation.maps import class_map
from resnext.explanation.occlusion import Score, occlusion_map
from resnext.explanation.overlay import Box
from resnext.foreign_names import answering_call
from resnext.inference.opener import evaluation_mode, open_runner
from resnext.inference.runner import MapRunner, Runner, top_classes
from resnext.neighbours.index import Index, Neighbour, open_index
from resnext.prediction.images import to_pixels
from resnext.prediction.inputs import decode

if TYPE_CHECKING:
    from resnext.explanation.sanity import SanityCheck
    from resnext.inference.engines.torch import TorchRunner
    from resnext.network import ResNeXt
    from resnext.prediction.inputs import Picture

Method = Literal["map", "occlusion", "layercam", "ig"]
_KEPT_SIDE = 640  # pixels of the image that an explanation keeps
_BATCH = 16  # altered copies of the image at a time


@answering_call
def explain(
    model: ResNeXt | Runner | str | Path,
    image: Picture,
    *,
    label: str | int | None = None,
    against: str | int | bool | None = None,
    how: Method | None = None,
    stage: int | None = None,
    fine: bool = False,
    gamma: float = GAMMA,
    check: bool = False,
    like: int = 0,
    index: Index | None = None,
    device: str = "auto",
    plan: bool = True,
) -> Explanation:
    """Why an image got a class: which places spoke for it, and which against it.

    By default this is the exact class map: a logit is the average, over the places of the last
    feature map, of what each place adds, plus a bias. It costs little more than a prediction, and
    works on every engine.

    Args:
        model: A network with a card, the result of `resnext.optimize`, a model file or a catalog
            name. To explain many images, give a network or a runner, which is not opened again.
        image: An image file, a Pillow image, or an array `(h, w)` or `(h, w, 3)` of 8-bit values.
        label: The class to explain, by name or number; None for the most likely one.
        against: Explain why it is this class and not another: a class, or True for the most likely
            other one. None does so if the model is not sure; False never does.
        how: "map"; "occlusion", which hides one part after another (slow, any model); "layercam" or
            "ig" (integrated gradients), in torch. None for "map", or "layercam" at an early stage.
        stage: The stage whose feature map is used, from 1; None for the last. Maps of earlier
            stages are finer, but only "layercam" has them.
        fine: Give the network the image at twice the size, for a map of twice the resolution. The
            prediction then is the one at that size. Runs in torch, without a plan.
        gamma: Weight of the other class: 0 explains the class alone, 1 the difference of logits.
        check: Whether to check the map by hiding what it points at, which takes 106 predictions.
        like: Number of similar images to return for each of the two most likely classes.
        index: Where to search for them; None for the index next to the model file.
        device: "auto", or a torch device.
        plan: Whether to use the plan that `resnext optimize` saved next to a model file.

    Raises:
        CheckpointError: The file holds no usable model, or the index is missing or of another one.
        DataError: The image cannot be read.
        InputError: The model has no labels, a class is unknown, an argument is out of range, or the
            logits are not finite.
    """
    _check_method(how, stage)
    at_least("like", like, 0, error=InputError)
    if not is_finite(gamma) or not 0 <= gamma <= 1:
        raise InputError(f"gamma must be from 0 to 1, not {brief(gamma)}.")
    in_torch = fine or how in ("layercam", "ig")
    with evaluation_mode(model):
        runner = open_runner(model, device=device, batch=1, plan=plan and not in_torch)
        card = card_of(runner)
        how, stage = _choose_method(how, stage, runner.config.num_stages)
        in_torch = in_torch or how == "layercam"
        preprocessing = _finer(card.preprocessing) if fine else card.preprocessing
        if in_torch:
            runner = _torch_runner(runner, device)
        whole = decode(image, preprocessing.colour, values=preprocessing.value_range)
        x = to_pixels("", whole, preprocessing)
        logits, features = _outputs(runner, x, how)
        if not np.isfinite(logits).all():
            raise InputError(
                "The logits of this image contain NaN or infinity, which nothing can explain. "
                "resnext doctor checks the weights."
            )
        target = choose_target(logits, card, label, against, gamma)
        values, bias = _map(runner, x, features, preprocessing, target, how, stage)
        checked = None
        if check:
            checked = check_by_deletion(x, values, score_of(runner, target), _BATCH)
        order, probabilities = top_classes(logits[None], card.temperature, len(logits))
        similar: list[Neighbour] = []
        if like:
            index = index or open_index(model, runner=runner)
            index.check(card.preprocessing)
            usual = to_pixels("", whole, card.preprocessing)
            two = [card.labels[i] for i in order[0, :2]]
            similar = index.of_classes(runner.pixels(usual[None])[1][0], two, like)
    score = float(logits.astype(np.float64) @ target.weights(len(logits)))
    error = None
    if how in ("map", "ig"):
        off = abs(values.sum(dtype=np.float64) + bias - score)
        error = float(off / max(np.abs(logits).max(), 1e-30))
    return Explanation(
        name=str(image) if isinstance(image, str | Path) else "image",
        label=card.labels[target.label],
        against=None if target.against is None else card.labels[target.against],
        predicted=card.labels[order[0, 0]],
        probability=float(probabilities[0, order[0] == target.label][0]),
        logit=float(logits[target.label]),
        score=score,
        map=values,
        bias=bias,
        completeness_error=error,
        how=how,
        stage=stage,
        target=target,
        image=_smaller(whole),
        crop=crop_box(whole.width, whole.height, preprocessing),
        check=checked,
        like=tuple(similar),
    )


def check_sanity(
    model: ResNeXt | Runner | str | Path,
    image: Picture,
    explanation: Explanation,
    *,
    fine: bool = False,
    device: str = "auto",
) -> SanityCheck:
    """Whether a map depends on what the network learned: its layers are randomized from the top.

    Args:
        model: The model that was explained; it is left unchanged. Runs in torch.
        image: The image that was explained.
        explanation: The explanation; its classes, method and stage are used.
        fine: Whether the image was given at twice the size.
        device: "auto", or a torch device.

    Raises:
        InputError: The network behind the model is not known.
    """
    from resnext.explanation.sanity import check_by_randomizing
    from resnext.inference.engines.torch import TorchRunner

    with evaluation_mode(model):
        runner = open_runner(model, device=device, batch=1, plan=False)
        card = card_of(runner)
        preprocessing = _finer(card.preprocessing) if fine else card.preprocessing
        x = to_pixels("", image, preprocessing)

        def compute(network: ResNeXt) -> np.ndarray:
            one, how = TorchRunner(network), cast("Method", explanation.how)
            _, features = _outputs(one, x, how)
            target, stage = explanation.target, explanation.stage
            return _map(one, x, features, preprocessing, target, how, stage)[0]

        return check_by_randomizing(_torch_runner(runner, device).network, compute)


def crop_box(width: int, height: int, preprocessing: Preprocessing) -> Box:
    """What the network sees of an image, as `data.decoding.resize_and_crop` cuts it.

    Args:
        width: Width of the image, pixels.
        height: Height of the image, pixels.
        preprocessing: Its size and crop.

    Returns:
        Left, top, right and bottom as fractions of the image; outside 0 to 1 the input is black.
    """
    longer = int(preprocessing.resize * max(width, height) / min(width, height))
    sides = (preprocessing.resize, longer) if width <= height else (longer, preprocessing.resize)
    size = preprocessing.size
    starts = [round((side - size) / 2) if side >= size else -((size - side) // 2) for side in sides]
    (w, h), (left, top) = sides, starts
    return left / w, top / h, (left + size) / w, (top + size) / h


def score_of(runner: Runner, target: Target) -> Score:
    """Computes the explained number of images with a runner."""
    weights = target.weights(runner.config.num_classes)
    return lambda x: runner.pixels(x)[0].astype(np.float64) @ weights


def _check_method(how: Method | None, stage: int | None) -> None:
    if how is not None and how not in METHODS:
        raise InputError(f"how must be one of {', '.join(METHODS)}, not {brief(how)}.")
    if stage is None:
        return
    at_least("stage", stage, 1, error=InputError)
    if how in ("occlusion", "ig"):
        raise InputError(f"The method {how} shows pixels, not a stage. Leave out the stage.")


def _choose_method(how: Method | None, stage: int | None, stages: int) -> tuple[Method, int]:
    """The method, and the stage whose feature map is shown: 0 for methods that show pixels."""
    if stage is not None and stage > stages:
        raise InputError(f"stage must be from 1 to {stages}, the network's last, not {stage}.")
    stage = stage or stages
    if how == "map" and stage < stages:
        raise InputError(
            f"Only the last stage, {stages}, has an exact class map. Use the method layercam at "
            f"stage {stage}."
        )
    if how is None:
        how = "map" if stage == stages else "layercam"
    return how, 0 if how in ("occlusion", "ig") else stage


def _outputs(
    runner: Runner, x: UInt8[np.ndarray, "h w c"], how: Method
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of an image and its last feature map, which only the method "map" needs."""
    if how != "map":
        return runner.pixels(x[None])[0][0], np.zeros((0, 0, 0), np.float32)
    if not isinstance(runner, MapRunner):
        raise InputError(
            f"{type(runner).__name__} returns no feature maps. Use the method occlusion."
        )
    logits, features = runner.maps(x[None])
    return logits[0], features[0]


def _map(
    runner: Runner,
    x: UInt8[np.ndarray, "h w c"],
    features: np.ndarray,
    preprocessing: Preprocessing,
    target: Target,
    how: Method,
    stage: int,
) -> tuple[np.ndarray, float]:
    """The map, and the share of the explained number that belongs to no place."""
    if how == "map":
        return class_map(features, cast("MapRunner", runner).classifier, target)
    if how == "occlusion":
        return occlusion_map(x, score_of(runner, target), _BATCH), 0.0
    from resnext.explanation.gradients import integrated_gradients, layercam

    network = cast("TorchRunner", runner).network
    if how == "layercam":
        return layercam(network, x, preprocessing, target, stage), 0.0
    return integrated_gradients(network, x, preprocessing, target)


def _torch_runner(runner: Runner, device: str) -> TorchRunner:
    """The network behind a runner, in torch."""
    from resnext.inference.engines.torch import TorchRunner
    from resnext.inference.optimized import Optimized
    from resnext.system.device import pick_device

    if isinstance(runner, Optimized):
        network = runner.network.to(pick_device(device)).eval()
        network.card = network.card or runner.card
        return TorchRunner(network)
    if not isinstance(runner, TorchRunner):
        name = getattr(runner, "path", type(runner).__name__)
        raise InputError(
            f"The network behind {name} is not known, only its answers. Give the model file that "
            f"it was made from, or use the method map or occlusion at the usual size."
        )
    return runner


def _finer(preprocessing: Preprocessing) -> Preprocessing:
    return replace(preprocessing, size=2 * preprocessing.size, resize=2 * preprocessing.resize)


def _smaller(image: Image.Image) -> Image.Image:
    """A copy, which keeps no file open and little memory."""
    copy = image.copy()
    copy.thumbnail((_KEPT_SIDE, _KEPT_SIDE))
    return copy
