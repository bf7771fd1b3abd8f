"""What the user's files say: queries, the labels of products for them, and purchases."""
