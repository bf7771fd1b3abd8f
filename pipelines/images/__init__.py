"""Images of products are fetched, decoded and handed on in batches."""
