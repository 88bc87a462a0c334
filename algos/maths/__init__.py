"""The mathematics of the zoo: pure functions of tensors, from which each algorithm is put together.

- ``advantages``: returns, baselines, group statistics, GAE, whitening.
- ``losses``: ratios, surrogates, value loss.
- ``kl``: estimators of the divergence from a reference, and the penalties made of them.
- ``reductions``: the weight of each token in the loss of a whole optimiser batch.
"""
