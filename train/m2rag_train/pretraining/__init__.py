"""Pretraining: masked-language modelling of a mixture of sources.

`corpus.py` tokenises the sources once, `mixture.py` says which row every sample of the run is, `batches.py` masks and
pads or packs rows, `loop.py` is the training, on `transformers.Trainer`.
"""
