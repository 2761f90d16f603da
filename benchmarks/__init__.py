"""qrt beside ONNX Runtime and OpenVINO: `python -m benchmarks` from the repository's root. docs/benchmarks.md says what each row is."""
