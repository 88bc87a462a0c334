from __future__ import annotations

import os
import shutil
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
        algos.make("grppo")


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


ROOT = Path(__file__).resolve().parents[2]
THEIRS = Path(__file__).parent / "third_party"

USE = """
import algos
from algos.learner.learner import Learner, LearnerConfig
from algos.policies.load import load_policy
from algos.rollout.collect import Collector, group_requests
from algos.training.envs import make_envs
from convgym.errors import ConfigError

assert {"sign", "gentle_sign", "grpo"} <= set(algos.names()), algos.names()
assert algos.make("sign", size=2.0).size == 2.0 and algos.make("gentle_sign").size == 0.1
try:
    algos.make("sign", size=0.0)
except ConfigError as error:
    assert "size" in str(error) and "above 0" in str(error)
else:
    raise AssertionError("an illegal setting was taken")

policy = load_policy("nano")
collected = Collector(make_envs("convgym/TextBandit-v0", 8, {}), policy, max_turn_tokens=16)
learner = Learner(policy, algos.make("sign"), LearnerConfig(device="cpu"))
before = {name: weights.clone() for name, weights in policy.model.state_dict().items()}
metrics = learner.update(collected.collect(group_requests(0, 0, 8, 1)).episodes)
assert metrics["skipped_steps"] == 0 and metrics["grad_norm"] > 0 and metrics["kl"] > 0, metrics
assert any((weights != before[name]).any() for name, weights in policy.model.state_dict().items())
"""


def test_an_installed_package_brings_algorithms(tmp_path: Path) -> None:
    """Installed by pip where nothing else is, it is made by name and trains in a fresh process."""
    source, target = tmp_path / "source", tmp_path / "installed"
    shutil.copytree(THEIRS, source)  # the build leaves its folders beside what it builds
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--target", target, source], check=True)
    assert (target / "their_algorithms.py").exists() and not (ROOT / "their_algorithms.py").exists()
    path = os.pathsep.join((str(target), str(ROOT)))
    subprocess.run([sys.executable, "-c", USE], check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})


def test_an_algorithm_is_short() -> None:
    """The one of the package, and the one of the guide (whose code is run with that of the other pages)."""
    guide = (ROOT / "docs" / "guides" / "add-an-algorithm.md").read_text("utf-8")
    first = guide.partition("```python\n")[2].partition("```")[0]
    assert "class Others(Algorithm)" in first and "algos.register" in first
    for code in (first, (THEIRS / "their_algorithms.py").read_text("utf-8")):
        assert len(code.splitlines()) < 40
