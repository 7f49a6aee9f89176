"""Rows, ratios, the table and the chart."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from resnext.benchmark.results import Benchmark, BenchmarkRow, SpeedRatio
from resnext.cli.plots import plot_benchmark
from resnext.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread", "wide")


@pytest.fixture
def written() -> Benchmark:
    """Invented rows."""
    rows = (
        BenchmarkRow("torchvision", "fp32", 1, 10, 100, 120, 0.5, how="NCHW"),
        BenchmarkRow("OpenVINO", "fp32", 1, 40, 25, 30, 0.8, how="LATENCY, whole batch"),
        BenchmarkRow("timm", "fp32", 1, 90, 12, 13, 0.9, note="wrong: logits differ by 0.5"),
        BenchmarkRow(
            "resnext", "fp32", 1, 50, 20, 21, 0.9, how="openvino, 1 × 1 image, groups of 16"
        ),
        BenchmarkRow("torchvision", "fp32", 16, 20, 800, 900, 0.5, 900.0, how="NCHW"),
        BenchmarkRow("ONNX Runtime", "fp32", 16, note="not installed"),
        BenchmarkRow("OpenVINO", "fp32", 16, 80, 200, 210, 0.8, 300.0, how="LATENCY, whole batch"),
        BenchmarkRow("OpenVINO", "bf16", 16, 240, 66, 70, 0.4, 310.0),
        BenchmarkRow("OpenVINO", "int8", 16, 300, 53, 59, None, 210.0),
        BenchmarkRow("resnext", "fp32", 16, 78, 205, 215, 0.75, 280.0),
        BenchmarkRow("resnext", "bf16", 16, 252, 63, 70, 0.42, 300.0),
        BenchmarkRow("resnext", "int8", 16, 420, 38, 40, None, 200.0),
    )
    versions = {"resnext": "0.1.0", "torch": "2.13.0"}
    peaks = {"fp32": 100.0, "bf16": 400.0}
    return Benchmark("Some Processor", 2, versions, "resnext50_32x4d", 224, peaks, rows)


def test_ratios_by_hand(written: Benchmark) -> None:
    """Compared with the best valid peer of equal batch size and precision."""
    assert written.ratios() == (
        SpeedRatio(1, "fp32", "OpenVINO", 1.25),
        SpeedRatio(16, "fp32", "OpenVINO", 0.975),
        SpeedRatio(16, "bf16", "OpenVINO", 1.05),
        SpeedRatio(16, "int8", "OpenVINO", 1.4),
    )
    fastest = written.fastest(16, who="resnext")
    assert fastest is not None
    assert fastest.precision == "int8"
    assert written.fastest(2) is None


def test_plot(written: Benchmark, tmp_path: Path) -> None:
    """A chart is written; unknown suffixes and empty charts are refused."""
    plot_benchmark(written, tmp_path / "bench.png")
    with Image.open(tmp_path / "bench.png") as image:
        assert image.width > 800
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 3
    with pytest.raises(InputError, match=r"\.png, \.svg or \.pdf"):
        plot_benchmark(written, tmp_path / "bench.jpg")
    nothing = Benchmark(
        "m", 1, {}, "n", 1, {}, (BenchmarkRow("timm", "fp32", 1, note="not installed"),)
    )
    with pytest.raises(InputError, match="Nothing"):
        plot_benchmark(nothing, tmp_path / "bench.png")
