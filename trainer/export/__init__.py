"""A model as a file for other programs (ONNX, torch.export, timm), its check and its model card."""
