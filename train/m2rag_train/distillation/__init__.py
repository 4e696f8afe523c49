"""Distillation: a sentence encoder's meanings into a whole-document encoder.

`teacher.py` computes the teacher's vectors once, `batches.py` draws what a step trains on, `loop.py` is the training.
"""
