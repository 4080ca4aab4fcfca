"""What every side of ChainFed shares: errors, the bundle's manifest, tensors, the data order, examples, the console."""
