"""Policies: Hugging Face causal language models with a tokenizer and a chat bridge."""
