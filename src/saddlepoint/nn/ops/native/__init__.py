"""The operations in C++ for x86-64 processors, registered with PyTorch as ``torch.ops.saddlepoint``. Only ``nn/ops/api.py`` imports this package."""
