"""What is shown of a comparison: tables in the terminal, Markdown, CSV and a plot."""
