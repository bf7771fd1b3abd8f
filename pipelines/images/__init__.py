"""Images of products: fetched, decoded, handed on in batches."""
