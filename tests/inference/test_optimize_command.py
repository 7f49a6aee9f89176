"""`resnext optimize`, and the commands that use its plan."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers import run_cli

from resnext.cli.app import main
from resnext.inference.plan import plan_path, read_plans

pytestmark = pytest.mark.usefixtures("one_thread", "quick_search")


def run(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    code, out, err = run_cli(capfd, monkeypatch, *arguments)
    return code, out, " ".join(err.split())


def test_the_command(
    file: Path, photos: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It prints a table and writes a plan, which predict and evaluate then use."""
    code, out, err = run(capfd, monkeypatch, "optimize", file, "--batch-size", 2)
    assert code == 0, err
    assert "PyTorch, unmodified" in out
    assert out.count("chosen") == 1
    assert f"{plan_path(file)}: the plan; predict and evaluate now use it" in out
    assert "Timing onnxruntime fp32" in err
    (plan,) = read_plans(plan_path(file))
    assert (plan.batch, plan.mismatch()) == (2, "")
    engine = f"{plan.form.engine}, fp32"

    for command in (["predict", file, photos], ["evaluate", file, photos]):
        code, out, err = run(capfd, monkeypatch, *command)
        assert code == 0, err
        assert engine in err
        code, without, err = run(capfd, monkeypatch, *command, "--no-plan")
        assert code == 0, err
        assert engine not in err
        assert ".plan.json" not in err
        assert out == without

    code, out, err = run(capfd, monkeypatch, "optimize", file, "-b", 2)
    assert (code, "Timing" in err) == (0, False)  # remembered
    code, out, err = run(capfd, monkeypatch, "optimize", file, "-b", 2, "--again")
    assert (code, "Timing" in err) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.safetensors"], "nothing.safetensors is not a file"),
        (["resnext50_32x4d.a1_in1k"], "is not a file"),
        (["FILE", "--batch-size", "0"], "batch must be from 1"),
        (["FILE", "--precision", "int8"], "give data"),
        (["FILE", "--engine", "abacus"], "--engine"),
        (["FILE", "--data", "nowhere"], "nowhere"),
        (["FILE", "--device", "toaster"], "device 'toaster' cannot be used"),
    ],
)
def test_mistakes_end_in_one_line(
    file: Path,
    arguments: list[str],
    message: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is measured or written."""
    monkeypatch.chdir(file.parent)
    words = [str(file) if word == "FILE" else word for word in arguments]
    monkeypatch.setattr(sys, "argv", ["resnext", "optimize", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capfd.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("resnext: ")
    assert message in err
    assert not plan_path(file).exists()
