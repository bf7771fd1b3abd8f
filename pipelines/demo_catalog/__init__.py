"""The demo catalog: products that Shelfmark draws itself, so that the nightly job has something to index anywhere.

A picture shows kind, colour, pattern and shape; the texts tell material, use and brand, and the rest only sometimes.
Queries come with judgments made from the attributes, so they measure what text, picture, and both together find.
"""

from pipelines.demo_catalog.write import (
    demo_folder,
    draw_named_catalog,
    is_demo_address,
    write_demo_catalog,
    write_training_pairs,
)

__all__ = ["demo_folder", "draw_named_catalog", "is_demo_address", "write_demo_catalog", "write_training_pairs"]
