"""The forms in which a tuned model comes out: a Hugging Face folder, ONNX, one ExecuTorch program, adapters alone."""
