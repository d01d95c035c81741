"""Looking inside a model: every intermediate of a forward pass, and what is computed from them.

`capture.capture(run.config.model, run.params, tokens_T)` runs one text and keeps all that lies between tokens and logits; `analysis` has plain
NumPy functions of it. `payload` makes all numbers of a report of them, and `page` one HTML file of those.
"""
