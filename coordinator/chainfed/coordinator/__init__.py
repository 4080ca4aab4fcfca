"""The federated service: runs, rounds, devices and checkpoints, over gRPC. It never imports torch."""
