"""The transformer, its parameters, where they are stored, and text from it. Read in this order:

gpt         the model: tokens -> logits; the legend of shapes; the KV cache
attention   causal attention, explicit and fused
layers      activations, norms, positions, dropout, the linear layer, the MLP
linear      the table of linear layers: one row says all that is known about one
initial     initial values
parameters  shapes, number and fresh values of all parameters; paths: their names
sharding    the mesh of devices, and the part of each parameter that a device holds
lora        low-rank changes, merged into the kernels
generation  sampling with a cache
"""
