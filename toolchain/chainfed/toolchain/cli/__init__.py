"""The toolchain's commands."""
