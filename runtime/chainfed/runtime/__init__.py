"""Running a bundle's programs: ExecuTorch by tensor names, mapped weights, memory readings, token ids, predictions."""
