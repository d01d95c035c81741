"""From text to batches: corpora, tokenizers, ids on disk, what there is to beat."""
