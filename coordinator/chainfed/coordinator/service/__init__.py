"""The gRPC services: requests are checked here, and everything else happens behind the store, the files and
the runner."""
