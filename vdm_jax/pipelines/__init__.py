"""Released latent models as callables: a folder's networks, tokenizer and scheduler put together."""
