"""GGUF files (llama.cpp, Ollama, LM Studio): a whole model in one file, opened as a Hugging Face folder is.

`files.open_file` gives what a folder's config.json and safetensors give: the object of a config.json, and
tensors under Hugging Face's names, which are dequantised as their rows are read. `files.tokenizer_folder_of`
gives a folder with the tokenizer's files.
"""
