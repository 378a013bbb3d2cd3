"""The values recorded from the authors' code, through the same runner as the command line."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).with_name("run.py")
spec = importlib.util.spec_from_file_location("kdfw_golden_run", FILE)
assert spec is not None and spec.loader is not None
golden: Any = importlib.util.module_from_spec(spec)
sys.modules["kdfw_golden_run"] = golden  # dataclasses look their module up
spec.loader.exec_module(golden)

METHODS = sorted({case.method for case in golden.read_cases(golden.golden_folder())})


@pytest.mark.parametrize("method", METHODS)
def test_recorded_values(method: str) -> None:
    if not golden.plugin_folder(method).is_dir():
        pytest.skip(f"{method}: no plugin yet")
    outcomes = golden.run(golden.golden_folder(), {method})
    assert outcomes
    messages = [message for outcome in outcomes for message in outcome.messages]
    assert not messages, "\n".join(messages)


def write(folder: Path, expected: dict[str, Any], **more: Any) -> None:
    params = {"max_value": 0, "min_value": -1, "num_loops": 10, **more}
    case = {"params": params, "inputs": {"epoch": [5]}, "expected": expected}
    group = {"method": "ctkd", "function": "cosine_lambda_schedule", "source": "", "params": {}, "cases": [case]}
    other = {**group, "function": "nothing_of_this_name"}
    (folder / "ctkd.json").write_text(json.dumps([group, other]))


def test_a_wrong_value_fails_and_an_unknown_function_is_missing(tmp_path: Path, capsys: Any) -> None:
    write(tmp_path, {"value": [-0.5001]})
    assert golden.main([str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "golden ctkd cosine_lambda_schedule passed=0 failed=1 missing=0" in shown.out
    assert "golden ctkd nothing_of_this_name passed=0 failed=0 missing=1" in shown.out
    assert "ctkd cosine_lambda_schedule case 0: value [0]: got -0.5, expected -0.5001" in shown.err


def test_a_value_that_is_not_computed_fails(tmp_path: Path) -> None:
    write(tmp_path, {"value": [-0.5], "something_else": 1.0})
    outcome = golden.run(tmp_path)[0]
    assert (outcome.passed, outcome.failed) == (0, 1)
    assert "something_else: not computed" in outcome.messages[0]


def test_tolerance_follows_the_dtype_of_the_source(tmp_path: Path) -> None:
    write(tmp_path, {"value": [-0.50002]})
    assert golden.run(tmp_path)[0].failed == 1
    write(tmp_path, {"value": [-0.50002]}, dtype="float32")
    assert golden.run(tmp_path)[0].passed == 1
    mixed = "float32 for official_*, float64 for aligned_*"
    assert golden.tolerance("official_loss", mixed)[0] == 1e-4
    assert golden.tolerance("aligned_loss", mixed)[0] == 1e-6


def test_a_folder_without_golden_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no golden file"):
        golden.run(tmp_path)
