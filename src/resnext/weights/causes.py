"""Why a state dict is not a ResNeXt that is built here, as far as names and shapes show."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from torch import Tensor

# Parts of names that a ResNeXt does not have, and their meaning
_CAUSES = tuple(
    (re.compile(pattern), why)
    for pattern, why in (
        (
            r"(?:conv\d?_?offset|offset_conv|deform\w*)\.",
            "It has deformable convolutions (DCN), which are not supported.",
        ),
        (r"context_block", "It has GCNet's context blocks, a plugin of mmdet."),
        (r"nonlocal_block", "It has non-local blocks, a plugin of mmdet."),
        (r"gen_attention_block", "It has generalized attention, a plugin of mmdet."),
        (r"lora_", "It has LoRA adapters. Save the state dict of model.merge_and_unload()."),
        (
            r"parametrizations\.",
            "Its weights are parametrized. Remove the parametrizations and save.",
        ),
        (r"weight_mask", "It was pruned. Call torch.nn.utils.prune.remove and save again."),
        (r"weight_orig", "It has spectral norm or pruning. Remove it and save again."),
        (r"_packed_params|zero_point", "It is quantized. Save the network as it was before."),
        (
            r"(?:^|\.)(?:(?:bn|norm)\d\.(?:IN|BN|instance_norm|batch_norm)|layer\d+\.\d+\.IN)\.",
            "Its norms are half instance, half batch norms (IBN-Net), which are not supported.",
        ),
        (
            r"(?:^|\.)(?:cbam|ca|sa|ChannelGate|SpatialGate|channel_att\w*|spatial_att\w*)\d*\.",
            "It has CBAM's channel and spatial attention, which is not supported.",
        ),
        (
            r"(?:^|\.)layer0\.conv3\.",
            "It is a SENet-154: its 3×3 convolutions widen, and its shortcuts are 3×3.",
        ),
        (r"\.conv\d\.(?:paths\.\d|attn\.fc_)", "It is a SKNet: its blocks select kernels."),
        (r"\.conv2\.(?:radix|bn0|fc2)\b", "It is a ResNeSt: its blocks have split attention."),
        (
            r"layer\d+\.\d+\.(?:convs|bns)\.\d+\.",
            "It is a Res2NeXt: its blocks have several 3×3 convolutions in a row.",
        ),
    )
)
_SE = re.compile(r"\.(se\w*\.fc\.\d)\.weight$")
_BLOCK = re.compile(r"(?:^|\.)layer1\.0\.(conv\d)\.weight$")


# Names of layers that work on the trunk's maps, though the trunk is complete without them
_HIDDEN = (
    (
        re.compile(r".*layer\d+\.\d+\.conv\d\.net\.weight"),
        "It is a TSM: its blocks shift channels between images.",
    ),
    (
        re.compile(r"(?:\w*bam|ca|sa|nl|non_?local)_?\d*\..*", re.I),
        "It has attention between its stages, which is not supported",
    ),
)


def hidden_cause(state: Mapping[str, Tensor], prefix: str, left: Iterable[str]) -> str:
    """Why a complete trunk computes other maps than a ResNeXt; empty if no name shows that.

    Args:
        state: Tensors by name.
        prefix: What the trunk's names start with.
        left: Names of the tensors that are not of the trunk.
    """
    shift, attention = _HIDDEN
    if any(map(shift[0].fullmatch, state)):
        return shift[1]
    inside = (name for name in left if name.startswith(prefix))
    found = next((x for x in inside if attention[0].fullmatch(x.removeprefix(prefix))), None)
    return f"{attention[1]}: {found}." if found else ""


def causes_of(state: Mapping[str, Tensor]) -> list[str]:
    """Sentences on what a state dict has that a ResNeXt does not have.

    Args:
        state: Tensors by name.
    """
    causes = [why for pattern, why in _CAUSES if any(map(pattern.search, state))]
    dimensions = Counter(x.ndim for x in state.values())
    if dimensions[5] > dimensions[4]:
        causes.append("Its convolutions are 3-D: it is a network for videos or volumes.")
    if dimensions[3] > max(dimensions[4], 3):
        causes.append("Its convolutions are 1-D: it is a network for signals.")
    if found := next((x for x in map(_SE.search, state) if x), None):
        causes.append(
            f"It has squeeze-and-excitation layers called {found[1]}, which could not be placed at "
            f"the end of its blocks."
        )
    if _is_basic(state):
        causes.append("Its blocks have two convolutions: it is a ResNet-18 or -34.")
    return causes


def cause_of(state: Mapping[str, Tensor]) -> str:
    """The first of the causes; empty if none is known."""
    return next(iter(causes_of(state)), "")


def _is_basic(state: Mapping[str, Tensor]) -> bool:
    """Whether the first block has two 3×3 convolutions and no third convolution."""
    convs = {
        found[1]: tuple(x.shape)
        for name, x in state.items()
        if x.ndim == 4 and (found := _BLOCK.search(name))
    }
    return sorted(convs) == ["conv1", "conv2"] and all(
        shape[2:] == (3, 3) and shape[1] > 1 for shape in convs.values()
    )
