"""Folder prediction on a Ray cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import Fake, fill, left, opens

from resnext.errors import InputError
from resnext.prediction.files import predict_files

ON_A_CLUSTER = """
import sys

import ray
from ray import cloudpickle

import fakes
from resnext.prediction import ray as bulk_ray

cloudpickle.register_pickle_by_value(fakes)
bulk_ray._BLOCK = 4
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
folder, out = sys.argv[1:]
done = bulk_ray.predict_files_with_ray("fake", folder, out, top=3, opener=fakes.opens)
ray.shutdown()
print(done.count, done.unreadable)
"""


def test_ray_writes_the_same_table(tmp_path: Path) -> None:
    """From several machines, rows came in the order they were finished, or of other digits.

    In a process of its own: one that has used Ray dies when later children of it end.
    """
    from resnext.prediction.ray import predict_files_with_ray

    folder, out = fill(tmp_path / "in"), tmp_path / "p.csv"
    (folder / "a" / "001.png").write_text("no image")
    plain = predict_files(Fake(), folder, tmp_path / "w.csv", top=3)
    with pytest.raises(InputError, match="embeddings are not collected"):
        predict_files_with_ray("fake", folder, out, embeddings="e.npy", opener=opens)
    done = subprocess.run(
        [sys.executable, "-c", ON_A_CLUSTER, str(folder), str(out)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0
    assert done.stdout.split()[-2:] == ["23", "1"]
    assert (plain.count, plain.unreadable) == (23, 1)
    assert out.read_bytes() == (tmp_path / "w.csv").read_bytes()
    assert left(tmp_path) == {"in", "p.csv", "w.csv"}


def test_ray_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bare ModuleNotFoundError does not say what to install."""
    from resnext.prediction.ray import predict_files_with_ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r'pip install "resnext\[ray\]"'):
        predict_files_with_ray("fake", tmp_path, tmp_path / "p.csv", opener=opens)
