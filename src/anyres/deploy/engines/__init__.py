"""Inference engines for one model: eager PyTorch, inductor, onnxruntime, OpenVINO, one file each; backend.py first."""
