"""The code that the methods in ``trainers/`` share: all but a method's own learner and loss.

* ``learner``: the contract of a learner, which is what a method trains; ``trainer``: its training;
* ``starts``, ``learners``, ``losses``: start values, prompts and loss terms of several methods;
* ``classifier``: a frozen CLIP joined with a learner; ``texts``, ``templates``: its texts;
* ``checkpoints``, ``predictor``, ``seeds``, ``recording``: saving, predicting, several seeds in one
  process, the record of a run;
* ``savings``: optional parts that only save time or memory.
"""
