"""The throughput benchmark runs, and reports what it was asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from algos.policies.embedded import save_policy
from algos.policies.load import Policy
from benchmarks.throughput import main


def test_decoding_rates_are_printed_and_written(
    tiny_policy: Policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = save_policy(tiny_policy, tmp_path / "policy"), tmp_path / "rates.json"
    settings = ["--lanes", "1", "3", "--prompt", "20", "--new", "10", "--rounds", "1", "--out", str(out)]
    main(["--decode", "--model", str(folder), *settings])
    printed = capsys.readouterr().out
    result = json.loads(out.read_text())
    assert json.loads(printed.strip().splitlines()[-1]) == result
    assert set(result["tokens_per_cpu_second"]) == {"engine", "engine, general path", "generate"}
    for rates in result["tokens_per_cpu_second"].values():
        assert set(rates) == {"1", "3"} and all(rate > 0 for rate in rates.values())
    assert "engine / generate" in printed
