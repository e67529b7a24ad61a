"""Export a model for other programs (ONNX, torch.export, timm), check the file, and write a model card."""
