"""From rankings and judgments to figures: metrics of each query, their means, intervals and differences."""
