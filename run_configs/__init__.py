"""Configurations to copy: installed beside the code, so that `--config minilm` works anywhere."""
