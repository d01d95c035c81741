"""A run on disk, and the files of other tools.

state            the training state: step, parameters, optimizer state
checkpoint       save the state, read it back, and restore it
stored_steps     what is stored at one step, and the proof that it is what was written
damage           which errors prove that a checkpoint is damaged
checksums        of arrays
load             open a run folder for use; write one for an imported model
records          config.json, run.json, samples, embedding tables
snapshots        the parameters alone, at many steps
metrics_log      metrics.jsonl
trackers         send the metrics to TensorBoard, Weights & Biases, Trackio, MLflow
curves           compare the losses of two runs
published        folders of published models (the Hugging Face libraries), in and out
convert          the command line for them
families/        their architectures: config.json and tensors
gguf/            their GGUF files, in and out
tensor_files     their safetensors files
tokenizer_files  their tokenizers
orbax_paths      paths that Orbax can use
orbax_log        keeps Orbax's own messages off the screen
"""
