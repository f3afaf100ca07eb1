"""What the methods in ``trainers/`` are made of: everything but a method's own learner and loss.

``learner`` is the contract of what a method trains, ``trainer`` the training of it. ``starts`` and
``learners`` hold what several methods build their prompts from, ``losses`` the terms that several
add up. ``classifier`` joins a frozen CLIP and a learner; ``texts`` encodes class names and
``templates`` lists hand-written words. ``checkpoints``, ``predictor`` and ``seeds`` are what comes
with every method. ``savings`` holds what only saves time or memory.
"""
