"""GGUF, the files of llama.cpp, Ollama and others: one file with a model's metadata, tokenizer and weights.

reader          a file's metadata and tensors, checked
architectures   its names and order of numbers, as those of a family
tensors         what a family reads
tokenizer       byte-level BPE, both ways
models          import a file as a run, export a run as a file
"""
