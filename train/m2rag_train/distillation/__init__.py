"""Distillation: a sentence encoder's meanings into a whole-document encoder.

`teacher.py` reads text as the teacher does, `cache.py` keeps its vectors, `batches.py` draws what a step trains on,
`loop.py` is the training.
"""
