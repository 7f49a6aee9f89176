"""`load`: files of other libraries give the logits that those libraries gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles.originals import randomize, timm, torchvision
from oracles.recorded import file_bytes, files, images
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from resnext import Backbone, ResNeXt, ResNeXtConfig, load, load_backbone, predict, save, variant
from resnext.dialects.table import DIALECTS
from resnext.errors import CheckpointError, ConfigError, MissingFileError, UnknownNameError
from resnext.weights import resolve as resolving
from resnext.weights.catalog import labels

TINY = ResNeXtConfig((1, 1, 1, 1), 4, 8, num_classes=5, channels=(16, 32, 64, 128))
X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def network(config: ResNeXtConfig = TINY) -> ResNeXt:
    """A network whose numbers hide nothing."""
    model = ResNeXt(config)
    randomize(model)
    return model.eval()


def logits(model: nn.Module, x: Tensor = X) -> Tensor:
    """What it answers."""
    with torch.no_grad():
        return model(x)


def classifier(path: Path, **options: Any) -> ResNeXt:
    """`load` of what has a classifier."""
    model = load(path, **options)
    assert isinstance(model, ResNeXt)
    assert not model.training
    return model


@pytest.mark.parametrize(
    "name",
    ["epoch_1.pth", "published-legacy-format.pth", "lucid_small.lcd", "lucid_small.safetensors"],
)
def test_recorded_files(tmp_path: Path, name: str) -> None:
    """Files as mmcls 0.25 and Lucid 2 wrote them, and the logits that they computed."""
    (tmp_path / name).write_bytes(file_bytes(name))
    model = classifier(tmp_path / name)
    expected = files()["expected"]["lucid" if "lucid" in name else "mmcls"]
    got = logits(model, images(expected["input"]))
    assert torch.allclose(got, torch.tensor(expected["logits"]), atol=2e-6)
    assert model.card is not None
    if "lucid" not in name:
        assert model.card.labels == ("cat", "dog", "fish")
        assert model.card.provenance["mmcls_version"] == "0.25.0"


@pytest.mark.parametrize("kind", ["torchvision", "timm"])
def test_the_library_itself(tmp_path: Path, kind: str) -> None:
    """Saved by the original, loaded here: the same answers."""
    theirs: nn.Module = (
        torchvision.models.resnext50_32x4d(num_classes=4)
        if kind == "torchvision"
        else timm.create_model("seresnext26t_32x4d", num_classes=4)
    )
    randomize(theirs)
    theirs = theirs.eval()
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    ours = classifier(tmp_path / "a.pth")
    assert torch.allclose(logits(ours), logits(theirs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dialect", ["torchvision", "timm", "lucid"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_every_dialect_gives_the_same_answers(tmp_path: Path, dialect: str, suffix: str) -> None:
    """Names are all that differs."""
    model = network(TINY.replace(channels=(64, 128, 256, 512)))
    theirs = DIALECTS[dialect].write(model.state_dict(), model.config)
    path = tmp_path / f"a.{suffix}"
    torch.save(theirs, path) if suffix == "pth" else save_file(
        {name: value.contiguous() for name, value in theirs.items()}, path
    )
    assert torch.equal(logits(classifier(path)), logits(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    """A half-precision file must give a network that takes ordinary images."""
    model = network()
    torch.save(model.to(dtype).state_dict(), tmp_path / "a.pth")
    assert classifier(tmp_path / "a.pth").fc.weight.dtype == torch.float32


def test_a_detector_gives_a_backbone(tmp_path: Path) -> None:
    """Its neck and heads are left out, and the notes say so."""
    model = network()
    trunk = {f"backbone.{n}": x for n, x in model.state_dict().items() if not n.startswith("fc.")}
    others = {"neck.fpn_convs.0.conv.weight": torch.ones(2, 2), "bbox_head.fc_cls.weight": X[0]}
    torch.save({"meta": {}, "state_dict": {**trunk, **others}}, tmp_path / "a.pth")
    backbone = load(tmp_path / "a.pth")
    assert isinstance(backbone, Backbone)
    for got, wanted in zip(logits(backbone), model.features(X), strict=True):
        assert torch.equal(got, wanted)
    part = load_backbone(tmp_path / "a.pth", out_indices=(1, 2), frozen_stages=1, norm_eval=True)
    assert [tuple(m.shape[1:]) for m in logits(part.eval())] == [(128, 8, 8), (256, 4, 4)]
    assert not part.conv1.weight.requires_grad
    fresh = classifier(tmp_path / "a.pth", num_classes=7)
    assert logits(fresh).shape == (2, 7)
    assert torch.equal(fresh.features(X)[-1], model.features(X)[-1])


def test_a_backbone_of_a_classifier(tmp_path: Path) -> None:
    """Users of detection start from ImageNet's classifiers."""
    model = network()
    torch.save(model.state_dict(), tmp_path / "a.pth")
    backbone = load_backbone(tmp_path / "a.pth", out_indices=(3,)).eval()
    assert torch.equal(logits(backbone)[0], model.features(X)[-1])
    with pytest.raises(ConfigError, match="out_indices"):
        load_backbone(tmp_path / "a.pth", out_indices=(4,))


# -- heads and inputs ------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [TINY, TINY.replace(stem_type="deep")], ids=["classic", "deep"])
def test_other_channels_keep_the_scale(tmp_path: Path, config: ResNeXtConfig) -> None:
    """An image whose channels repeat the colours gives what the colours gave, whatever the net."""
    model = network(config)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    grey = X[:, :1]
    one = classifier(tmp_path / "a.pth", in_channels=1)
    assert torch.allclose(logits(one, grey), logits(model, grey.expand(-1, 3, -1, -1)), atol=1e-4)
    six = classifier(tmp_path / "a.pth", in_channels=6)
    assert torch.allclose(logits(six, torch.cat([X, X], 1)), logits(model), atol=1e-4)
    for channels in (4, 13):
        more = classifier(tmp_path / "a.pth", in_channels=channels)
        x = torch.ones(1, channels, 64, 64)
        assert torch.allclose(logits(more, x), logits(model, torch.ones(1, 3, 64, 64)), atol=1e-4)
        assert more.card is not None
        assert any(f"for {channels} channels" in note for note in more.card.provenance["notes"])
    assert one.card is not None
    assert one.card.preprocessing.colour == "L"


def test_other_classes(tmp_path: Path) -> None:
    """Everything but the classifier is kept, and the old labels are not."""
    path, model = tmp_path / "a.pth", network()
    torch.save({"state_dict": model.state_dict(), "meta": {"CLASSES": tuple("abcde")}}, path)
    same = classifier(path, num_classes=5)
    assert torch.equal(logits(same), logits(model))
    assert same.card is not None
    assert same.card.labels == tuple("abcde")
    other = classifier(path, num_classes=7)
    assert torch.equal(other.embed(X), model.embed(X))
    assert logits(other).shape == (2, 7)
    assert other.card is not None
    assert not other.card.labels
    assert "untrained" in other.card.provenance["notes"][-1]
    with pytest.raises(ConfigError, match="num_classes"):
        load(path, num_classes=-1)
    with pytest.raises(ConfigError, match="in_channels"):
        load(path, in_channels=0)


def test_a_classifier_of_several_layers(tmp_path: Path) -> None:
    """It gives a backbone, which says what was left out; with num_classes a new classifier."""
    state = network().state_dict()
    state["fc.0.weight"], state["fc.3.weight"] = torch.ones(8, 512), torch.ones(5, 8)
    del state["fc.weight"], state["fc.bias"]
    torch.save(state, tmp_path / "a.pth")
    assert isinstance(load(tmp_path / "a.pth"), Backbone)
    model = classifier(tmp_path / "a.pth", num_classes=2)
    assert model.card is not None
    assert any("not one linear layer" in note for note in model.card.provenance["notes"])


# -- what files say about themselves ---------------------------------------------------------------

PIPELINE = """
model = dict(type='ImageClassifier',
    backbone=dict(type='ResNeXt', depth=50, groups={groups}, width_per_group=4, base_channels=8,
                  stem_channels=8, style='caffe', strides=(1, 2, 2, 1)),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=256))
img_norm_cfg = dict(mean=[10.0, 20.0, 30.0], std=[51.0, 51.0, 102.0], to_rgb={rgb})
test_pipeline = [dict(type='Resize', size=(80, -1)), dict(type='CenterCrop', crop_size=64),
                 dict(type='Normalize', **img_norm_cfg)]
data = dict(test=dict(pipeline=test_pipeline))
"""


def openmmlab_file(path: Path, text: str) -> ResNeXt:
    """An mmcls checkpoint of a caffe-style network, with the text of its config."""
    config = ResNeXtConfig(
        (3, 4, 6, 3),
        2,
        32,
        num_classes=3,
        channels=(8, 16, 32, 64),
        stem_channels=8,
        style="caffe",
        strides=(1, 2, 2, 1),
    )
    model = network(config)
    state = DIALECTS["mmcls"].write(model.state_dict(), config)
    torch.save({"state_dict": state, "meta": {"config": text, "CLASSES": ("a", "b", "c")}}, path)
    return model


def test_the_config_in_a_checkpoint_is_used(tmp_path: Path) -> None:
    """Strides have no weights: only the config that mmcls saves states them."""
    model = openmmlab_file(tmp_path / "a.pth", PIPELINE.format(groups=2, rgb=False))
    loaded = classifier(tmp_path / "a.pth")
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.card is not None
    how = loaded.card.preprocessing
    assert (how.size, how.resize, how.colour) == (64, 80, "BGR")
    assert how.mean == pytest.approx((10 / 255, 20 / 255, 30 / 255))
    assert how.std == pytest.approx((0.2, 0.2, 0.4))


def test_a_config_that_contradicts_the_weights_is_an_error(tmp_path: Path) -> None:
    """Either may be wrong, so neither is used."""
    openmmlab_file(tmp_path / "a.pth", PIPELINE.format(groups=4, rgb=True))
    with pytest.raises(
        CheckpointError, match=r"it should be ResNeXt.*, 4×4d, but .*; its weights are"
    ):
        load(tmp_path / "a.pth")


def test_a_config_can_be_passed(tmp_path: Path) -> None:
    """It states what the file does not, and must still fit the weights."""
    config = ResNeXtConfig((3, 4, 6, 3), 32, 4, norm="group", conv="weight_standardized")
    model = network(config)
    state = DIALECTS["mmcls"].write(model.state_dict(), config)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="GN or GN\\+WS"):
        load(tmp_path / "a.pth")
    assert torch.equal(logits(classifier(tmp_path / "a.pth", config=config)), logits(model))
    with pytest.raises(CheckpointError, match=r"it should be ResNeXt\(3, 4, 6, 3\), 16×4d, but"):
        load(tmp_path / "a.pth", config=config.replace(cardinality=16))


def timm_folder(folder: Path, name: str, **about: Any) -> ResNeXt:
    """A folder as timm writes it."""
    folder.mkdir()
    model = network(variant(name, num_classes=3))
    save_file(model.state_dict(), folder / "model.safetensors")
    config: dict[str, Any] = {
        "architecture": name,
        "num_classes": 3,
        "label_names": ["a", "b", "c"],
        "pretrained_cfg": {
            "input_size": [3, 64, 64],
            "test_input_size": [3, 96, 96],
            "crop_pct": 0.875,
            "test_crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.2, 0.2, 0.2],
            "license": "mit",
        },
    }
    (folder / "config.json").write_text(json.dumps({**config, **about}))
    return model


def test_flat_config_of_old_timm(tmp_path: Path) -> None:
    """Before `pretrained_cfg` existed, its entries and the labels stood beside the architecture."""
    nested = timm_folder(tmp_path / "new", "resnext26_32x4d")
    flat = {
        "architecture": "resnext26_32x4d",
        "num_classes": 3,
        "labels": ["a", "b", "c"],
        "input_size": [3, 64, 64],
        "crop_pct": 0.8,
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.2],
        "secret": 1,
    }
    (tmp_path / "new" / "config.json").write_text(json.dumps(flat))
    model = classifier(tmp_path / "new")
    assert torch.equal(logits(model), logits(nested))
    assert model.card is not None
    assert model.card.labels == ("a", "b", "c")
    assert (model.card.preprocessing.size, model.card.preprocessing.resize) == (64, 80)
    assert "config.json: not known, so not used: secret" in model.card.provenance["notes"]


def test_folders_of_timm(tmp_path: Path) -> None:
    """Anti-aliasing has no weights: only config.json distinguishes seresnextaa from seresnext."""
    model = timm_folder(tmp_path / "f", "seresnextaa101d_32x8d")
    loaded = classifier(tmp_path / "f")
    assert loaded.config.anti_alias == "avg"
    assert torch.equal(logits(loaded), logits(model))
    card = loaded.card
    assert card is not None
    assert (card.labels, card.licence) == (("a", "b", "c"), "mit")
    assert (card.preprocessing.size, card.preprocessing.resize) == (96, 96)
    assert card.preprocessing.interpolation == "bicubic"


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"architecture": "resnext50_32x4d"}, "it should be"),
        ({"num_classes": 4}, r"fc.weight should be \(4, 2048\) and is \(3, 2048\)"),
        ({"label_names": ["a", "b"]}, "2 labels are given, but the classifier has 3"),
    ],
    ids=["architecture", "classes", "labels"],
)
def test_folders_that_contradict_themselves(tmp_path: Path, about: Any, said: str) -> None:
    """Metadata may confirm; they may not overrule."""
    timm_folder(tmp_path / "f", "resnext26_32x4d", **about)
    with pytest.raises(CheckpointError, match=said):
        load(tmp_path / "f")


def test_folders_of_transformers(tmp_path: Path) -> None:
    """Its own class has no groups: such a file is a plain ResNet, and refused."""
    for name, groups in (("grouped", 4), ("plain", 1)):
        folder = tmp_path / name
        folder.mkdir()
        config = TINY.replace(cardinality=groups, base_width=64)
        model = network(config)
        state = DIALECTS["transformers"].write(model.state_dict(), config)
        theirs = {
            f"classifier.1.{n[3:]}" if n.startswith("fc.") else f"resnet.{n}": x
            for n, x in state.items()
        }
        save_file(theirs, folder / "model.safetensors")
        about = {
            "architectures": ["ResNetForImageClassification"],
            "id2label": {str(i): f"class {i}" for i in (4, 0, 1, 2, 3)},
        }
        (folder / "config.json").write_text(json.dumps(about))
        if name == "plain":
            with pytest.raises(CheckpointError, match="Transformers wrote a plain ResNet"):
                load(folder)
            continue
        loaded = classifier(folder)
        assert torch.equal(logits(loaded), logits(model))
        assert loaded.card is not None
        assert loaded.card.labels == tuple(f"class {i}" for i in range(5))


def test_labels_for_two_libraries(tmp_path: Path) -> None:
    """`config.json` can hold entries for both."""
    save_file(network().state_dict(), tmp_path / "model.safetensors")
    about = {
        "id2label": {str(i): f"transformers {i}" for i in range(5)},
        "label_names": [f"timm {i}" for i in range(5)],
    }
    (tmp_path / "config.json").write_text(json.dumps(about))
    card = classifier(tmp_path).card
    assert card is not None
    assert card.labels == tuple(f"timm {i}" for i in range(5))


def test_a_folder_without_weights(tmp_path: Path) -> None:
    """The message names the file that is missing."""
    with pytest.raises(CheckpointError, match=r"without model\.safetensors"):
        load(tmp_path)


# -- names and addresses ---------------------------------------------------------------------------


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Files by address; nothing is asked of the network."""
    known: dict[str, Path] = {}

    def fetch(url: str, *, sha256: str = "", check: Any = None, progress: bool = False) -> Path:
        if url not in known:
            raise CheckpointError(f"asked for {url}")
        if check is not None:
            check(known[url])
        return known[url]

    monkeypatch.setattr(resolving, "fetch", fetch)
    return known


@pytest.mark.parametrize(
    "name",
    [
        "resnext50_32x4d.a1_in1k",
        "ResNeXt50_32X4D_Weights.IMAGENET1K_V2",
        "resnext50-32x4d_8xb32_in1k",
        "mmcls://resnext50_32x4d",
        "open-mmlab://resnext50_32x4d",
        "lucid/resnext_50_32x4d.in1k",
        "lucid/resnext_50_32x4d.IMAGENET1K_V2",
    ],
)
def test_names_of_the_catalog(
    tmp_path: Path, downloads: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in its own dialect gives the same network, with ImageNet's labels."""
    row = resolving.find(name)
    model = network(variant("resnext50_32x4d"))
    state = DIALECTS[row.dialect].write(model.state_dict(), model.config)
    path = tmp_path / row.location.rpartition("/")[2]
    suffix = path.suffix
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    url = row.location
    if url.startswith("hf://"):
        owner, repo, *rest = url.removeprefix("hf://").split("/")
        url = f"https://huggingface.co/{owner}/{repo}/resolve/main/{'/'.join(rest)}"
    downloads[url] = path
    loaded = load(name)
    assert isinstance(loaded, ResNeXt)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.card is not None
    assert loaded.card.labels == labels("imagenet-1k")
    assert loaded.card.preprocessing == row.preprocessing
    if not row.sha256 or "lucid" in name:
        return
    named = classifier(path)  # the name of the file is the published one, its content is not
    assert named.card is not None
    assert not named.card.labels
    assert any("its SHA-256 is not" in note for note in named.card.provenance["notes"])
    monkeypatch.setattr(resolving, "file_sha256", lambda path: row.sha256 + "0" * 56)
    genuine = classifier(path)
    assert genuine.card is not None
    assert genuine.card.labels == labels("imagenet-1k")


def test_colour_order_of_detectron2(tmp_path: Path, downloads: dict[str, Path]) -> None:
    """Its images are BGR, with the mean in that order."""
    row = resolving.find("open-mmlab://detectron2/resnext101_32x8d")
    model = network(variant("resnext101_32x8d"))
    torch.save({n: x for n, x in model.state_dict().items() if "fc" not in n}, tmp_path / "a.pth")
    downloads[row.location] = tmp_path / "a.pth"
    assert isinstance(load(row.name), Backbone)
    assert row.preprocessing.colour == "BGR"
    assert [255 * x for x in row.preprocessing.mean] == pytest.approx([103.53, 116.28, 123.675])


def test_repositories_of_the_hub(tmp_path: Path, downloads: dict[str, Path]) -> None:
    """The config.json beside the weights is fetched too."""
    model = timm_folder(tmp_path / "f", "resnext26_32x4d")
    base = "https://huggingface.co/someone/cats/resolve/main"
    downloads[f"{base}/model.safetensors"] = tmp_path / "f" / "model.safetensors"
    downloads[f"{base}/config.json"] = tmp_path / "f" / "config.json"
    loaded = load("hf://someone/cats")
    assert isinstance(loaded, ResNeXt)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.card is not None
    assert loaded.card.labels == ("a", "b", "c")
    public = network(variant("resnext50_32x4d"))
    save_file(public.state_dict(), tmp_path / "b.safetensors")
    base = "https://huggingface.co/timm/resnext50_32x4d.a1_in1k/resolve/main"
    downloads[f"{base}/model.safetensors"] = tmp_path / "b.safetensors"
    known = load("hf://timm/resnext50_32x4d.a1_in1k")
    assert known.card is not None
    assert known.card.labels == labels("imagenet-1k")
    for wrong in ("hf://someone", "hf://a/../b", "hf:///x/y", "hf://a/b/../../c"):
        with pytest.raises(CheckpointError, match="must be hf://"):
            load(wrong)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("nothing.pth", MissingFileError),
        ("folder/nothing", MissingFileError),
        ("resnext50_32x4d", UnknownNameError),
        ("resnext50_32x4d.nothing", UnknownNameError),
        ("http://example.org/a.pth", CheckpointError),
        ("ftp://example.org/a.pth", CheckpointError),
    ],
)
def test_names_that_lead_nowhere(name: str, error: type[Exception]) -> None:
    """A missing file and an unknown name are different mistakes."""
    with pytest.raises(error):
        load(name)


def test_any_file_can_be_used_at_once(tmp_path: Path) -> None:
    """`predict` takes every checkpoint that names its classes."""
    model = network()
    about = {"CLASSES": tuple("abcde")}
    torch.save({"state_dict": model.state_dict(), "meta": about}, tmp_path / "a.pth")
    (answer,) = predict(tmp_path / "a.pth", Image.new("RGB", (80, 70), "red"))
    assert answer.label in "abcde"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("layer3.0.bn2.bias"), r"layer3\.0\.bn2\.bias should be .* is absent"),
        (lambda s: s.update({"layer1.0.extra": X}), r"layer1\.0\.extra should be absent"),
        (lambda s: s.update({"layer1.0.bn1.bias": X}), r"layer1\.0\.bn1\.bias should be \(8,\)"),
        (lambda s: s.clear(), "No ResNeXt is in it"),
    ],
)
def test_incomplete_files(tmp_path: Path, change: Any, said: str) -> None:
    """A tensor left at its initial value is a network that is silently worse."""
    state = dict(network().state_dict())
    change(state)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=said):
        load(tmp_path / "a.pth")


# -- what was once silently wrong ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"model_args": {"output_stride": 4}}, "output_stride must be 8, 16 or 32"),
        ({"model_args": {"aa_layer": "blur"}}, "'aa_layer' of timm is not supported"),
        ({"pretrained_cfg": {"label_offset": 1}}, "label_offset 1 of timm is not supported"),
        ({"pretrained_cfg": {"custom_load": True}}, "custom_load True of timm is not supported"),
        ({"model_args": {"global_pool": "max"}}, "global_pool 'max' is not supported"),
        ({"global_pool": "avgmax"}, "global_pool 'avgmax' is not supported"),
        ({"architecture": "resnetaa50d"}, "names resnetaa50d, which is not a ResNeXt"),
        ({"architecture": "vit_base_patch16_224"}, "names vit_base_patch16_224"),
        ({"num_classes": "3"}, "num_classes must be an integer, not '3'"),
        ({"model_args": {"in_chans": -3}}, "in_channels must be greater than 0"),
        ({"architecture": None, "num_classes": 7}, "7 classes are given"),
        ({"architecture": None, "hidden_act": "silu"}, "hidden_act 'silu'"),
        ({"architecture": None, "downsample_in_bottleneck": True}, "downsample_in_bottleneck"),
        ({"architecture": None, "output_stride": 8}, "output_stride 8 is not supported"),
        ({"architecture": None, "dilations": [1, 1, 2, 4]}, "dilations .* is not supported"),
        ({"architecture": None, "batch_norm_eps": 1e-3}, "batch_norm_eps 0.001 is not supported"),
        ({"label_names": None, "id2label": {"1": "a", "2": "b", "3": "c"}}, "must number"),
        ({"label_names": None, "id2label": {"²": "a"}}, "must number"),
    ],
    ids=str,
)
def test_config_json_is_taken_at_its_word(tmp_path: Path, about: Any, said: str) -> None:
    """Names and shapes are the same with another stride or pooling; the answers are not."""
    timm_folder(tmp_path / "f", "resnext26_32x4d", **about)
    with pytest.raises(CheckpointError, match=said):
        load(tmp_path / "f")


@pytest.mark.parametrize(
    "about",
    [
        {"architectures": {"a": 1}},
        {"architectures": 5},
        {"label_names": [["a"]], "label_descriptions": {}},
        {"pretrained_cfg": {"mean": [0.5] * 3, "std": [1] * 3, "input_size": [3, 64, 96]}},
        {"pretrained_cfg": {"mean": 1}},
        {"pretrained_cfg": 7},
    ],
    ids=str,
)
def test_config_json_of_another_shape(tmp_path: Path, about: Any) -> None:
    """Entries of another shape are ignored with a note, and raise no unrelated error."""
    timm_folder(tmp_path / "f", "resnext26_32x4d", **{"architecture": None, **about})
    model = classifier(tmp_path / "f")
    assert model.card is not None
    notes = " ".join(model.card.provenance["notes"])
    assert "preprocessing assumed" in notes or "pretrained_cfg" not in about


MMSEG = """
model = dict(type='EncoderDecoder', pretrained='open-mmlab://resnext50_32x4d',
    backbone=dict(type='ResNeXt', depth=50, groups=2, base_width=4, base_channels=8, dcn=None,
                  strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), norm_cfg=dict(type='SyncBN'),
                  norm_eval=True, style='caffe', frozen_stages=1, out_indices=(0, 1, 2, 3)))
"""


def test_configs_of_segmentors_are_used(tmp_path: Path) -> None:
    """mmseg dilates its backbones; without the config the last map would be a quarter as wide."""
    config = ResNeXtConfig(
        (3, 4, 6, 3),
        2,
        1,
        channels=(8, 16, 32, 64),
        widths=(8, 16, 32, 64),
        stem_channels=8,
        style="caffe",
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
    )
    model = network(config)
    trunk = {f"backbone.{n}": x for n, x in model.state_dict().items() if not n.startswith("fc.")}
    file = tmp_path / "a.pth"
    torch.save({"state_dict": {**trunk, "decode_head.x": X}, "meta": {"config": MMSEG}}, file)
    backbone = load(file)
    assert isinstance(backbone, Backbone)
    assert torch.equal(logits(backbone)[-1], model.features(X)[-1])
    assert backbone.card is not None
    assert any("decode_head" in note for note in backbone.card.provenance["notes"])
    for name, value in (
        ("dcn", "dict(type='DCN')"),
        ("plugins", "[dict(cfg=dict())]"),
    ):
        text = MMSEG.replace("dcn=None", f"{name}={value}")
        torch.save({"state_dict": trunk, "meta": {"config": text}}, file)
        with pytest.raises(CheckpointError, match=f"has {name}=.*, which is not supported"):
            load(file)
    text = MMSEG.replace("dcn=None", "contract_dilation=False, multi_grid=None")
    torch.save({"state_dict": trunk, "meta": {"config": text}}, file)
    assert torch.equal(logits(load(file))[-1], model.features(X)[-1])
    torch.save({"state_dict": trunk, "meta": {"config": "model = build()"}}, file)
    card = load(file).card
    assert card is not None
    assert any("could not be read" in note for note in card.provenance["notes"])


def test_another_neck_is_refused(tmp_path: Path) -> None:
    """A network that was trained with another pooling answers otherwise with ours."""
    text = PIPELINE.format(groups=2, rgb=True).replace(
        "head=dict", "neck=dict(type='GeneralizedMeanPooling'), head=dict"
    )
    openmmlab_file(tmp_path / "a.pth", text)
    with pytest.raises(CheckpointError, match="neck is GeneralizedMeanPooling"):
        load(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("resize", "normal", "colour", "used"),
    [
        ("dict(type='ResizeEdge', scale=80, edge='short', backend='pillow')", "", "BGR", True),
        ("dict(type='ResizeEdge', scale=80, edge='short')", "to_rgb=True", "RGB", True),
        ("dict(type='ResizeEdge', scale=80, edge='long')", "", "RGB", False),
        ("dict(type='Resize', scale=80)", "", "RGB", False),
    ],
)
def test_preprocessing_of_mmpretrain(
    tmp_path: Path, resize: str, normal: str, colour: str, used: bool
) -> None:
    """Its normalisation is part of the model, and BGR unless it says otherwise."""
    text = PIPELINE.format(groups=2, rgb=True).partition("img_norm_cfg")[0] + (
        f"data_preprocessor = dict(mean=[10, 20, 30], std=[51, 51, 51], {normal})\n"
        f"test_pipeline = [{resize}, dict(type='CenterCrop', crop_size=64)]\n"
    )
    openmmlab_file(tmp_path / "a.pth", text)
    card = classifier(tmp_path / "a.pth").card
    assert card is not None
    notes = " ".join(card.provenance["notes"])
    assert ("preprocessing assumed" in notes) != used
    assert ("OpenCV" in notes) == (used and "pillow" not in resize)
    assert card.preprocessing.colour == colour


def test_weights_that_are_not_ordinary_are_named(tmp_path: Path) -> None:
    """A sparse classifier was once left out, and the rest called healthy."""
    state = network().state_dict()
    for value, said in (
        (state["fc.weight"].to_sparse(), "fc.weight is sparse"),
        (torch.empty(5, 512, device="meta"), "fc.weight is without values"),
        (torch.ones(1).expand(5, 512), "fc.weight repeats its values"),
    ):
        torch.save({**state, "fc.weight": value}, tmp_path / "a.pth")
        with pytest.raises(CheckpointError, match=said):
            load(tmp_path / "a.pth")
    del state["fc.weight"]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"fc\.bias exists, but not the weight"):
        load(tmp_path / "a.pth")


def test_of_several_networks_the_choice_is_noted(tmp_path: Path) -> None:
    """Averages are taken if their key names them; otherwise the file is refused."""
    raw, average = network().state_dict(), {n: x + 0 for n, x in network().state_dict().items()}
    average["fc.bias"] = average["fc.bias"] + 1
    for content, is_average in (
        ({"model": raw, "model_ema": {"state_dict": average}}, True),
        ({"state_dict": raw, "ema": {"shadow": average}}, True),
        ({"state_dict": raw, "callbacks": {"EMA": {"ema_state_dict": average}}}, False),
        (
            {
                **{f"model.{n}": x for n, x in raw.items()},
                **{f"ema_model.{n}": x for n, x in average.items()},
            },
            True,
        ),
    ):
        torch.save(content, tmp_path / "a.pth")
        model = classifier(tmp_path / "a.pth")
        assert torch.equal(model.fc.bias, (average if is_average else raw)["fc.bias"])
        assert model.card is not None
        assert any("other networks" in note for note in model.card.provenance["notes"])
    for names in (("student", "teacher"), ("best", "last")):
        torch.save(dict(zip(names, (raw, average), strict=True)), tmp_path / "a.pth")
        with pytest.raises(CheckpointError, match="several networks are in it"):
            load(tmp_path / "a.pth")


def test_half_precision_files_of_ours(tmp_path: Path) -> None:
    """Mixed types once made a network that fails at its first image."""
    model = network().half()
    save(model, tmp_path / "a.safetensors")
    assert classifier(tmp_path / "a.safetensors").fc.weight.dtype == torch.float16
    other = classifier(tmp_path / "a.safetensors", num_classes=7)
    assert {p.dtype for p in other.parameters()} == {torch.float16}


def test_tied_tensors_come_apart(tmp_path: Path) -> None:
    """Training one of them would change the other."""
    state = network().state_dict()
    state["bn1.bias"] = state["bn1.running_mean"]
    torch.save(state, tmp_path / "a.pth")
    loaded = classifier(tmp_path / "a.pth").state_dict()
    before = loaded["bn1.bias"].clone()
    loaded["bn1.running_mean"] += 1
    assert torch.equal(loaded["bn1.bias"], before)


@pytest.mark.parametrize("source", ["", " ", None, 5, "a" * 5000])
def test_sources_that_are_none(source: Any) -> None:
    """The current folder was once meant by nothing."""
    with pytest.raises((CheckpointError, UnknownNameError)):
        load(source)


def test_threads(tmp_path: Path) -> None:
    """torch's list of harmless names is one for all threads."""
    from argparse import Namespace
    from concurrent.futures import ThreadPoolExecutor

    torch.save({"state_dict": network().state_dict(), "args": Namespace(a=1)}, tmp_path / "a.pth")
    with ThreadPoolExecutor(4) as pool:
        for model in pool.map(load, [tmp_path / "a.pth"] * 24):
            assert isinstance(model, ResNeXt)


# -- self-supervised training and adversarial robustness -------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "beside"),
    [
        ("module.encoder_q.", ["module.encoder_k.", "module.queue", "module.queue_ptr"]),
        ("module.encoder_q.", []),
        ("module.base_encoder.", ["module.momentum_encoder.", "module.predictor.0.weight"]),
        ("backbone.", ["queue"]),
        ("module.", ["module.prototypes.weight"]),
        ("encoder.", ["projector.0.weight"]),
        ("online_network.", []),  # BYOL
        ("module.online_encoder.", ["module.queue"]),
        ("encoder.", ["memory_bank"]),
    ],
)
def test_a_projection_is_not_a_classifier(tmp_path: Path, prefix: str, beside: list[str]) -> None:
    """MoCo's 128-way `encoder_q.fc` loaded as a classifier of 128 classes."""
    model = network()
    state = {f"{prefix}{n}": x for n, x in model.state_dict().items()}
    for name in beside:
        if name.endswith("."):
            state |= {f"{name}{n}": torch.zeros_like(x) for n, x in model.state_dict().items()}
        else:
            state[name] = torch.zeros(5, 4)
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    loaded = load(tmp_path / "a.pth")
    assert isinstance(loaded, Backbone)
    assert torch.equal(logits(loaded)[-1], model.features(X)[-1])
    assert loaded.card is not None
    assert any("projection" in note for note in loaded.card.provenance["notes"])


def test_a_classifier_beside_a_projector_stays(tmp_path: Path) -> None:
    """solo-learn trains one on the side, outside its backbone."""
    model = network()
    state = {
        n.replace("fc.", "classifier.") if n.startswith("fc.") else f"backbone.{n}": x
        for n, x in model.state_dict().items()
    }
    torch.save({"state_dict": {**state, "projector.0.weight": X[0, 0]}}, tmp_path / "a.ckpt")
    assert torch.equal(logits(classifier(tmp_path / "a.ckpt")), logits(model))


@pytest.mark.parametrize(
    ("mean", "std", "shape"),
    [
        ("module.normalizer.new_mean", "module.normalizer.new_std", (3, 1, 1)),
        ("normalize.mean", "normalize.std", (1, 3, 1, 1)),
        ("mu", "sigma", (3, 1, 1)),
    ],
)
def test_a_files_own_normalization(
    tmp_path: Path, mean: str, std: str, shape: tuple[int, ...]
) -> None:
    """Robustness files carry it; ImageNet's was used in its place."""
    prefix = "module.model." if mean.startswith("module.") else "model."
    state = {f"{prefix}{n}": x for n, x in network().state_dict().items()}
    own = {mean: torch.tensor([0.5, 0.25, 0.125]), std: torch.tensor([0.25, 0.5, 0.75])}
    content = {**state, **{name: x.view(shape) for name, x in own.items()}}
    torch.save({"model": content}, tmp_path / "a.pt")
    card = classifier(tmp_path / "a.pt").card
    assert card is not None
    assert card.preprocessing.mean == (0.5, 0.25, 0.125)
    assert card.preprocessing.std == (0.25, 0.5, 0.75)
    assert any(f"are those in {mean}" in note for note in card.provenance["notes"])


def test_a_normalization_of_another_range_is_named(tmp_path: Path) -> None:
    """Values to 255 would need another rule; the note says that they are not used."""
    state = {f"model.{n}": x for n, x in network().state_dict().items()}
    own = {"normalizer.new_mean": torch.full((3,), 120.0), "normalizer.new_std": torch.ones(3)}
    torch.save({**state, **own}, tmp_path / "a.pt")
    card = classifier(tmp_path / "a.pt").card
    assert card is not None
    assert card.preprocessing.mean == (0.485, 0.456, 0.406)
    assert any("new_mean are not used" in note for note in card.provenance["notes"])
