"""From text to batches.

corpora: texts, as streams of pieces. text_pieces: where a text may be cut. tokenizers, byte_pairs: text <-> token ids.
dataset: token ids on disk. batches: training and evaluation batches. baselines: losses of simple predictions.
prompts: prompts that a tokenizer knows. packages: data files of installed packages.
"""
