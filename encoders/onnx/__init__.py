"""Query encoders as ONNX graphs, for CPU servers without torch: made by `export`, served by `query`."""
