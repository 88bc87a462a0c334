"""Speed and training of a pretrained model on one GPU: ``python -m benchmarks.gpu``.

Made for a machine with a GPU that one has for a while, perhaps without internet: every piece of work writes its result
at once, what is there is not done again, and training goes on from its checkpoint. ``--plan``
prints the commands, ``--dry`` does everything small on a CPU.

``speed.py`` holds contests as ``benchmarks.throughput`` does, by wall seconds; ``training.py`` is the real run;
``results.py`` keeps what was found; ``page.py`` writes it down; ``plan.py`` says how to get there.
"""
