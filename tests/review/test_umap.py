"""The map of the data by UMAP, in an environment of its own."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import numpy as np
from resnext.review.layout import arrange
from test_map import clusters, purity

embeddings, groups = clusters(4, 60)
points = arrange(embeddings)
assert points.shape == (240, 2)
assert (points.min(), points.max()) == (0, 1)
assert purity(points, groups) > 0.95
assert np.array_equal(points, arrange(embeddings)), "the same images have the same map"
for count in (9, 10, 12, 17):  # fewer images than UMAP's neighbours
    assert np.isfinite(arrange(embeddings[:count])).all(), count
assert np.isfinite(arrange(np.ones((40, 8)))).all(), "equal images"
"""


@pytest.mark.slow
def test_umap_arranges(tmp_path: Path) -> None:
    """It needs numba, which is in no other environment of the tests."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    install = [str(python), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt")]
    done = subprocess.run([*install, "umap-learn"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"umap-learn cannot be installed: {done.stderr.strip()[-200:]}")
    paths = [str(Path(__file__).parent), *sys.path]
    start = f"import sys; sys.path += {paths!r}\n"  # after the environment's own packages
    subprocess.run([str(python), "-W", "error::FutureWarning", "-c", start + PROGRAM], check=True)
