"""Query-document pairs from documents that nobody asked about: `python -m m2rag_train.corpus_pairs`.

`queries.py` finds what may be asked in a document, `make.py` writes pairs and development tasks for fine-tuning,
`overlap.py` looks for texts that training and test tasks share.
"""
