"""Training of M2-BERT embedders: sources, teacher cache, losses, one readable loop, export."""
