from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import algos
from algos.bc import BC
from algos.grpo import GRPO
from convgym.errors import ConfigError, UnknownNameError


def test_names_are_sorted_and_all_of_them_can_be_made() -> None:
    assert algos.names() == sorted(algos.names())
    assert {"bc", "dr_grpo", "grpo", "ppo", "reinforce", "rloo"} <= set(algos.names())
    for name in algos.names():
        algorithm = algos.make(name)
        assert algos.make(name, **algos.to_config(algorithm)) == algorithm


def test_the_table_imports_without_torch() -> None:
    code = "import sys, algos; algos.names(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_presets_are_data() -> None:
    assert algos.make("dr_grpo") == GRPO(scale="none", reduce="const")
    rloo = GRPO(baseline="leave_one_out", scale="none", ratio="sequence", reduce="seq_sum")
    assert algos.make("rloo") == rloo
    assert algos.make("dr_grpo", high=0.28) == GRPO(scale="none", reduce="const", high=0.28)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'grpo'"):
        algos.make("gpro")


def test_an_unknown_field_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'baselin'.*'baseline'"):
        algos.make("grpo", baselin="none")
    with pytest.raises(ConfigError, match=r"KL 'bta'.*'beta'"):
        algos.make("grpo", kl={"bta": 0.1})


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A copy of the table, so that what a test registers is forgotten."""
    copy = dict(algos.ALGORITHMS)
    monkeypatch.setattr(algos, "ALGORITHMS", copy)
    return copy


def test_registered_algorithms_are_made_like_the_others(table: dict[str, Any]) -> None:
    class Mine(BC):
        """A local class."""

    algos.register("by_class", Mine)
    algos.register("by_path", "algos.bc:BC")
    algos.register("by_preset", algos.Preset("algos.grpo:GRPO", {"eps": 0.5}))
    assert type(algos.make("by_class", epochs=2)) is Mine
    assert algos.make("by_path") == BC()
    assert algos.make("by_preset") == GRPO(eps=0.5)
    assert {"by_class", "by_path", "by_preset"} <= set(algos.names())


def test_a_taken_name_and_a_bad_target_are_refused(table: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="already registered"):
        algos.register("grpo", "algos.bc:BC")
    with pytest.raises(ConfigError, match="module:Class"):
        algos.register("mine", "algos.bc.BC")
    for path in ("no_such_module:X", "algos.bc:NoSuchClass"):
        algos.register(path, path)
        with pytest.raises(ConfigError, match="cannot be imported"):
            algos.make(path)
    assert "mine" not in table


def test_installed_packages_bring_algorithms(tmp_path: Path) -> None:
    """A real distribution on the path, with a class and a preset, seen by a fresh process."""
    (tmp_path / "their_package.py").write_text(
        "from algos import Preset\nfrom algos.bc import BC\nclass Theirs(BC): pass\n"
        "their_preset = Preset('algos.grpo:GRPO', {'scale': 'none'})\n"
    )
    info = tmp_path / "their_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[convgym.algorithms]\ntheirs = their_package:Theirs\nflat = their_package:their_preset\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import algos; "
        "assert {'theirs', 'flat', 'grpo'} <= set(algos.names()), algos.names(); "
        "assert type(algos.make('theirs', epochs=3)).__name__ == 'Theirs'; "
        "assert algos.make('flat').scale == 'none'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
