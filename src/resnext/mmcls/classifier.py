"""mmcls's classifier: a backbone, global average pooling and a linear head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.fx import Proxy

from resnext.errors import ConfigError, ConfigTypeError
from resnext.foreign_names import answering_call
from resnext.layers import traceable
from resnext.mmcls.init_cfg import InitCfg, initialize, is_pretrained

_MEAN_CROSS_ENTROPY: dict[str, Any] = {
    "type": "CrossEntropyLoss",
    "use_sigmoid": False,
    "use_soft": False,
    "reduction": "mean",
    "class_weight": None,
    "pos_weight": None,
}


class LinearClsHead(nn.Module):
    """mmcls's linear classifier."""

    @answering_call
    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(in_channels, num_classes)

    def init_weights(self) -> None:
        """Draw weights from a normal distribution with standard deviation 0.01."""
        initialize(self, {"type": "Normal", "layer": "Linear", "std": 0.01})


class ImageClassifier(nn.Module):
    """mmcls's classifier: a backbone, global average pooling and a linear head.

    Called with images, it returns logits. `return_loss=True` with labels returns the loss and
    `return_loss=False` a list of probabilities, as mmcls's training and testing loops expect.

    Args:
        backbone: The network without its classifier.
        head: The classifier.
        init_cfg: How `init_weights` fills the weights.
        loss: mmcls's config of the loss; by default cross-entropy. Another one can be given, so
            that the network can be built, but `return_loss=True` refuses it.
    """

    @answering_call
    def __init__(
        self,
        backbone: nn.Module,
        head: LinearClsHead,
        init_cfg: InitCfg | None = None,
        loss: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = nn.AdaptiveAvgPool2d(1)
        self.head = head
        self.init_cfg = init_cfg
        self.loss = loss or {"type": "CrossEntropyLoss"}

    @traceable
    def forward(
        self,
        img: Float[Tensor, "n c h w"],
        gt_label: Tensor | None = None,
        return_loss: bool | None = None,
    ) -> Any:
        """Logits `(n, k)`; or `{"loss": …}`; or a list of n arrays of k probabilities.

        Raises:
            ConfigTypeError: The loss is requested without labels.
            ConfigError: The loss of the config is not mean cross-entropy.
        """
        logits = self.head.fc(self.extract_feat(img))
        if return_loss is None or isinstance(return_loss, Proxy):  # a graph gives logits
            return logits
        if not return_loss:
            return list(logits.softmax(1).detach().cpu().numpy())
        if gt_label is None:
            raise ConfigTypeError("return_loss=True needs gt_label, the class of each image.")
        return {"loss": self._loss_weight() * nn.functional.cross_entropy(logits, gt_label)}

    def _loss_weight(self) -> float:
        """The factor of the loss, if it is mean cross-entropy."""
        args = dict(self.loss)
        weight = args.pop("loss_weight", 1.0)
        for name, value in args.items():
            if name not in _MEAN_CROSS_ENTROPY or value != _MEAN_CROSS_ENTROPY[name]:
                raise ConfigError(
                    f"return_loss=True computes mean CrossEntropyLoss only, not one with "
                    f"{name}={value!r}. Compute the loss from the logits, model(img)."
                )
        return weight

    def extract_feat(
        self, img: Float[Tensor, "n c h w"], stage: str = "neck"
    ) -> Float[Tensor, "n _ _ _"] | Float[Tensor, "n c"]:
        """The last feature map ("backbone") or its average over pixels ("neck" or "pre_logits")."""
        if stage not in ("backbone", "neck", "pre_logits"):
            raise ConfigError(f"stage must be backbone, neck or pre_logits, not {stage!r}.")
        maps = self.backbone(img)
        last = maps[-1] if isinstance(maps, tuple) else maps
        return last if stage == "backbone" else self.neck(last).flatten(1)

    def simple_test(self, img: Float[Tensor, "n c h w"]) -> list[Any]:
        """Probabilities of each image, as n arrays of k numbers."""
        return self(img, return_loss=False)

    def init_weights(self) -> None:
        """Apply `init_cfg`, then initialize backbone and head unless `init_cfg` loads a checkpoint.

        Raises:
            MissingFileError: A `Pretrained` checkpoint does not exist.
            ConfigError: `init_cfg` has an unknown type or argument.
        """
        initialize(self, self.init_cfg)
        if is_pretrained(self.init_cfg):
            return
        if hasattr(self.backbone, "init_weights"):  # a class of a user may have none
            self.backbone.init_weights()  # pyright: ignore[reportCallIssue]
        self.head.init_weights()
