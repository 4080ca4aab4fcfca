"""The toolchain's commands."""

import logging

# Importing torchao, which transformers and ExecuTorch do, warns of what only its authors can change.
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
