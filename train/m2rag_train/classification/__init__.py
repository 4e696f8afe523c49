"""GLUE: fine-tuning and evaluation of an encoder on the eight tasks, several seeds each.

`tasks.py` knows the tasks and reads them, `metrics.py` measures as GLUE does, `loop.py` trains, `results.py` sums up.
"""
