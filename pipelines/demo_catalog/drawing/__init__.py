"""Draws products: outlines of every kind, patterns, and the finished picture."""

from pipelines.demo_catalog.drawing.picture import PICTURE_SIZE, draw_picture, encode_jpeg, encode_png

__all__ = ["PICTURE_SIZE", "draw_picture", "encode_jpeg", "encode_png"]
