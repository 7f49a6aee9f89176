"""What users of timm, torchvision and Lucid expect a network to have, beside what it computes.

`network.py` has the computation; these methods and attributes add no module and no parameter.
"""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn

from resnext.checks import brief, plain
from resnext.errors import ConfigError
from resnext.system.forks import one_thread_after_fork


class TrunkSurface(nn.Module):
    """The stages, timm's switches, and what makes networks usable in forked processes."""

    config: Any
    stage_names: tuple[str, ...]

    def __init__(self) -> None:
        super().__init__()
        one_thread_after_fork()

    @property
    def stages(self) -> list[nn.Sequential]:
        """The stages that were built, in order."""
        return [getattr(self, name) for name in self.stage_names]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations inside blocks in the backward pass, which saves memory."""
        for stage in self.stages:
            for block in stage:
                cast("Any", block).checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns of the names of each group of layers, for timm's layer-wise learning rates.

        Args:
            coarse: Whether a group is a stage instead of a block.
        """
        block = r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"
        return {"stem": r"^(?:conv1|bn1|stem)", "blocks": block}


class ClassifierSurface(TrunkSurface):
    """timm's methods of a classifier, and Lucid's attributes."""

    fc: nn.Linear
    features: Any
    dropout: Any
    avgpool: Any
    card: Any
    num_features: int

    @property
    def num_classes(self) -> int:
        """Outputs of the classifier; 0 without one, after `reset_classifier(0)`."""
        if isinstance(self.fc, nn.Identity):
            return 0
        return self.fc.out_features if isinstance(self.fc, nn.Linear) else self.config.num_classes

    @property
    def cardinality(self) -> int:
        """The config's number of groups."""
        return self.config.cardinality

    @property
    def base_width(self) -> int:
        """The config's width of one group in the first stage."""
        return self.config.base_width

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map `(n, num_features, h, w)` of images."""
        return self.features(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits from the last feature map; with `pre_logits`, what the classifier is given."""
        x = self.dropout(self.avgpool(x).flatten(1))
        return x if pre_logits else self.fc(x)

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The last layer, or its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier with an untrained one, whose card is empty.

        Args:
            num_classes: Number of classes; 0 for none, so that the network returns embeddings.
            global_pool: None or "avg": there is no other pooling.

        Raises:
            ConfigError: `num_classes` is not an integer of at least 0, or the pooling is another.
        """
        num_classes = plain(num_classes)
        if global_pool not in (None, "avg"):
            raise ConfigError(f"global_pool must be None or 'avg', not {brief(global_pool)}.")
        if type(num_classes) is int and num_classes == 0:
            self.fc = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
        else:
            self.config = self.config.replace(num_classes=num_classes)
            like = next(self.parameters())
            self.fc = nn.Linear(
                self.num_features, num_classes, device=like.device, dtype=like.dtype
            )
        self.card = None  # its labels were the old classes
