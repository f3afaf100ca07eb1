"""How far a value may be from the recorded one, as a share of the array's largest magnitude.

The limits are those that the recorded files' description suggests: float32 against float64 of the
reference itself differs by up to 1.2e-6, 4e-6, 2e-6 and 1.3e-5.
"""

FEATURES = LOGITS = 2e-5
LOSS = 1e-5
GRADIENTS = 2e-4
TRAINING = 1e-4
