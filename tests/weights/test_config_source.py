"""Config files: our fields as JSON, OpenMMLab's files, our model files, and anything else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import tiny_network

from resnext import ResNeXtConfig, save, variant
from resnext.architectures import differences, title
from resnext.errors import CheckpointError, ConfigError, MissingFileError
from resnext.mmcls import read_config
from resnext.weights.config_source import architecture_of, is_config_file, read_architecture

SMALL = ResNeXtConfig((1, 1, 2, 1), 8, 8, channels=(32, 64, 128, 256), attention="se")
MMCLS = """
model = dict(
    type='ImageClassifier',
    backbone=dict(type='{kind}', depth=50, groups=32, width_per_group=4, drop_path_rate=0.1),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=7, in_channels=2048))
"""


def test_a_config_comes_back_from_its_file(tmp_path: Path) -> None:
    """Every field counts: one that is lost makes another network."""
    path = tmp_path / "net.json"
    path.write_text("\ufeff" + json.dumps(SMALL.to_dict(), indent=2), encoding="utf-8")
    assert read_architecture(path) == SMALL
    assert read_architecture(str(path)) == SMALL
    assert architecture_of(SMALL.to_dict()) == SMALL


def test_a_model_file_is_a_config_too(tmp_path: Path) -> None:
    """Only its header is read."""
    network = tiny_network()
    save(network, tmp_path / "m.safetensors")
    assert read_architecture(tmp_path / "m.safetensors") == network.config


def test_openmmlab_config_files(tmp_path: Path) -> None:
    """With bases, as Python and as JSON, and already read."""
    (tmp_path / "base.py").write_text(MMCLS.format(kind="ResNeXt"))
    (tmp_path / "new.py").write_text("_base_ = 'base.py'\nmodel = dict(head=dict(num_classes=9))\n")
    (tmp_path / "new.json").write_text(
        '{"_base_": "base.py", "model": {"head": {"num_classes": 9}}}'
    )
    wanted = variant("resnext50_32x4d", num_classes=9)
    for name in ("new.py", "new.json"):
        config = read_architecture(tmp_path / name)
        assert not differences(config, wanted)
        assert config.drop_path_rate == 0.1
        assert title(config) == "resnext50_32x4d"
    settings = read_config(tmp_path / "base.py")
    assert architecture_of(settings).num_classes == 7
    assert architecture_of(settings["model"]).num_classes == 7


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"layers": [1,', r"a.json is not JSON: Expecting value: line 1 column 15"),
        ("a.json", "\udcff", "a.json is not JSON: 'utf-8' codec can't decode"),
        ("a.json", "[1, 2]", r"a.json: A config must be a dictionary of fields, not \[1, 2\]"),
        ("a.json", '{"layers": [1], "cardinalty": 1}', "no field 'cardinalty'. Did you mean 'card"),
        ("a.json", '{"layers": [1, 1, 1, 1]}', "a.json: cardinality is missing"),
        ("a.json", '{"layers": "deep", "cardinality": 8, "base_width": 8}', "layers must hold"),
        ("a.json", '{"model": {"backbone": {"type": "MobileNetV2"}}}', "not a ResNeXt or SEResN"),
        ("a.json", '{"model": "resnext"}', "not a ResNeXt or SEResNeXt"),
        ("a.py", MMCLS.format(kind="VGG"), "a.py: The backbone is not a ResNeXt or SEResNeXt"),
        ("a.py", "import os\nmodel = os.name", "would have to be executed"),
        ("a.py", "x = 1", "a.py: layers is missing|a.py: ResNeXtConfig has no field 'x'"),
    ],
)
def test_what_is_no_config_gets_one_line(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    """The line names the file and what to correct."""
    (tmp_path / name).write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ConfigError, match=message) as caught:
        read_architecture(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    """A mistyped name must not be taken for a variant."""
    for name in ("no.json", "no.py", "no.safetensors"):
        with pytest.raises(MissingFileError, match=f"{name} does not exist. Give a config file"):
            read_architecture(tmp_path / name)
    with pytest.raises(ConfigError, match=r"is a folder\. Give a config file"):
        read_architecture(tmp_path)
    (tmp_path / "a.safetensors").write_text("not a model")
    with pytest.raises(CheckpointError, match="is not a model file"):
        read_architecture(tmp_path / "a.safetensors")


def test_names_of_config_files() -> None:
    """Checkpoints, variants and addresses are something else."""
    assert all(map(is_config_file, ("net.json", "a/b.PY", "resnext50.py")))
    others = ("resnext50_32x4d", "net.json.safetensors", "https://host/net.json", "a1_in1k", "")
    assert not any(map(is_config_file, others))


def test_reading_a_config_loads_no_torch(tmp_path: Path) -> None:
    """`resnext info net.json` should not wait a second for torch."""
    path = tmp_path / "net.json"
    path.write_text(SMALL.to_json())
    script = (
        "import sys; from resnext.weights.description import describe; describe(sys.argv[1]);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)], check=False).returncode == 0
