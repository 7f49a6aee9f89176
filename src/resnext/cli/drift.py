"""`resnext drift`: whether answers still look like those of a reference."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from resnext.cli.options import check_outputs, write_json


def drift(
    answers: Path,
    /,
    *,
    reference: Annotated[Path, Parameter(name=["--reference", "-r"])],
    alpha: float = 0.05,
    json: Path | None = None,
) -> None:
    """Test whether a model's answers have changed, without labels; exit code 1 if they have.

    Two tests are made, of how often each class is answered and of the probabilities. Images of a
    new class, a dirty lens or another mix of classes change at least one of them.

    Args:
        answers: The table that `predict --out` wrote (.csv, .jsonl or .parquet).
        reference: Such a table of images as they should be, which the model was not trained on,
            such as those that training held out: `predict model.safetensors photos/val --out
            reference.csv`. A thousand images or more.
        alpha: Accepted probability of a false alarm.
        json: Also write the results, with every class, to this JSON file.
    """
    check_outputs(json)
    from resnext.cli.tables import print_drift
    from resnext.prediction.drift import find_drift, read_answers

    result = find_drift(read_answers(answers), read_answers(reference), alpha=alpha)
    print_drift(result)
    if json is not None:
        write_json(json, result.to_dict())
        print(f"{json}: all results, with every class")
    print(result.verdict)
    if result.drifted:
        sys.exit(1)
