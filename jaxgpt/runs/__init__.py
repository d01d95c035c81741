"""A run on disk, and the files of other tools.

state            the training state: step, parameters, optimizer state
checkpoint       save and restore the state, with checksums
load             open a run folder for use; write one for an imported model
records          config.json, run.json, metrics.jsonl, samples, embedding tables
curves           compare the losses of two runs
gpt2             GPT-2 folders of the Hugging Face libraries, in and out
gpt2_layout      their config.json and tensors
tensor_files     their safetensors files
tokenizer_files  their tokenizers
orbax_log        keeps Orbax's own messages off the screen
"""
