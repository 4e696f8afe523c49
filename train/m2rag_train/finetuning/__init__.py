"""Fine-tuning on query-document pairs, where a document may have 32,768 tokens.

The document is what costs, its queries are nearly free: a step takes a few documents, each with several queries.
`data.py` reads pairs, `negatives.py` finds documents that do not answer, `schedule.py` says what each step trains on,
`gradients.py` and `losses.py` compute exact gradients with one document in memory at a time, `evaluation.py` measures
NDCG@10 on the way, `loop.py` is the training.
"""
