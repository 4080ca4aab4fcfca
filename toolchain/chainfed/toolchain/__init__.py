"""From a Hugging Face model to a bundle, and from a bundle to a tuned model."""
