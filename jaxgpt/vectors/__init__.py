"""Embedding tables and word vectors.

vector_files, word_vectors: reading vectors, and initial rows from them. tables: the tables of runs and of files, with
named rows. nearest: exact nearest rows. geometry: principal axes, drift. word_tests: analogies, related pairs, test
sets. questions: the answers of `python -m jaxgpt.embeddings`.
"""
