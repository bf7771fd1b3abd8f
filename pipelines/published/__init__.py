"""Published versions as a person sees them: compared, and printed as tables."""
