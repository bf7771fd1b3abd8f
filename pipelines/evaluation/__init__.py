"""Evaluation: what encoders and published indexes find, measured as the papers measure it.

    judged_files                                 ranking
    queries, judgments, purchases                catalog ─► product_views ─► vectors ─► exact_search ┐
                  │                              published index version ─► its own search ──────────┴─► rankings
                  ▼                                                                                        │
       judged_queries ─► judgments ◄── annotation (labels for pairs that no file labels) ◄─────────────────┤
                  │                                                                                        ▼
    figures       └──────────────────► ranking_metrics, standard_measures ─► one value a query ─► bootstrap
                                                                                                      │
    report                                 terminal table, Markdown, CSV, plot ◄─ comparison ◄────────┘

`python -m pipelines.evaluate` is the command. Rankings, labels and values are arrays with one row a query.
"""
