"""The reference server: published versions answer over HTTP, and a page shows what they answer."""
