"""Other names of public checkpoints: of older versions, hubs, and other libraries. Loads no torch.

Sources: timm 0.4 to 1.0, its table of deprecated names; the hubs of facebookresearch/WSL-Images and
semi-supervised-ImageNet1K-models; `torchvision.models` and mmcv's `torchvision://`; mmcls's and
mmcv's tables of renamed checkpoints; Lucid 2's enumerations.
"""

from __future__ import annotations

import re

from resnext.architectures import split_name, variants

_BRANCH = r"(?::(?:main|master|v[\w.]+))?[:/]"  # torch.hub: owner/repository:branch
_PROVIDERS = (  # what stands before a name, and what replaces it
    (r"(?:https?://huggingface\.co/|hf[-_]hub:|hf://)?timm/(?=[^/]+/?$)", "timm/"),
    (r"(?:huggingface|rwightman)/pytorch-image-models" + _BRANCH, "timm/"),
    (r"facebookresearch/(?:wsl-images|semi-supervised-imagenet1k-models)" + _BRANCH, ""),
    (r"pytorch/vision" + _BRANCH, "torchvision/"),
    (r"(?:torchvision|modelzoo)://", "torchvision/"),
    (r"torchvision\.(?:models\.)?(?:resnet\.)?", "torchvision/"),
    (r"mm(?:cls|pretrain)(?:://|/)", "mmcls/"),
    (r"openmmlab://", "open-mmlab://"),
    (r"(?=(?:jhu|detectron2)/)", "open-mmlab://"),
    (r"open-mmlab://(?=resnext\w+_gn)", "open-mmlab://jhu/"),
    (r"resnext_(?=\w+_weights\.)", "lucid/resnext_"),  # Lucid's enumerations
)
_TAGS = {  # what names weights → timm's tag
    "tv": "tv_in1k",
    "ig": "fb_wsl_ig1b_ft_in1k",
    "wsl": "fb_wsl_ig1b_ft_in1k",
    "ssl": "fb_ssl_yfcc100m_ft_in1k",
    "swsl": "fb_swsl_ig1b_ft_in1k",
    "gluon": "gluon_in1k",
}
_NEWEST = {"resnext101_64x4d": "imagenet1k_v1"}  # torchvision's DEFAULT, otherwise V2


def canonical(name: str) -> str:
    """One spelling for all names of a checkpoint, in lower case.

    Args:
        name: A name of the catalog, or one that another library or an older version has for it.
    """
    text = name.strip().lower()
    for pattern, replacement in _PROVIDERS:
        text = re.sub(f"^{pattern}", replacement, text)
    home, separator, rest = text.rpartition("/")
    rest = re.sub(r"(_32x\d+)(?=_wsl|$)", r"\1d", rest.replace("-", "_"))  # ig_resnext101_32x8
    variant, tag = split_name(rest)
    if variant not in variants():
        return text
    tag = re.sub(r"[^a-z0-9]", "_", _TAGS.get(tag, tag)).strip("_")
    if home == "torchvision" and not tag:
        tag = "imagenet1k_v1"  # what pretrained=True has always meant
    tag = tag.removeprefix("weights_")
    if home == "lucid":
        tag = {"imagenet1k": "in1k", "default": "in1k"}.get(tag, tag)
    elif tag == "default":
        tag = _NEWEST.get(variant, "imagenet1k_v2")
    if home == "mmcls" or re.match(r"b32x8_imagenet|8xb32_in1k", tag):
        home, tag = "mmcls", "8xb32_in1k"
    home = "" if home in ("timm", "torchvision", "mmcls") else f"{home}{separator}"
    return f"{home}{variant}.{tag}" if tag else f"{home}{variant}"
