"""Embedding tables and word vectors: reading, searching and testing them."""
