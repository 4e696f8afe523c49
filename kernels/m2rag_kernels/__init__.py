"""The three operations M2-BERT is made of, each with a plain definition and fast paths.

Every folder holds `naive.py` (the definition: plain PyTorch, differentiable), `cpu.py` (inference on CPUs) and an
`__init__.py` with one dispatching function.
"""
