"""From a Hugging Face model to a bundle, and from a bundle to a tuned model."""

import logging

# torchao, which transformers and ExecuTorch import, registers enumerations in a way that torch calls deprecated.
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
