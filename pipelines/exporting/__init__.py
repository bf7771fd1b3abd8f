"""A published version goes into an engine that a shop has: files, PostgreSQL, Qdrant, OpenSearch, Milvus."""
