"""The code that travels with a merged model. It needs transformers and torch only, never ChainFed."""
