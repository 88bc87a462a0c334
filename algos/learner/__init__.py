"""The learner: scores at action positions, one normaliser, backward, step; and its checkpoints."""
