"""ExecuTorch's files, in an environment of their own: its packages are not among those of tests."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from helpers import environment, tiny_network
from inference_cases import CARD, CONFIG, pictures

import resnext
from resnext.errors import InputError
from resnext.exporting.client import batch_sizes
from resnext.exporting.export import export
from resnext.exporting.graph import ExportedModule
from resnext.exporting.targets import Executorch

PACKAGES = ["executorch==1.5.1", "torchao==0.18.0", "ruamel.yaml"]
PROGRAM = """
import json, os, sys
from pathlib import Path
import numpy as np
import resnext
from resnext.inference import open_runner
from resnext.inference.exported import Exported

file, photo, folder = map(Path, sys.argv[1:])
pixels = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), np.uint8)
wanted = open_runner(file, plan=False).pixels(pixels)[1]
for kind, largest in (("images", 32), ("pixels", 1), ("pixels", 12)):
    one, two = (
        resnext.export(
            file, folder / f"{i}-{kind}-{largest}.pte", input=kind,
            outputs=["probabilities", "embedding"], max_batch=largest,
        )
        for i in range(2)
    )
    exported = Exported(one)
    (found,) = resnext.predict(one, photo, top=4)
    print(json.dumps({
        "same": one.read_bytes() == two.read_bytes(),
        "secret": os.getcwd().encode() not in one.read_bytes(),
        "labels": found.labels,
        "probabilities": found.probabilities,
        "batches": exported.proof["batches"],
        "difference": exported.proof["difference"],
        "embedding": float(abs(exported.pixels(pixels)[1] - wanted).max()),
    }))
"""


@pytest.mark.slow
def test_files_take_what_they_declare(tmp_path: Path) -> None:
    """It declared batches of 32 and failed at 17; predict takes the files, also in pieces."""
    network = tiny_network(CONFIG, CARD)
    resnext.save(network, tmp_path / "pets.safetensors")
    photo = next(pictures(tmp_path / "photos", 1).rglob("*.png"))
    (wanted,) = resnext.predict(network, photo, top=4)
    python = environment("executorch", PACKAGES) / "python"
    arguments = [tmp_path / "pets.safetensors", photo, tmp_path]
    done = subprocess.run(
        [python, "-c", PROGRAM, *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["batches"] for row in rows] == [
        [1, 2, 17, 32, 12],
        [1] * 64,
        [1, 2, *[12] * 5, 1],
    ]
    for row in rows:
        assert row["same"]
        assert row["secret"]
        assert tuple(row["labels"]) == wanted.labels
        assert row["probabilities"] == pytest.approx(wanted.probabilities, abs=1e-5)
        assert max(row["difference"].values()) <= 1e-4
        assert row["embedding"] < 1e-4


def test_the_bound_is_no_other_size() -> None:
    """With a bound of 16, files of networks with a map of 16×16 took nothing but batches of 16."""
    module = ExportedModule(
        tiny_network(CONFIG, CARD), CARD, "images", ("logits",), half=False
    ).eval()
    side = CARD.preprocessing.size
    for bound, wanted in ((side, side + 1), (side + 9, side + 9), (1, None)):
        module.max_batch = bound
        ranges = Executorch().build(module, "fixed").range_constraints.values()
        assert [one.upper for one in ranges] == ([] if wanted is None else [wanted])


def test_the_largest_batch_is_tried() -> None:
    """All pictures, in batches up to the bound and of the bound."""
    assert batch_sizes(44, 64) == [1, 2, 17, 44]
    assert batch_sizes(17, 64) == [1, 2, 17, 17, 17, 10]
    assert batch_sizes(2, 5) == [1, 2, 2]
    assert batch_sizes(100, 64) == [1, 2, 17, 100]


def test_refusals(tmp_path: Path) -> None:
    """What to install, and what only these files have."""
    network = tiny_network(CONFIG, CARD)
    with pytest.raises(InputError, match=r"pip install .*resnext\[executorch"):
        export(network, tmp_path / "net.pte")
    with pytest.raises(InputError, match="Leave out --max-batch"):
        export(network, tmp_path / "net.onnx", max_batch=4)
    for wrong in (0, 257, True, 2.0):
        with pytest.raises(InputError, match="max_batch must be from 1 to 256"):
            export(network, tmp_path / "net.pte", max_batch=wrong)  # pyright: ignore
    (tmp_path / "net.pte").write_bytes(b"none")
    with pytest.raises(InputError, match=r"pip install .*resnext\[executorch"):
        resnext.predict(tmp_path / "net.pte", next(pictures(tmp_path / "p", 1).rglob("*.png")))
