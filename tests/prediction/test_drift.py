"""Drift: false alarms as rare as stated, real changes found, and tables read as they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import run_cli
from scipy.stats import chi2_contingency, ks_2samp

from resnext.errors import InputError
from resnext.prediction import drift as module
from resnext.prediction.drift import Answers, Drift, DriftMonitor, find_drift, read_answers

LABELS = tuple("abcdef")


def drawn(
    rng: np.random.Generator, count: int, weights: Sequence[float], sure: float = 6.0
) -> tuple[np.ndarray, np.ndarray]:
    """Classes and probabilities of answers."""
    chosen = rng.choice(len(weights), count, p=np.array(weights) / sum(weights))
    return chosen, rng.beta(sure, 1, count)


def as_answers(chosen: np.ndarray, probabilities: np.ndarray) -> Answers:
    """The same as a table holds."""
    return Answers(LABELS, np.bincount(chosen, minlength=6), np.sort(probabilities))


def test_p_values_are_those_of_scipy() -> None:
    """The tests are ours, because scipy is not required."""
    rng = np.random.default_rng(0)
    for seed in range(6):
        a = drawn(rng, 300, [1, 1, 1, 1, 1, 1 + 0.1 * seed])
        b = drawn(rng, 700, [1, 1, 1, 1, 1, 1], 6 - 0.2 * seed)
        found = find_drift(as_answers(*a), as_answers(*b))
        table = [np.bincount(x[0], minlength=6) for x in (a, b)]
        assert found.label_p == pytest.approx(float(chi2_contingency(table)[1]), abs=0.05)  # pyright: ignore
        wanted: Any = ks_2samp(a[1].round(4), b[1].round(4), method="exact")
        assert found.probability_distance == pytest.approx(wanted.statistic)
        assert found.probability_p == pytest.approx(wanted.pvalue, abs=0.02)


def test_false_alarms_are_as_rare_as_stated() -> None:
    """Also for rare classes and equal probabilities, where usual approximations fail."""
    rng = np.random.default_rng(0)
    weights = [100, 50, 2, 1, 0.5, 0.1]
    alarms = 0
    for _ in range(300):
        pairs = (drawn(rng, count, weights, 20.0) for count in (150, 400))
        a, b = (as_answers(x, p.round(2)) for x, p in pairs)
        alarms += find_drift(a, b).drifted
    assert alarms <= 22  # 99 % of runs with a true rate of 5 %


def test_changes_are_found() -> None:
    """A new class that is taken for a known one, and images that make the model unsure."""
    rng = np.random.default_rng(0)
    usual = as_answers(*drawn(rng, 3000, [1] * 6))
    grown = find_drift(as_answers(*drawn(rng, 1000, [1, 1, 1, 1, 1, 1.7])), usual)
    assert grown.drifted
    assert grown.classes[0].label == "f"
    assert grown.classes[0].z > 3
    assert grown.classes[0].now == pytest.approx(1.7 / 6.7, abs=0.04)
    assert grown.verdict.startswith("Drift in 1,000 answers, of the classes: p = ")
    unsure = find_drift(as_answers(*drawn(rng, 1000, [1] * 6, 4.5)), usual)
    assert unsure.drifted
    assert unsure.label_p > 0.05
    assert "of the probabilities: p = " in unsure.verdict
    unseen = find_drift(Answers(("z",), np.array([50]), np.full(50, 0.5)), usual)
    assert unseen.classes[0] == ("z", 0.0, 1.0, pytest.approx(55.2, abs=0.1))
    assert unseen.label_distance == 1


def test_the_monitor_looks_at_the_newest_answers() -> None:
    """It says nothing before its window is full, and forgets what has left it."""
    spread = np.random.default_rng(0).permutation(np.linspace(0.5, 1, 200))
    reference = as_answers(np.arange(1800) % 6, np.linspace(0.5, 1, 1800))
    monitor = DriftMonitor(reference, window=200)

    def add(count: int, label: str = "") -> Drift | None:
        for i in range(count):
            monitor.add(label or LABELS[i % 6], spread[i])
        return monitor.drift()

    assert add(199) is None
    first = add(1)
    assert first is not None
    assert (first.count, first.drifted) == (200, False)
    assert add(3) is first  # a fiftieth of the window is 4
    assert add(1) is not first
    strange = add(50, "zebra")
    assert strange is not None
    assert strange.drifted
    assert strange.classes[0].label == "others"
    after = add(200)
    assert after is not None
    assert not after.drifted
    with pytest.raises(InputError, match="window must be"):
        DriftMonitor(reference, window=0)


def test_digits_of_engines_are_no_drift() -> None:
    """A table has all digits, a server's answers six; of a sure model they all differ."""
    exact = 1 - np.random.default_rng(0).uniform(0, 4e-6, 2000)
    counts = np.array([2000, 0, 0, 0, 0, 0])
    written = Answers(LABELS, counts, np.sort(exact).round(6))
    assert not find_drift(written, Answers(LABELS, counts, np.sort(exact))).drifted


ROWS = [("a", 0.9), ("b", 0.5), (None, None), ("a", 0.25)]


def table(path: Path) -> Path:
    """A table as `predict --out --top 2` writes it."""
    if path.suffix == ".csv":
        lines = [
            f"{i}.jpg,{'' if x else 'damaged'},{x or ''},{p or ''},c,0.01"
            for i, (x, p) in enumerate(ROWS)
        ]
        head = "path,error,label,probability,label_2,probability_2"
        path.write_text("\n".join([head, *lines]) + "\n")
    elif path.suffix == ".jsonl":
        lines = [
            {"path": "i", "labels": [x, "c"], "probabilities": [p, 0.01]}
            if x
            else {"path": "i", "error": "damaged"}
            for x, p in ROWS
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        labels, values = zip(*ROWS, strict=True)
        columns = {"path": ["i"] * 4, "label": labels, "probability": values}
        parquet.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_all_tables_of_predict_are_read(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The most likely class only; images that could not be read are counted apart."""
    monkeypatch.setattr(module, "_ROWS", 3)  # so that there are two blocks
    found = read_answers(table(tmp_path / f"answers{suffix}"))
    assert dict(zip(found.labels, found.counts.tolist(), strict=True)) == {"a": 2, "b": 1}
    assert found.probabilities.tolist() == [0.25, 0.5, 0.9]
    assert (found.count, found.unreadable) == (3, 1)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", r"must end in \.csv, \.jsonl or \.parquet"),
        ("a.csv", None, "does not exist. Write it with predict --out"),
        ("a.csv", "path,class\nx,y\n", "is not a table of answers .no column label."),
        ("a.csv", "label,probability\na,high\n", "is not a table of answers .could not convert"),
        ("a.csv", "label,probability\na,\n", "a label without a probability"),
        ("a.csv", "label,probability\na,nan\n", "probabilities that are not from 0 to 1"),
        ("a.csv", "label,probability\na,90\n", "probabilities that are not from 0 to 1"),
        ("a.csv", "label,probability\n", r"a\.csv holds no answer\.$"),
        ("a.csv", "label,probability\n,\n", "holds no answer, only 1 image without one"),
        ("a.csv", b"label,probability\n\xff,1\n", "is not a table of answers"),
        ("a.jsonl", '{"path": "x"}\n', "is not a table of answers"),
        ("a.jsonl", "[1]\n", "is not a table of answers"),
        ("a.jsonl", '{"labels": [], "probabilities": []}\n', "is not a table of answers"),
        ("a.jsonl", "{\n", "is not a table of answers"),
        ("a.parquet", "PAR1", "is not a table of answers"),
    ],
)
def test_what_is_refused(name: str, text: str | bytes | None, message: str, tmp_path: Path) -> None:
    """One line that says what to do."""
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(InputError, match=message):
        read_answers(path)


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 on drift, for schedulers, and the classes that grew."""
    rng = np.random.default_rng(0)
    for name, weights in (("reference", [1] * 6), ("same", [1] * 6), ("new", [1, 1, 1, 1, 1, 2])):
        pairs = zip(*drawn(rng, 800, weights), strict=True)
        lines = [f"{i}.jpg,,{LABELS[x]},{p:.4f}" for i, (x, p) in enumerate(pairs)]
        (tmp_path / f"{name}.csv").write_text("path,error,label,probability\n" + "\n".join(lines))
    monkeypatch.chdir(tmp_path)

    def run(answers: str, *more: object) -> tuple[int, str, str]:
        return run_cli(capsys, monkeypatch, "drift", answers, "--reference", "reference.csv", *more)

    code, out, _ = run("same.csv")
    assert code == 0
    assert "No drift found in 800 answers" in out
    code, out, _ = run("new.csv", "--json", "out.json")
    assert code == 1
    assert "Drift in 800 answers, of the classes" in out
    assert "Classes whose share changed" in out
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["drifted"] is True
    assert written["classes"][0]["label"] == "f"
    code, _, err = run("new.csv", "--alpha", 0)
    assert code == 2
    assert "alpha must be between 0 and 1" in err
