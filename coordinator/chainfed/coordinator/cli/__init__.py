"""The commands `chainfed coordinator` and `chainfed run`."""
