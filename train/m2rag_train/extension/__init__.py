"""Context extension: a model for longer inputs, from the weights of one for shorter ones.

`extend.py` re-grids what depends on the length, `measure.py` is the recipe's work: extend, and tell what it cost.
"""
