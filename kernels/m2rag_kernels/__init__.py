"""The operations M2-BERT is made of, each with a plain definition and fast paths.

Every folder holds `naive.py` (the definition: plain PyTorch, differentiable), `cpu.py` (inference on CPUs), `train.py`
(training on CPUs: a hand-written backward), `triton.py` (GPUs, forward and backward; imported only where it is used)
and an `__init__.py` with one dispatching function. `mixer` joins the first two operations into one pass over the
channels, for inference; its definition is the composition in `M2BertMixer`.
"""

from __future__ import annotations

from m2rag_kernels.cache import DerivedCache, HeapTrimmer, Workspace
from m2rag_kernels.dispatch import KERNELS, check_kernels, choose, chosen, needs_grad

__all__ = ["KERNELS", "DerivedCache", "HeapTrimmer", "Workspace", "check_kernels", "choose", "chosen", "needs_grad"]
