"""Engine for few-shot learning with the public API of Dassl 0.6.3, written afresh.

Reference for the API: Zhou et al., "Domain Adaptive Ensemble Learning" (arXiv 2003.07325), the
Dassl toolbox. Differences are named in the docstring of the part concerned.
"""

__version__ = "0.6.3"
