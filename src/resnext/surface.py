"""What users of timm, torchvision and Lucid expect a network to have, beside what it computes.

`network.py` has the computation; these methods and attributes add no module and no parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn

from resnext.card import Preprocessing
from resnext.checks import brief, is_zero, plain
from resnext.errors import ConfigError
from resnext.layers import check_images
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

    @classmethod
    def from_pretrained(cls, *_: Any, **__: Any) -> Any:
        """Not here: networks with weights come from `resnext.load`.

        Raises:
            ConfigError: Always, with the function to use.
        """
        raise ConfigError(
            f"{cls.__name__} has no from_pretrained. Use resnext.load(name), or "
            f"resnext.load_backbone(name); hf://owner/repo loads from the Hugging Face Hub."
        )

    def push_to_hub(self, *_: Any, **__: Any) -> Any:
        """Not here: networks are uploaded by `resnext.weights.hub.push`.

        Raises:
            ConfigError: Always, with the function to use.
        """
        raise ConfigError(
            "Networks have no push_to_hub. Use resnext.weights.hub.push(model, 'owner/name'), or "
            "save_pretrained(model, folder) of the same module."
        )

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

    def described_maps(self) -> list[tuple[str, int, int]]:
        """Module, channels and stride of the stem's map and of the map of each of the stages."""
        stride = self.config.stem_stride
        described = [("relu", self.config.stem_out[-1], 1 if self.config.small_stem else 2)]
        for i, stage in enumerate(self.config.stages):
            stride *= stage.stride
            described.append((f"layer{i + 1}", stage.out_channels, stride))
        return described


class ClassifierSurface(TrunkSurface):
    """timm's methods of a classifier, and Lucid's attributes."""

    fc: nn.Linear
    features: Any
    stem_map: Any
    staged: Any
    dropout: Any
    avgpool: Any
    maxpool: Any
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

    @property
    def in_chans(self) -> int:
        """The config's number of input channels."""
        return self.config.in_channels

    @property
    def head_hidden_size(self) -> int:
        """Inputs of the classifier."""
        return self.num_features

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The card's preprocessing as timm's `resolve_data_config` and `create_transform` read it.

        Without a card, the usual preprocessing of ImageNet.
        """
        preprocessing = self.card.preprocessing if self.card else Preprocessing()
        size = preprocessing.size
        return {
            "num_classes": self.num_classes,
            "input_size": (self.config.in_channels, size, size),
            "crop_pct": size / preprocessing.resize,
            "interpolation": preprocessing.interpolation,
            "mean": preprocessing.mean,
            "std": preprocessing.std,
            "first_conv": "conv1.0" if self.config.stem_type == "deep" else "conv1",
            "classifier": "fc",
        }

    default_cfg = pretrained_cfg  # its older name

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Channels, stride and module of the maps of `forward_intermediates`, in timm's form."""
        keys = ("module", "num_chs", "reduction")
        return [dict(zip(keys, described, strict=True)) for described in self.described_maps()]

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map `(n, num_features, h, w)` of images."""
        return self.features(x)[-1]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The last map, and the maps of the stem (0) and the stages (from 1), finest first.

        Args:
            x: Images.
            indices: Which maps; an integer for the last ones, None for all.
            norm: Not used: there is no last norm.
            stop_early: Whether to leave out the stages after the last map that was asked for.
            output_fmt: "NCHW": there is no other.
            intermediates_only: Whether to return the maps without the last one.

        Raises:
            InputError: `x` is not a batch of images that the network takes.
            ConfigError: A map does not exist, or the format is another.
        """
        if output_fmt != "NCHW":
            raise ConfigError(f"output_fmt must be 'NCHW', not {brief(output_fmt)}.")
        chosen = self._chosen_maps(indices)
        check_images(x, self.config)
        stem = self.stem_map(x)
        depth = chosen[-1] if stop_early else None
        maps = [stem, *self.staged(self.maxpool(stem), depth)]
        found = [maps[i] for i in chosen]
        return found if intermediates_only else (maps[-1], found)

    def _chosen_maps(self, indices: int | Sequence[int] | None) -> list[int]:
        """Indices of maps, sorted and without repetition.

        Raises:
            ConfigError: A map does not exist, or there are none.
        """
        every, wanted = range(len(self.stages) + 1), plain(indices)
        if wanted is None or type(wanted) is int:
            wanted = range(-(len(every) if wanted is None else wanted), 0)
        try:
            chosen = sorted({every[i] for i in wanted})
        except (IndexError, TypeError):
            chosen = []
        if not chosen:
            raise ConfigError(
                f"indices must be of maps from 0 (the stem) to {every[-1]}, or how many of the "
                f"last ones, not {brief(indices)}."
            )
        return chosen

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Take out what comes after the last of these maps, as timm's `FeatureGetterNet` asks.

        The config still describes all stages, so a network without some cannot be saved.

        Args:
            indices: Maps to keep, as in `forward_intermediates`.
            prune_norm: Not used: there is no last norm.
            prune_head: Whether to take out the classifier too if no stage is.

        Returns:
            The indices of the maps.

        Raises:
            ConfigError: A map does not exist.
        """
        chosen = self._chosen_maps(indices)
        without = self.stage_names[chosen[-1] :]
        for name in without:
            setattr(self, name, nn.Sequential())
        if chosen[-1] == 0:
            self.maxpool = nn.Sequential()
        if without:
            self.num_features = self.described_maps()[chosen[-1]][1]
        if without or prune_head:
            self.reset_classifier(0)
        return chosen

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits from the last feature map; with `pre_logits`, what the classifier is given."""
        x = self.dropout(self.avgpool(x).flatten(1))
        return x if pre_logits else self.fc(x)

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The last layer, or its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier with an untrained one; the card loses labels and metrics.

        Args:
            num_classes: Number of classes; 0 for none, so that the network returns embeddings.
            global_pool: None or "avg": there is no other pooling.

        Raises:
            ConfigError: `num_classes` is not an integer of at least 0, or the pooling is another.
        """
        num_classes = plain(num_classes)
        if global_pool not in (None, "avg"):
            raise ConfigError(
                f"global_pool must be None or 'avg', not {brief(global_pool)}. "
                f"forward_features(images) returns the map before pooling."
            )
        if is_zero(num_classes):
            self.fc = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
        else:
            self.config = self.config.replace(num_classes=num_classes)
            like = next(self.parameters())
            self.fc = nn.Linear(
                self.num_features, num_classes, device=like.device, dtype=like.dtype
            )
        self.fc.train(self.training)
        if self.card is not None:
            self.card = self.card.without_classes()
