"""What runs a folded model: eager PyTorch, inductor, onnxruntime, OpenVINO."""
