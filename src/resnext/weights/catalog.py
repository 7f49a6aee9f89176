"""Public checkpoints of the ResNeXt family, as one table. Loads no torch.

Accuracies are published ones, in percent on ImageNet-1k's validation images, with the preprocessing
of the measurement; for timm, the accuracy at the test size in its results table.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from resnext.architectures import canonical_name
from resnext.architectures import variant as _config_of
from resnext.card import Card, Colour, Interpolation, Preprocessing
from resnext.checks import brief
from resnext.config import ResNeXtConfig
from resnext.errors import CheckpointError, ConfigError, UnknownNameError
from resnext.foreign_names import answering_call
from resnext.summary import summarize
from resnext.weights.aliases import canonical

_TIMM = "https://github.com/huggingface/pytorch-image-models/releases/download/"
_GLUON = "https://github.com/rwightman/pytorch-pretrained-gluonresnet/releases/download/v0.1/"
_TORCH = "https://download.pytorch.org/models/"
_LUA = "https://s3.amazonaws.com/resnext/imagenet_models/"
_SSL = "https://dl.fbaipublicfiles.com/semiweaksupervision/model_files/"
_MMCLS = "https://download.openmmlab.com/mmclassification/v0/resnext/"
_MMLAB = "https://download.openmmlab.com/pretrain/third_party/"
_APACHE, _BSD, _NC, _UNKNOWN = "apache-2.0", "bsd-3-clause", "cc-by-nc-4.0", ""
_LUCID2 = "hf://ChanLumerico/lucid/weights/resnext/"
_GN = (("norm", "group"),)
_GN_WS = (*_GN, ("conv", "weight_standardized"))
_CUBIC: Interpolation = "bicubic"
_COMMERCIAL = {"apache-2.0", "bsd-3-clause", "mit"}
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

Data = Literal["imagenet-1k", "imagenet-12k"]
_SOURCES = {
    "torchvision": "torchvision 0.28, meta of its weights",
    "timm": "timm, results/results-imagenet.csv at 0173a13",
    "mmcls": "OpenMMLab, configs/resnext/metafile.yml",
    "mmdet": "",
    "lucid": "Lucid 2, list of its weights",
    "lucid3": "Lucid 3, meta of its weights",
    "torch7": "github.com/facebookresearch/ResNeXt, README",
    "wsl": "github.com/facebookresearch/WSL-Images, README",
}


class CatalogEntry(NamedTuple):
    """A public checkpoint, with everything needed to use it."""

    name: str
    variant: str
    location: str
    """Its URL, or `hf://owner/repo[/file]`."""
    licence: str
    """SPDX identifier; empty if the publisher names none."""
    top1: float | None
    """Published accuracy on ImageNet-1k in percent; None if unpublished."""
    top5: float | None
    dialect: str = "timm"
    size: int = 224
    resize: int = 256
    interpolation: Interpolation = "bilinear"
    data: Data = "imagenet-1k"
    colour: Colour = "RGB"
    fields: tuple[tuple[str, str | int], ...] = ()
    """Fields of the config in which it differs from its variant."""
    published_sha256: str = ""
    measured_by: str = ""

    @property
    def sha256(self) -> str:
        """The published SHA-256, or its first digits from the file's name; empty if unpublished."""
        in_name = re.search(r"-([0-9a-f]{8,64})\.(?:pth|safetensors)$", self.location)
        return self.published_sha256 or (in_name[1] if in_name else "")

    @property
    def source(self) -> str:
        """Where the accuracies were published; empty without any."""
        return _SOURCES[self.measured_by or self.dialect] if self.top1 is not None else ""

    @property
    def config(self) -> ResNeXtConfig:
        """Its architecture."""
        return _config_of(self.variant, num_classes=len(self.labels), **dict(self.fields))

    @property
    def labels(self) -> tuple[str, ...]:
        """Name of each class, in the order of the logits."""
        return labels(self.data)

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of its images."""
        mean, std = (x[::-1] if self.colour == "BGR" else x for x in _IMAGENET)
        return Preprocessing(
            self.size, self.resize, self.interpolation, mean, std, colour=self.colour
        )

    @property
    def gmacs(self) -> float:
        """Billions of multiply-accumulates for one image at its image size."""
        return summarize(self.config, self.size).macs / 1e9

    @property
    def commercial(self) -> bool:
        """Whether its licence is known and allows commercial use."""
        return self.licence in _COMMERCIAL

    @property
    def card(self) -> Card:
        """Labels, preprocessing, published accuracy, origin and licence."""
        published = {"imagenet_top1": self.top1, "imagenet_top5": self.top5}
        return Card(
            labels=self.labels,
            preprocessing=self.preprocessing,
            metrics={name: x / 100 for name, x in published.items() if x is not None},
            provenance={"checkpoint": self.name, "url": self.location, "measured": self.source},
            licence=self.licence,
        )


# fmt: off
_TABLE: tuple[CatalogEntry, ...] = (
    CatalogEntry("ResNeXt50_32X4D_Weights.IMAGENET1K_V1", "resnext50_32x4d", _TORCH + "resnext50_32x4d-7cdf4587.pth", _BSD, 77.618, 93.698, "torchvision"),
    CatalogEntry("ResNeXt50_32X4D_Weights.IMAGENET1K_V2", "resnext50_32x4d", _TORCH + "resnext50_32x4d-1a0047aa.pth", _BSD, 81.198, 95.34, "torchvision", resize=232),
    CatalogEntry("ResNeXt101_32X8D_Weights.IMAGENET1K_V1", "resnext101_32x8d", _TORCH + "resnext101_32x8d-8ba56ff5.pth", _BSD, 79.312, 94.526, "torchvision"),
    CatalogEntry("ResNeXt101_32X8D_Weights.IMAGENET1K_V2", "resnext101_32x8d", _TORCH + "resnext101_32x8d-110c445d.pth", _BSD, 82.834, 96.228, "torchvision", resize=232),
    CatalogEntry("ResNeXt101_64X4D_Weights.IMAGENET1K_V1", "resnext101_64x4d", _TORCH + "resnext101_64x4d-173b62eb.pth", _BSD, 83.246, 96.454, "torchvision", resize=232),
    CatalogEntry("resnext50_32x4d.a1_in1k", "resnext50_32x4d", _TIMM + "v0.1-rsb-weights/resnext50_32x4d_a1_0-b5a91a1d.pth", _APACHE, 81.466, 95.174, size=288, resize=288, interpolation=_CUBIC),
    CatalogEntry("resnext50_32x4d.a1h_in1k", "resnext50_32x4d", _TIMM + "v0.1-rsb-weights/resnext50_32x4d_a1h-0146ab0a.pth", _APACHE, 82.014, 95.934, size=288, resize=288, interpolation=_CUBIC),
    CatalogEntry("resnext50_32x4d.a2_in1k", "resnext50_32x4d", _TIMM + "v0.1-rsb-weights/resnext50_32x4d_a2_0-efc76add.pth", _APACHE, 81.304, 95.096, size=288, resize=288, interpolation=_CUBIC),
    CatalogEntry("resnext50_32x4d.a3_in1k", "resnext50_32x4d", _TIMM + "v0.1-rsb-weights/resnext50_32x4d_a3_0-3e450271.pth", _APACHE, 79.268, 94.306, size=224, resize=235, interpolation=_CUBIC),
    CatalogEntry("resnext50_32x4d.fb_ssl_yfcc100m_ft_in1k", "resnext50_32x4d", _SSL + "semi_supervised_resnext50_32x4-ddb3e555.pth", _NC, 80.338, 95.398),
    CatalogEntry("resnext50_32x4d.fb_swsl_ig1b_ft_in1k", "resnext50_32x4d", _SSL + "semi_weakly_supervised_resnext50_32x4-72679e44.pth", _NC, 82.174, 96.222),
    CatalogEntry("resnext50_32x4d.gluon_in1k", "resnext50_32x4d", _GLUON + "gluon_resnext50_32x4d-e6a097c1.pth", _APACHE, 79.36, 94.43, interpolation=_CUBIC),
    CatalogEntry("resnext50_32x4d.ra_in1k", "resnext50_32x4d", _TIMM + "v0.1-weights/resnext50_32x4d_ra-d733960d.pth", _APACHE, 80.698, 95.39, size=288, resize=303, interpolation=_CUBIC),
    CatalogEntry("resnext50_32x4d.tv2_in1k", "resnext50_32x4d", _TORCH + "resnext50_32x4d-1a0047aa.pth", _BSD, 81.182, 95.34, size=224, resize=232),
    CatalogEntry("resnext50_32x4d.tv_in1k", "resnext50_32x4d", _TORCH + "resnext50_32x4d-7cdf4587.pth", _BSD, 77.618, 93.696),
    CatalogEntry("resnext50d_32x4d.bt_in1k", "resnext50d_32x4d", _TIMM + "v0.1-weights/resnext50d_32x4d-103e99f8.pth", _APACHE, 80.664, 95.42, size=288, resize=303, interpolation=_CUBIC),
    CatalogEntry("resnext101_32x4d.fb_ssl_yfcc100m_ft_in1k", "resnext101_32x4d", _SSL + "semi_supervised_resnext101_32x4-dc43570a.pth", _NC, 80.924, 95.734),
    CatalogEntry("resnext101_32x4d.fb_swsl_ig1b_ft_in1k", "resnext101_32x4d", _SSL + "semi_weakly_supervised_resnext101_32x4-3f87e46b.pth", _NC, 83.232, 96.758),
    CatalogEntry("resnext101_32x4d.gluon_in1k", "resnext101_32x4d", _GLUON + "gluon_resnext101_32x4d-b253c8c4.pth", _APACHE, 80.34, 94.93, interpolation=_CUBIC),
    CatalogEntry("resnext101_32x8d.fb_ssl_yfcc100m_ft_in1k", "resnext101_32x8d", _SSL + "semi_supervised_resnext101_32x8-2cfe2f8b.pth", _NC, 81.606, 96.04),
    CatalogEntry("resnext101_32x8d.fb_swsl_ig1b_ft_in1k", "resnext101_32x8d", _SSL + "semi_weakly_supervised_resnext101_32x8-b4712904.pth", _NC, 84.302, 97.176),
    CatalogEntry("resnext101_32x8d.fb_wsl_ig1b_ft_in1k", "resnext101_32x8d", _TORCH + "ig_resnext101_32x8-c38310e5.pth", _NC, 82.698, 96.632),
    CatalogEntry("resnext101_32x8d.tv2_in1k", "resnext101_32x8d", _TORCH + "resnext101_32x8d-110c445d.pth", _BSD, 82.832, 96.232, size=224, resize=232),
    CatalogEntry("resnext101_32x8d.tv_in1k", "resnext101_32x8d", _TORCH + "resnext101_32x8d-8ba56ff5.pth", _BSD, 79.31, 94.52),
    CatalogEntry("resnext101_32x16d.fb_ssl_yfcc100m_ft_in1k", "resnext101_32x16d", _SSL + "semi_supervised_resnext101_32x16-15fffa57.pth", _NC, 81.842, 96.092),
    CatalogEntry("resnext101_32x16d.fb_swsl_ig1b_ft_in1k", "resnext101_32x16d", _SSL + "semi_weakly_supervised_resnext101_32x16-f3559a9c.pth", _NC, 83.336, 96.846),
    CatalogEntry("resnext101_32x16d.fb_wsl_ig1b_ft_in1k", "resnext101_32x16d", _TORCH + "ig_resnext101_32x16-c6f796b0.pth", _NC, 84.166, 97.198),
    CatalogEntry("resnext101_32x32d.fb_wsl_ig1b_ft_in1k", "resnext101_32x32d", _TORCH + "ig_resnext101_32x32-e4b90b00.pth", _NC, 85.098, 97.438),
    CatalogEntry("resnext101_64x4d.c1_in1k", "resnext101_64x4d", _TIMM + "v0.1-tpu-weights/resnext101_64x4d_c-0d0e0cc0.pth", _APACHE, 83.156, 96.374, size=288, resize=288, interpolation=_CUBIC),
    CatalogEntry("resnext101_64x4d.gluon_in1k", "resnext101_64x4d", _GLUON + "gluon_resnext101_64x4d-f9a8e184.pth", _APACHE, 80.6, 94.992, interpolation=_CUBIC),
    CatalogEntry("resnext101_64x4d.tv_in1k", "resnext101_64x4d", _TORCH + "resnext101_64x4d-173b62eb.pth", _BSD, 82.992, 96.244),
    CatalogEntry("seresnext26d_32x4d.bt_in1k", "seresnext26d_32x4d", _TIMM + "v0.1-weights/seresnext26d_32x4d-80fa48a3.pth", _APACHE, 78.814, 94.24, size=288, resize=303, interpolation=_CUBIC),
    CatalogEntry("seresnext26t_32x4d.bt_in1k", "seresnext26t_32x4d", _TIMM + "v0.1-weights/seresnext26tn_32x4d-569cb627.pth", _APACHE, 78.744, 94.312, size=288, resize=303, interpolation=_CUBIC),
    CatalogEntry("seresnext50_32x4d.gluon_in1k", "seresnext50_32x4d", _GLUON + "gluon_seresnext50_32x4d-90cf2d6e.pth", _APACHE, 79.91, 94.824, interpolation=_CUBIC),
    CatalogEntry("seresnext50_32x4d.racm_in1k", "seresnext50_32x4d", _TIMM + "v0.1-weights/seresnext50_32x4d_racm-a304a460.pth", _APACHE, 82.196, 96.148, size=288, resize=303, interpolation=_CUBIC),
    CatalogEntry("seresnext101_32x4d.gluon_in1k", "seresnext101_32x4d", _GLUON + "gluon_seresnext101_32x4d-cf52900d.pth", _APACHE, 80.892, 95.296, interpolation=_CUBIC),
    CatalogEntry("seresnext101_32x8d.ah_in1k", "seresnext101_32x8d", _TIMM + "v0.1-tpu-weights/seresnext101_32x8d_ah-e6bc4c0a.pth", _APACHE, 84.186, 96.874, size=288, resize=288, interpolation=_CUBIC),
    CatalogEntry("seresnext101_64x4d.gluon_in1k", "seresnext101_64x4d", _GLUON + "gluon_seresnext101_64x4d-f9926f93.pth", _APACHE, 80.896, 95.296, interpolation=_CUBIC),
    CatalogEntry("seresnext101d_32x8d.ah_in1k", "seresnext101d_32x8d", _TIMM + "v0.1-tpu-weights/seresnext101d_32x8d_ah-191d7b94.pth", _APACHE, 84.358, 96.92, size=288, resize=288, interpolation=_CUBIC),
    CatalogEntry("seresnextaa101d_32x8d.ah_in1k", "seresnextaa101d_32x8d", _TIMM + "v0.1-tpu-weights/seresnextaa101d_32x8d_ah-83c8ae12.pth", _APACHE, 84.566, 97.076, size=288, resize=288, interpolation=_CUBIC),
    CatalogEntry("seresnextaa101d_32x8d.sw_in12k", "seresnextaa101d_32x8d", "hf://timm/seresnextaa101d_32x8d.sw_in12k", _APACHE, None, None, size=288, resize=288, interpolation=_CUBIC, data="imagenet-12k"),
    CatalogEntry("seresnextaa101d_32x8d.sw_in12k_ft_in1k", "seresnextaa101d_32x8d", "hf://timm/seresnextaa101d_32x8d.sw_in12k_ft_in1k", _APACHE, 86.484, 98.03, size=288, resize=288, interpolation=_CUBIC),
    CatalogEntry("seresnextaa101d_32x8d.sw_in12k_ft_in1k_288", "seresnextaa101d_32x8d", "hf://timm/seresnextaa101d_32x8d.sw_in12k_ft_in1k_288", _APACHE, 86.724, 98.176, size=320, resize=320, interpolation=_CUBIC),
    CatalogEntry("seresnextaa201d_32x8d.sw_in12k", "seresnextaa201d_32x8d", "hf://timm/seresnextaa201d_32x8d.sw_in12k", _APACHE, None, None, size=384, resize=384, interpolation=_CUBIC, data="imagenet-12k"),
    CatalogEntry("seresnextaa201d_32x8d.sw_in12k_ft_in1k_384", "seresnextaa201d_32x8d", "hf://timm/seresnextaa201d_32x8d.sw_in12k_ft_in1k_384", _APACHE, None, None, size=384, resize=384, interpolation=_CUBIC),
    CatalogEntry("fb/resnext_50_32x4d", "resnext50_32x4d", _LUA + "resnext_50_32x4d.t7", _NC, 77.8, None, "torch7", interpolation=_CUBIC),
    CatalogEntry("fb/resnext_101_32x4d", "resnext101_32x4d", _LUA + "resnext_101_32x4d.t7", _NC, 78.8, None, "torch7", interpolation=_CUBIC),
    CatalogEntry("fb/resnext_101_64x4d", "resnext101_64x4d", _LUA + "resnext_101_64x4d.t7", _NC, 79.6, None, "torch7", interpolation=_CUBIC),
    CatalogEntry("resnext101_32x48d_wsl", "resnext101_32x48d", _TORCH + "ig_resnext101_32x48-3e41cc8a.pth", _NC, 85.4, 97.6, "torchvision", measured_by="wsl"),
    CatalogEntry("resnext50-32x4d_8xb32_in1k", "resnext50_32x4d", _MMCLS + "resnext50_32x4d_b32x8_imagenet_20210429-56066e27.pth", _APACHE, 77.9, 93.66, "mmcls"),
    CatalogEntry("resnext101-32x4d_8xb32_in1k", "resnext101_32x4d", _MMCLS + "resnext101_32x4d_b32x8_imagenet_20210506-e0fa3dd5.pth", _APACHE, 78.61, 94.17, "mmcls"),
    CatalogEntry("resnext101-32x8d_8xb32_in1k", "resnext101_32x8d", _MMCLS + "resnext101_32x8d_b32x8_imagenet_20210506-23a247d5.pth", _APACHE, 79.27, 94.58, "mmcls"),
    CatalogEntry("resnext152-32x4d_8xb32_in1k", "resnext152_32x4d", _MMCLS + "resnext152_32x4d_b32x8_imagenet_20210524-927787be.pth", _APACHE, 78.88, 94.33, "mmcls"),
    CatalogEntry("open-mmlab://resnext50_32x4d", "resnext50_32x4d", _MMLAB + "resnext50-32x4d-0ab1a123.pth", _UNKNOWN, None, None, "mmdet"),
    CatalogEntry("open-mmlab://resnext101_32x4d", "resnext101_32x4d", _MMLAB + "resnext101_32x4d-a5af3160.pth", _UNKNOWN, None, None, "mmdet"),
    CatalogEntry("open-mmlab://resnext101_64x4d", "resnext101_64x4d", _MMLAB + "resnext101_64x4d-ee2c6f71.pth", _UNKNOWN, None, None, "mmdet"),
    CatalogEntry("open-mmlab://detectron2/resnext101_32x8d", "resnext101_32x8d", _MMLAB + "resnext101_32x8d-1516f1aa.pth", _UNKNOWN, None, None, "mmdet", colour="BGR"),
    CatalogEntry("open-mmlab://jhu/resnext50_32x4d_gn", "resnext50_32x4d", _MMLAB + "resnext50_32x4d_gn-c7e8b754.pth", _UNKNOWN, None, None, "mmdet", fields=_GN),
    CatalogEntry("open-mmlab://jhu/resnext101_32x4d_gn", "resnext101_32x4d", _MMLAB + "resnext101_32x4d_gn-ac3bb84e.pth", _UNKNOWN, None, None, "mmdet", fields=_GN),
    CatalogEntry("open-mmlab://jhu/resnext50_32x4d_gn_ws", "resnext50_32x4d", _MMLAB + "resnext50_32x4d_gn_ws-0d87ac85.pth", _UNKNOWN, None, None, "mmdet", fields=_GN_WS),
    CatalogEntry("open-mmlab://jhu/resnext101_32x4d_gn_ws", "resnext101_32x4d", _MMLAB + "resnext101_32x4d_gn_ws-34ac1a9e.pth", _UNKNOWN, None, None, "mmdet", fields=_GN_WS),
    CatalogEntry("lucid/resnext_50_32x4d.in1k", "resnext50_32x4d", _LUCID2 + "resnext_50_32x4d_in1k.safetensors", _BSD, 77.61, 93.7, "lucid"),
    CatalogEntry("lucid/resnext_101_32x8d.in1k", "resnext101_32x8d", _LUCID2 + "resnext_101_32x8d_in1k.safetensors", _BSD, 79.31, 94.57, "lucid"),
    CatalogEntry("lucid/resnext_101_64x4d.in1k", "resnext101_64x4d", _LUCID2 + "resnext_101_64x4d_in1k.safetensors", _BSD, 83.25, 96.45, "lucid", resize=232),
    CatalogEntry("lucid/resnext_50_32x4d.IMAGENET1K_V2", "resnext50_32x4d", "hf://lucid-dl/resnext-50-32x4d/IMAGENET1K_V2/model.safetensors", _BSD, 81.198, 95.34, "lucid3", resize=232, published_sha256="95ab469ce4c14c1a7e1e517f8eeb140ea9b7747946d9ccd0258dd65f869fc704"),
    CatalogEntry("lucid/resnext_101_32x8d.IMAGENET1K_V2", "resnext101_32x8d", "hf://lucid-dl/resnext-101-32x8d/IMAGENET1K_V2/model.safetensors", _BSD, 82.834, 96.228, "lucid3", resize=232, published_sha256="39ddf40a89a715f0d9a4df83d94a3e338151076972917f6f1a29b3d7ebddccdb"),
    CatalogEntry("lucid/resnext_101_32x4d.GLUON_IN1K", "resnext101_32x4d", "hf://lucid-dl/resnext-101-32x4d/GLUON_IN1K/model.safetensors", _APACHE, 80.342, 94.926, "lucid3", interpolation=_CUBIC, published_sha256="20e585e08b43f2771202755e1947e0f3ed5a98e6875061b765e994ef16216b6d"),
)
# fmt: on


@answering_call
def catalog(
    *,
    licence: str | None = None,
    min_top1: float | None = None,
    max_gmacs: float | None = None,
    variant: str | None = None,
) -> tuple[CatalogEntry, ...]:
    """The public checkpoints, most accurate first, then cheapest.

    Args:
        licence: "commercial" for any licence that allows commercial use, or an SPDX identifier.
        min_top1: Minimum published ImageNet-1k accuracy in percent.
        max_gmacs: Maximum cost of one image at the checkpoint's image size, in billions of
            multiply-accumulates.
        variant: Only checkpoints of this variant.

    Raises:
        ConfigError: The licence is unknown, a bound is not a number of at least 0.
        UnknownNameError: No variant has that name.
    """
    known = sorted({row.licence for row in _TABLE} - {_UNKNOWN} | _COMMERCIAL)
    if licence not in (None, "commercial", *known):
        raise ConfigError(f"licence must be commercial, {', '.join(known)}, not {licence!r}.")
    for name, bound in (("min_top1", min_top1), ("max_gmacs", max_gmacs)):
        if bound is not None and not 0 <= bound < float("inf"):
            raise ConfigError(f"{name} must be a number of at least 0, not {bound!r}.")
    wanted = None if variant is None else canonical_name(variant)
    if wanted is not None:
        _config_of(wanted)  # raises for an unknown name
    chosen = [
        row
        for row in _TABLE
        if (licence in (None, row.licence) or (licence == "commercial" and row.commercial))
        and (min_top1 is None or (row.top1 is not None and row.top1 >= min_top1))
        and (max_gmacs is None or row.gmacs <= max_gmacs)
        and wanted in (None, row.variant)
    ]
    return tuple(sorted(chosen, key=lambda row: (-(row.top1 or 0), row.gmacs, row.name)))


def frontier(rows: Iterable[CatalogEntry]) -> tuple[CatalogEntry, ...]:
    """The checkpoints that no cheaper or equally expensive one beats in accuracy, cheapest first."""
    best: list[CatalogEntry] = []
    measured = [row for row in rows if row.top1 is not None]
    for row in sorted(measured, key=lambda row: (row.gmacs, -(row.top1 or 0))):
        if not best or (row.top1 or 0) > (best[-1].top1 or 0):
            best.append(row)
    return tuple(best)


def find(name: str) -> CatalogEntry:
    """The checkpoint with a name.

    Args:
        name: A name as for `exact`, or a variant of which there is one checkpoint.

    Raises:
        UnknownNameError: No checkpoint has that name, or it is a variant with several.
    """
    if row := exact(name):
        return row
    key = canonical(name)
    same = [row for row in catalog() if row.variant == key]
    if len(same) == 1:
        return same[0]
    if same:
        names = ", ".join(row.name for row in same)
        raise UnknownNameError(f"{name} has {len(same)} public checkpoints; choose one: {names}.")
    near = difflib.get_close_matches(key, _by_name(), n=3, cutoff=0.4)
    names = " or ".join(_by_name()[key].name for key in near)
    hint = f"Did you mean {names}?" if names else "`resnext catalog` lists them."
    raise UnknownNameError(f"No public checkpoint is called {brief(name)}. {hint}")


def exact(name: str) -> CatalogEntry | None:
    """The checkpoint with a name, in any case; None without one.

    Args:
        name: A name in the table, or another library's name of the same weights, also of older
            versions: `swsl_resnext50_32x4d`, `timm/resnext50_32x4d.a1_in1k`,
            `resnext101_32x8d_wsl`, `torchvision://resnext50_32x4d`, `mmcls://resnext50_32x4d`.
    """
    return _by_name().get(canonical(str(name)))


@cache
def _by_name() -> dict[str, CatalogEntry]:
    """The rows by the canonical spelling of their names."""
    return {canonical(row.name): row for row in _TABLE}


def from_repository(owner: str, repo: str) -> CatalogEntry | None:
    """The checkpoint that a repository on the Hugging Face Hub holds; None if none does.

    timm's repositories have the names of its checkpoints.
    """
    return exact(repo) if owner == "timm" else None


def is_address(text: str) -> bool:
    """Whether a text is a URL, and not a catalog name that looks like one."""
    scheme, separator, _ = text.partition("://")
    if not separator or scheme in ("open-mmlab", "mmcls"):
        return False
    return exact(text) is None


def is_path(text: str) -> bool:
    """Whether a text that names no existing file was meant as a path."""
    name = canonical(text)
    if name in _by_name():
        return False
    if re.search(
        r"\.(safetensors|pth|pt|bin|lcd|npz|t7|pkl|ckpt|tar|json|py)$", text, re.IGNORECASE
    ):
        return True
    return "/" in name and "://" not in text and not text.startswith(("lucid/", "fb/"))


def from_file_name(name: str) -> CatalogEntry | None:
    """The checkpoint that is published under this file name, hash and all; None if none is."""
    if not re.search(r"-[0-9a-f]{8,}\.", name):
        return None
    rows = (row for row in _TABLE if row.sha256 and row.location.endswith(f"/{name}"))
    return next(rows, None)


@cache
def labels(data: Data) -> tuple[str, ...]:
    """Names of a data set's classes, in the order of the logits."""
    path = Path(__file__).parent / "labels" / f"{data}.txt"
    return tuple(path.read_text(encoding="utf-8").splitlines())


def read_labels(source: str | Path) -> tuple[str, ...]:
    """Names of classes: those of a data set in the catalog, or the lines of a text file.

    Raises:
        CheckpointError: The file does not exist, or is not text.
    """
    for data in get_args(Data):
        if str(source) == data:
            return labels(data)
    try:
        text = Path(source).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        known = " or ".join(get_args(Data))
        raise CheckpointError(f"labels must be {known} or a text file: {error}.") from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())
