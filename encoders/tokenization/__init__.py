"""Texts to token ids: of transformers and open_clip checkpoints, and the same without torch."""
