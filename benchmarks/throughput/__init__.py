"""How fast everything is, with other projects beside it: ``python -m benchmarks.throughput``.

Each contestant (this project's engine and learner, ``generate`` of transformers, TRL, vLLM, stateset-agents) is a
process of its own, in an interpreter that has it, with the same weights, prompts and token counts. In every round all
take their turn, in alternating order, while the others sleep; the least CPU seconds of a contestant's rounds count.
CPU seconds and ratios hold on a machine that is shared; wall seconds are kept in the JSON.

``contest.py`` runs contestants, ``models.py`` and ``work.py`` make what they are given, ``decode.py``, ``turns.py``,
``learner.py``, ``training.py``, ``service.py`` and ``envs.py`` are the contests, ``ours.py`` is this project's
contestant, ``marks.py`` says which aims are met, ``page.py`` writes it down.
"""
