"""`read_config` against what mmcv and mmengine make of the same files, and against hostile ones.

That it agrees with mmengine 0.10 on the published configs of mmcls, mmpretrain and mmdet was
checked once; the expectations here are that library's.
"""

from __future__ import annotations

import json
import math
import os
import re
import string
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resnext.errors import ConfigError, MissingFileError, ResNeXtError
from resnext.mmcls.config_file import read_config

MODEL = """\
# model settings
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='ResNeXt', depth=50, num_stages=4, out_indices=(3, ),
        groups=32, width_per_group=4, style='pytorch'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=1000, in_channels=2048,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0), topk=(1, 5)))
"""
DATASET = """\
img_norm_cfg = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
test_pipeline = [
    dict(type='Resize', size=(256, -1), backend='pillow'),
    dict(type='Normalize', **img_norm_cfg),
]
data = dict(samples_per_gpu=32, val=dict(pipeline=test_pipeline), test=dict(pipeline=test_pipeline))
"""
SCHEDULE = """\
optimizer = dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.0001)
lr_config = dict(policy='step', step=[30, 60, 90])
"""
RUNTIME = """\
log_config = dict(interval=100, hooks=[dict(type='TextLoggerHook')])
load_from = None
workflow = [('train', 1)]
"""
CONFIG = """\
_base_ = [
    '../_base_/models/resnext50_32x4d.py', '../_base_/datasets/imagenet_bs32_pil_resize.py',
    '../_base_/schedules/imagenet_bs256.py', '../_base_/default_runtime.py'
]
"""
NAME = "resnext50-32x4d_8xb32_in1k.py"
BACKBONE = {
    "type": "ResNeXt",
    "depth": 50,
    "num_stages": 4,
    "out_indices": (3,),
    "groups": 32,
    "width_per_group": 4,
    "style": "pytorch",
}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a config into a tree laid out as mmcls's; return its path."""
    files = {
        "_base_/models/resnext50_32x4d.py": MODEL,
        "_base_/datasets/imagenet_bs32_pil_resize.py": DATASET,
        "_base_/schedules/imagenet_bs256.py": SCHEDULE,
        "_base_/default_runtime.py": RUNTIME,
        f"resnext/{NAME}": CONFIG,
    }

    def write(text: str, name: str = "resnext/mine.py") -> Path:
        path = tmp_path / "configs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    for name, text in files.items():
        write(text, name)
    return write


def refused(path: Path, line: int, *words: str) -> None:
    """Check that a file is refused at a line, in one line of text that has the words."""
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: "), message
    assert "\n" not in message
    for word in words:
        assert word in message


# Inheritance


def test_published_layout(write: Write) -> None:
    """All four bases are merged, tuples stay tuples, and keys keep mmcv's order."""
    config = read_config(write("", "resnext/x.py").with_name(NAME))
    assert config["model"]["backbone"] == BACKBONE
    assert config["model"]["head"]["topk"] == (1, 5)
    assert config["data"]["val"]["pipeline"][1]["mean"] == [123.675, 116.28, 103.53]
    assert config["workflow"] == [("train", 1)]
    assert config["load_from"] is None
    assert [*config] == [
        *("model", "img_norm_cfg", "test_pipeline", "data"),
        *("optimizer", "lr_config", "log_config", "load_from", "workflow"),
    ]


def test_a_string_for_a_path(write: Write) -> None:
    """A path given as a string used to work only where `Path` methods were not needed."""
    assert read_config(str(write("a = 1"))) == {"a": 1}


def test_a_child_merges_into_its_bases(write: Write) -> None:
    """Replacing `model` whole loses the head; merging too much keeps what is replaced."""
    path = write(
        f"_base_ = '{NAME}'\n"
        "model = dict(\n"
        "    backbone=dict(depth=101, frozen_stages=2),\n"
        "    neck=None,\n"
        "    head=dict(_delete_=True, type='StackedLinearClsHead', num_classes=10))\n"
        "lr_config = dict(step=[10])\n"
        "load_from = 'x.pth'\n"
    )
    config = read_config(path)
    assert config["model"] == {
        "type": "ImageClassifier",
        "backbone": {**BACKBONE, "depth": 101, "frozen_stages": 2},
        "neck": None,
        "head": {"type": "StackedLinearClsHead", "num_classes": 10},
    }
    assert config["lr_config"] == {"policy": "step", "step": [10]}
    assert config["load_from"] == "x.pth"
    assert config["optimizer"]["lr"] == 0.1


@pytest.mark.parametrize("text", ["a = dict(_delete_=True, b=1)", "a = [dict(_delete_=True, b=1)]"])
def test_delete_is_never_a_setting(write: Write, text: str) -> None:
    """Mmcv leaves `_delete_` where nothing was inherited, and building then fails on it."""
    assert "_delete_" not in str(read_config(write(text)))


def test_positions_of_a_list(write: Write) -> None:
    """A dict of positions used to replace the list it should change."""
    base = f"_base_ = '{NAME}'\n"
    path = write(base + "data = dict(val=dict(pipeline={'0': dict(size=(512, -1))}))\n")
    config = read_config(path)
    assert config["data"]["val"]["pipeline"][0]["size"] == (512, -1)
    assert config["data"]["val"]["pipeline"][1]["type"] == "Normalize"
    assert config["data"]["test"]["pipeline"][0]["size"] == (256, -1)
    path = write(base + "\ndata = dict(val=dict(pipeline={'7': dict(size=1)}))\n")
    refused(path, 3, "data.val.pipeline", "a list", "_delete_=True")


@pytest.mark.parametrize(
    ("child", "where", "kind"),
    [
        ("load_from = dict(a=1)", "load_from", "None"),
        ("model = dict(backbone=dict(depth=dict(a=1)))", "model.backbone.depth", "an int"),
        ("model = dict(backbone=dict(out_indices=dict(a=1)))", "out_indices", "a tuple"),
        ("workflow = dict(a=1)", "workflow", "a list"),
    ],
)
def test_a_dict_over_something_else(write: Write, child: str, where: str, kind: str) -> None:
    """Mmcv raises a TypeError, without the file; a silent replacement hides the mistake."""
    refused(write(f"_base_ = '{NAME}'\n\n{child}\n"), 3, where, kind, "_delete_=True")


def test_deprecated_names_lead_to_the_new_file(write: Write) -> None:
    """`_deprecation_` used to end up among the settings."""
    path = write(
        f"_base_ = '{NAME}'\n\n"
        f"_deprecation_ = dict(expected='{NAME}', reference='https://example.org/pull/508')\n",
        "resnext/resnext50_32x4d_b32x8_imagenet.py",
    )
    assert read_config(path) == read_config(path.with_name(NAME))


def test_two_bases_may_not_define_the_same(write: Write) -> None:
    """The later base would silently win, which mmcv refuses."""
    write("optimizer = dict(type='Adam')", "_base_/adam.py")
    path = write(f"a = 1\n_base_ = ['{NAME}', '../_base_/adam.py']\n")
    refused(path, 2, "Duplicate key", "optimizer")


def test_cycles(write: Write) -> None:
    """Files that inherit from each other recursed until the stack was full."""
    write("_base_ = 'b.py'", "resnext/a.py")
    path = write("\n_base_ = '../resnext/a.py'", "resnext/b.py")
    with pytest.raises(ConfigError, match=r"a\.py:1: inherits from .*b\.py, which inherits"):
        read_config(path)
    refused(write("_base_ = 'self.py'", "resnext/self.py"), 1, "inherits from")


def test_many_readings_of_one_file(write: Write) -> None:
    """Thirty files, each inheriting twice from the next, were read 2**30 times."""
    for i in range(30):
        write(f"_base_ = ['f{i + 1}.py', 'f{i + 1}.py']", f"f{i}.py")
    with pytest.raises(ConfigError, match="more elements than any config needs"):
        read_config(write("", "f30.py").with_name("f0.py"))


# References and variables


def test_references_to_the_base(write: Write) -> None:
    """Python reads `{{_base_.a}}` as a set in a set, which it cannot make."""
    path = write(
        f"_base_ = '{NAME}'\n"
        "classes = {{_base_.model.head.num_classes}}\n"
        "nested = [dict(mean={{ _base_.img_norm_cfg.mean }}), '{{ _base_.load_from }}']\n"
        "plain = _base_.model.backbone.groups * 2\n"
        "bgr = _base_.img_norm_cfg['mean'][::-1]\n"
        "_base_.model.backbone.depth = 152\n"
    )
    config = read_config(path)
    assert config["classes"] == 1000
    assert config["nested"] == [{"mean": [123.675, 116.28, 103.53]}, None]
    assert config["plain"] == 64
    assert config["bgr"] == [103.53, 116.28, 123.675]
    assert config["model"]["backbone"]["depth"] == 152


def test_variables_of_the_file(write: Write, tmp_path: Path) -> None:
    """The path used to be the one given, not absolute, so work_dir depended on the shell."""
    path = write(
        "work_dir = './work_dirs/{{ fileBasenameNoExtension }}/{{question}}'\n"
        "data_root = '{{fileDirname}}/../data'\n"
        "both = [{{ fileBasename }}, '{{fileExtname}}']\n"
    )
    folder = (tmp_path / "configs/resnext").as_posix()
    expected = {
        "work_dir": "./work_dirs/mine/{{question}}",
        "data_root": f"{folder}/../data",
        "both": ["mine.py", ".py"],
    }
    assert read_config(path) == expected
    assert read_config(os.path.relpath(path)) == expected


def test_json(write: Write) -> None:
    """`{{ _base_.x }}` without quotes is mmcv's JSON, but not JSON."""
    path = write(
        '{"_base_": "' + NAME + '", "model": {"backbone": {"depth": 101}},\n'
        ' "lr": {{ _base_.optimizer.lr }}, "dir": "w/{{ fileBasename }}", "on": true}',
        "resnext/mine.json",
    )
    config = read_config(path)
    assert config["model"]["backbone"]["depth"] == 101
    assert config["model"]["head"]["num_classes"] == 1000
    assert (config["lr"], config["dir"], config["on"]) == (0.1, "w/mine.json", True)
    refused(write('{"a": 1,\n "b": }', "bad.json"), 2, "cannot be parsed")
    refused(write("[1]", "list.json"), 1, "a list")
    refused(write('{"_base_": 3}', "base.json"), 1, "_base_")


# mmengine's pure Python style

LAZY = """\
from mmengine.config import read_base
from mmpretrain.models import LinearClsHead as Head
from mmpretrain.models import ResNeXt

model = dict(backbone=dict(type=ResNeXt, depth=50, cfg=dict(a=1)), head=dict(type=Head))
lr = 0.1
"""
READ = (
    "from mmengine.config import read_base\n\nwith read_base():\n    from .._base_.lazy import *\n"
)


def test_pure_python_style(write: Write) -> None:
    """Imported classes are names, and are no settings themselves."""
    write(LAZY, "_base_/lazy.py")
    config = read_config(write(READ + "extra = dict(type=ResNeXt)\n"))
    assert config == {
        "model": {
            "backbone": {"type": "ResNeXt", "depth": 50, "cfg": {"a": 1}},
            "head": {"type": "LinearClsHead"},
        },
        "lr": 0.1,
        "extra": {"type": "ResNeXt"},
    }


def test_pure_python_changes(write: Write) -> None:
    """`update` merges into what comes from a base, but replaces in a dict made in the file."""
    write(LAZY, "_base_/lazy.py")
    config = read_config(
        write(
            READ + "model.update(dict(backbone=dict(depth=101)), neck=None)\n"
            "model.backbone.merge(dict(cfg=dict(_delete_=True, b=2)))\n"
            "own = dict(a=dict(b=1))\n"
            "own.update(a=dict(c=2))\n"
            "lr *= 2\n"
        )
    )
    assert config["model"] == {
        "backbone": {"type": "ResNeXt", "depth": 101, "cfg": {"b": 2}},
        "head": {"type": "LinearClsHead"},
        "neck": None,
    }
    assert config["own"] == {"a": {"c": 2}}
    assert config["lr"] == 0.2


def test_pure_python_names(write: Write) -> None:
    """Only the names asked for are inherited, and a missing one has a line."""
    write(LAZY, "_base_/lazy.py")
    start = "with read_base():\n    from .._base_.lazy import "
    config = read_config(write(start + "lr as rate, ResNeXt\na = [rate, ResNeXt]\n"))
    assert config == {"rate": 0.1, "a": [0.1, "ResNeXt"]}
    refused(write(start + "nothing\n"), 2, "imports nothing", "lazy.py")
    refused(write("with read_base():\n    import os\n"), 2, "import os")
    refused(write("with open('x'):\n    pass\n"), 1, "with open('x')")
    refused(write("from .._base_.lazy import lr\n"), 1, "from .._base_.lazy import lr")


# Expressions


@pytest.mark.parametrize(
    "text",
    [
        "dict(a=1, **dict(b=2), c=dict())",
        "dict({'a': 1}, a=2)",
        "{'a': 1, **{'a': 2}, 3: (), (1, 'x'): None}",
        "[-1, +2.5, 1e-4, 1 + 2 * 3, 7 // 2, -7 % 3, 2**-1, 1 / 4]",
        "[1, 2] + [3] * 2",
        "('a',) * 2 + ('b',)",
        "'ab' 'cd' + 'e' * 3",
        "[0, 1, 2, 3][1:-1][::-1]",
        "dict(a=[dict(b='xyz')])['a'][0]['b'][-1]",
        "1 < 2 <= 2 != 3",
        "'a' in ['a'] and 3 not in (1, 2) or 0",
        "not 0 and None is None",
        "1 if [] else 2",
        "[dict(i=i, j=i * 2) for i in (1, 2, 3) if i != 2 if True]",
        "[[j for j in [i, i]] for i in [1, 2]]",
        "round(256 / 0.875 / 3)",
        "int(3.7)",
        "True",
    ],
)
def test_expressions_are_pythons(write: Write, text: str) -> None:
    """Every supported expression has the value that Python gives it."""
    value = read_config(write(f"x = {text}\n"))["x"]
    expected = eval(text)
    assert value == expected
    assert repr(value) == repr(expected)


def test_names(write: Write) -> None:
    """Dunder names are dropped as mmcv does, single underscores kept; `[i for i]` leaks none."""
    path = write(
        "'''Docstring with {{_base_.x}}.'''\n"
        "a = _b = 3\n"
        "__c = a + _b\n"
        "d = [i * __c for i in range(3)]\n"
        "e = {'y', 'x', 'y'}\n"
        "import os\n"
    )
    assert read_config(path) == {"a": 3, "_b": 3, "d": [0, 6, 12], "e": ["x", "y"]}


def test_names_share_as_in_python(write: Write) -> None:
    """Copying at every use would lose later changes; not copying at the end would share."""
    path = write(
        "norm = dict(eps=1)\n"
        "steps = [1]\n"
        "a = dict(norm=norm, steps=steps)\n"
        "norm['eps'] = 2\n"
        "steps += [2]\n"
        "a.norm.momentum = 3\n"
    )
    config = read_config(path)
    assert config["a"] == {"norm": {"eps": 2, "momentum": 3}, "steps": [1, 2]}
    assert config["norm"] == config["a"]["norm"]
    assert config["norm"] is not config["a"]["norm"]
    assert config["steps"] is not config["a"]["steps"]


def test_results_are_plain(write: Write) -> None:
    """Dicts from bases used to keep a class of their own, which json and pickle would show."""
    config = read_config(write(f"_base_ = '{NAME}'\na = _base_.model\n"))

    def check(value: Any) -> None:
        assert type(value) in (dict, list, tuple, str, int, float, bool, type(None))
        if isinstance(value, dict | list | tuple):
            for item in value.values() if isinstance(value, dict) else value:
                check(item)

    check(config)
    assert config["a"]["head"] is not config["model"]["head"]


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(1 - 2**63, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8).filter(lambda text: "{{" not in text)
)
KEYS = st.text(max_size=5).filter(lambda text: "{{" not in text and text != "_delete_")
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS | st.integers(-9, 9), inner, max_size=4)
    ),
    max_leaves=20,
)
NAMES = st.text(string.ascii_lowercase, min_size=2, max_size=6).map("v_".__add__)
in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@in_one_folder
@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_literals_round_trip(write: Write, values: dict[str, Any]) -> None:
    """What Python's `repr` writes is read back exactly, types and order included."""
    path = write("".join(f"{name} = {value!r}\n" for name, value in values.items()))
    assert repr(read_config(path)) == repr(values)


@in_one_folder
@given(st.dictionaries(NAMES, VALUES, max_size=3), st.dictionaries(NAMES, VALUES, max_size=3))
def test_json_and_python_agree(write: Write, base: dict[str, Any], child: dict[str, Any]) -> None:
    """A JSON child of a JSON base is what the same files are in Python, or both are refused."""
    base, child = (json.loads(json.dumps(value)) for value in (base, child))
    write(json.dumps(base), "base.json")
    write("".join(f"{name} = {value!r}\n" for name, value in base.items()), "base.py")
    of_json = write(json.dumps({"_base_": "base.json", **child}), "child.json")
    lines = [f"{name} = {value!r}\n" for name, value in child.items()]
    of_python = write("_base_ = 'base.py'\n" + "".join(lines), "child.py")
    results: list[Any] = []
    for path in (of_json, of_python):
        try:
            results.append(read_config(path))
        except ConfigError as error:
            results.append(re.sub(r"^\S+:\d+: ", "", str(error)))
    assert repr(results[0]) == repr(results[1])


@in_one_folder
@given(st.text("()[]{}=.,*+-:'\n a1_d", max_size=40))
def test_nonsense_is_refused_properly(write: Write, text: str) -> None:
    """Any text is a config or a ConfigError: never another exception."""
    with suppress(ConfigError):
        read_config(write(text))


# Refusals


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import os\nos.system('touch {mark}')", ["function call os.system(...)"]),
        ("import os\nx = os.path", ["uses os, a module"]),
        ("from os import system\nsystem('touch {mark}')", ["function call system(...)"]),
        ("from os import *\nx = 1", []),
        ("\n__import__('os').system('touch {mark}')", ["__import__('os').system(...)"]),
        ("\nopen('{mark}', 'w')", ["function call open(...)"]),
        ("\nexec(\"open('{mark}', 'w')\")", ["function call exec(...)"]),
        ("\nx = eval(\"open('{mark}', 'w')\")", ["function call eval(...)"]),
        ("\nx = dict.__subclasses__()", ["function call dict.__subclasses__(...)"]),
        ("\nx = ().__class__", ["'__class__'", "a tuple"]),
        ("\nx = dict().__class__.__base__", ["'__class__'", "a dict"]),
        ("\nx = 'a'.__class__", ["'__class__'", "a str"]),
        ("\nx = [].append", ["'append'", "a list"]),
        ("\nx = lambda: open('{mark}', 'w')", ["lambda"]),
        ("\nx = (lambda: 1)()", ["function call"]),
        ('\nx = f\'{open("{mark}", "w")}\'', ["open("]),
        ("\nx = '{}'.format(1)", ["'{}'.format(...)"]),
        ("\nx = {i: i for i in [1]}", ["for i in [1]"]),
        ("\nx = [y := 1]", ["y := 1"]),
        ("\nx = [i for i in open('{mark}', 'w')]", ["function call open(...)"]),
        ("\ndef f():\n    return 1", ["def f():"]),
        ("\n@open('{mark}', 'w')\nclass A: pass", []),
        ("\nif True:\n    x = 1", ["if True:"]),
        ("\nfor i in [1]:\n    x = i", ["for i in [1]:"]),
        ("\nassert open('{mark}', 'w')", ["assert open"]),
        ("def dict(): pass\nx = dict(a=1)", []),
        ("dict = 3\nx = dict(a=1)", ["function call dict(...)"]),
        ("from os import system as dict\nx = dict(a=1)", ["function call dict(...)"]),
        ("_base_ = []\nx = _base_.a", ["'a'"]),
    ],
)
def test_nothing_runs(write: Write, tmp_path: Path, text: str, words: list[str]) -> None:
    """Reading a stranger's config would run the stranger's code."""
    mark = tmp_path / "mark"
    path = write(text.replace("{mark}", str(mark)))
    lines = text.split("\n")
    line = 1 if lines[0].startswith(("from os import *", "def dict")) else 2
    if lines[1].startswith("@"):  # a decorated class is where its name is
        line = 3
    refused(path, line, *words, *(["executed"] if "function call" in str(words) else []))
    assert not mark.exists()


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9",
        "2**64",
        "10**18 * 10**18",
        "0xffffffffffffffffffff",
        "(-8) ** 0.5",
        "[0] * 10**12",
        "10**12 * 'a'",
        "('a' * 10**6 + 'b' * 10**6)",
        "range(10**15)",
        "round(1e300)",
        "[0 for i in range(1000) for j in range(1000)]",
        "[[[0 for k in range(999)] for j in range(999)] for i in range(999)]",
        "[1 in [0] * 999999 for i in range(999999)]",
        "[[0] * 999999 for i in range(999999)]",
        "1" * 5000,
        "{" * 100 + "}" * 100,
    ],
    ids=lambda text: text[:24],
)
def test_bombs(write: Write, text: str) -> None:
    """A few bytes could fill the memory or hang."""
    refused(write(f"a = 1\n\nx = {text}\n"), 3)


@pytest.mark.parametrize(
    "text",
    [
        "-" * 300_000 + "1",
        "(" * 100_000,
        "()" + "[0]" * 100_000,
        "1" + " + 1" * 100_000,
        "a" + ".a" * 100_000,
        "a" + "()" * 100_000,
        "lambda: " * 100_000 + "1",
    ],
    ids=lambda text: text[:24],
)
def test_depth(write: Write, text: str) -> None:
    """Deep nesting overflowed the stack, ours or the parser's, which knows no line then."""
    with pytest.raises(ConfigError, match="nested"):
        read_config(write(f"x = {text}\n"))


@pytest.mark.parametrize(
    ("start", "step", "end"),
    [
        ("a = [0]", "a = [a, a]", ""),
        ("a = dict()", "a = dict(x=a, y=a)", ""),
        ("a = ()", "a = (a, a)", "b = {a: 1}"),
        ("a = b = [0]", "a = [a, a]\nb = [b, b]", "c = a == b"),
        ("a = [0]", "a = [a, a]", "b = a[a]"),
        ("a = [1]", "a += a", ""),
        ("a = 'a'", "a *= 9", ""),
        ("a = dict()", "a.update(x=a)", ""),
        ("a = dict()\na.x = a", "", ""),
        ("a = []\na += [a]", "", ""),
    ],
)
def test_growth_by_sharing(
    write: Write, monkeypatch: pytest.MonkeyPatch, start: str, step: str, end: str
) -> None:
    """Forty doublings are small while shared, and 2**40 elements when compared or copied."""
    monkeypatch.setattr("resnext.mmcls.config_file._MAX_WORK", 50_000)  # seconds otherwise
    text = "\n".join([start, *[step] * 40, end])
    with pytest.raises(ConfigError, match=r"mine\.py:\d+: (makes|compares|is nested)"):
        read_config(write(text))


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a = 1\nb = dict(\n    c=[\n        1 + 'a'])", 4, "Add to an int and a str"),
        ("a = 1\nb = 1 / 0", 2, "division by zero"),
        ("a = dict(b=1)\nc = a['d']", 2, "'d'"),
        ("a = dict(b=1)\nc = a.d", 2, "'d'"),
        ("a = [1]\nb = a[5]", 2, "5 of a list"),
        ("a = [1]\nb = a['0']", 2, "'0' of a list"),
        ("a = 3\nb = a[0]", 2, "0 of an int"),
        ("a = 3\nb = a[1:]", 2, "a str or list or tuple"),
        ("a = {[1]: 2}", 1, "unhashable"),
        ("a = 1\nb = c", 2, "uses c, which is not defined"),
        ("a = {{_base_.b}}", 1, "_base_"),
        ("a = {{b}}", 1, "{{b}}"),
        ("a = 'x{{_base_.b}}'", 1, "inside the string"),
        ("a = '{{$HOME:/tmp}}'", 1, "inside the string"),
        ("a = dict(\n  b=1,\n  b=2)", 3, "gives b twice"),
        ("a = dict(b=1)\nc = dict(b=2, **a)", 2, "gives b twice"),
        ("a = dict([('b', 1)])", 1, "needs a dict where a list is"),
        ("a = dict({}, {})", 1, "several dicts"),
        ("a = 1\na.b = 2", 2, "an int"),
        ("a = (1,)\na[0] = 2", 2, "a tuple"),
        ("a = [1]\na[3] = 2", 2, "range"),
        ("a, b = 1, 2", 1, "assigns to"),
        ("a = [1]\na.update(b=1)", 2, "needs a dict where a list is"),
        ("a = 'b' % 3", 1, "Mod to a str and an int"),
        ("a = ~1", 1, "~1"),
        ("a = b'x'", 1, "b'x'"),
        ("a = ...", 1, "..."),
        ("a = 1j", 1, "1j"),
        ("a = -'b'", 1, "unary -"),
        ("a = 1\nb = (\n", 2, "cannot be parsed"),
        ("a = 1\n\0", 1, "cannot be parsed"),
        ("a = 1\n_base_ = 3", 2, "sets _base_ to no path"),
        ("a = 1\n_base_ = ['x.py', None]", 2, "sets _base_ to no path"),
        ("a = 1\ndel a", 2, "del a"),
    ],
)
def test_mistakes_have_a_line(write: Write, text: str, line: int, words: str) -> None:
    """Each of these was a traceback of some other type, or no error at all."""
    refused(write(text), line, words)


def test_missing_files(write: Write) -> None:
    """The message said which base is missing, but not which file asks for it."""
    with pytest.raises(MissingFileError, match=r"nowhere\.py does not exist"):
        read_config("nowhere.py")
    path = write("a = 1\n_base_ = '../_base_/models/resnet9000.py'\n")
    with pytest.raises(MissingFileError, match=r"mine\.py:2: .*resnet9000\.py does not exist"):
        read_config(path)
    path = write("with read_base():\n    from .nowhere import *\n")
    with pytest.raises(MissingFileError, match=r"mine\.py:2: .*nowhere\.py does not exist"):
        read_config(path)


@pytest.mark.parametrize("name", ["a.yaml", "a.yml", "a.toml", "a"])
def test_other_formats(write: Write, name: str) -> None:
    """A YAML file was parsed as Python, with a syntax error that misleads."""
    with pytest.raises(ConfigError, match=r"not a \.py or \.json file"):
        read_config(write("a: 1", name))
    with pytest.raises(ConfigError, match=r"mine\.py:1: .*not a \.py or \.json file"):
        read_config(write(f"_base_ = '../{name}'"))


def test_unreadable_files(write: Write, tmp_path: Path) -> None:
    """Directories, pipes, huge files and other encodings are not for the parser."""
    for path in (tmp_path, tmp_path / "folder.py", tmp_path / "pipe.py"):
        if path.name == "folder.py":
            path.mkdir()
        elif path.name == "pipe.py":
            os.mkfifo(path)  # opening it would wait for ever
        with pytest.raises(ConfigError, match="is not a"):
            read_config(path)
    refused(write("#" * 1_000_001), 1, "larger than")
    path = write("")
    path.write_bytes(b"a = '\xff'")
    refused(path, 1, "utf-8")
    path.write_bytes(b"\xef\xbb\xbfa = 1\r\n")
    assert read_config(path) == {"a": 1}


def test_no_warnings(write: Write) -> None:
    r"""Python's SyntaxWarning about `'\d'` is the author's business; with -W error it raised."""
    assert read_config(write("a = '\\d'\n")) == {"a": "\\d"}


def test_infinity(write: Write) -> None:
    """JSON has no infinity, Python's `1e999` does: it stays a float."""
    assert read_config(write("a = -1e999\n"))["a"] == -math.inf


def test_errors_are_ours() -> None:
    """A caller catches ResNeXtError; MissingFileError is also a FileNotFoundError."""
    assert issubclass(ConfigError, ResNeXtError)
    with pytest.raises(FileNotFoundError):
        read_config("nowhere.json")
