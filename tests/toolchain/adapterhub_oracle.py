"""Run by a Python that has AdapterHub's `adapters`: hidden states, and logits where there is a head, as JSON.

Arguments: base model folder, adapters folder. Standard input: {"input_ids": [...], "attention_mask": [...]}. Needs
nothing of ChainFed, so that the library's own code is what computes.
"""

import json
import sys
from pathlib import Path

import torch
from adapters import AutoAdapterModel

base, folder = sys.argv[1:]
has_head = (Path(folder) / "head_config.json").is_file()
model = AutoAdapterModel.from_pretrained(base).eval()
model.load_adapter(folder, use_safetensors=True, set_active=True, with_head=has_head)
batch = {name: torch.tensor(rows) for name, rows in json.load(sys.stdin).items()}
with torch.no_grad():
    hidden = model.base_model(**batch)[0]
    logits = model(**batch).logits.tolist() if has_head else None
sys.stdout.write(json.dumps({"hidden": hidden.tolist(), "logits": logits}) + "\n")
