"""Emulated devices: ChainFed's device algorithm in Python, on the real ExecuTorch runtime, over the real protocol.

The algorithm, as every device of any language does it:

1. *Sync* (`transfer`): fetch by SHA-256 what is missing of the assignment's files and pieces of the model state.
2. *Examples* (`data`) are token ids in the order of the file, stored in batches of the programs' static size. A partial
   batch repeats its first row; repeated rows have weight zero. Real rows weigh 1 / (their number) in a training step
   and 1 in an evaluation.
3. *Prefix* (`chain`, `hidden`): all batches through one layer, then all through the next; hidden states lie in one file
   that is overwritten in place, those below the first trained layer in a file that is kept from round to round.
4. *Steps* (`training`): the examples of each step come from `chainfed.core.order.batches` with the assignment's seed.
   Optimiser state starts at zero in every assignment. Warm-up trains one head after the other, each with that order.
5. *Final stage* (a window that ends at the last layer): the final head takes the local head's place; the global loss
   and the final head's own learning rate are 0.
6. *Update* (`tasks`): after minus before, float32, of every tensor that the task trains.
7. *Profiling* (`profile`, `cka`): the examples are the first `max_examples` of a permutation drawn with the seed.
8. Every batch and step is journalled (`journal`); a device killed at any point ends with the same bytes.
"""
