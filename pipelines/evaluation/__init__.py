"""Evaluation measures what encoders and published indexes find, as the papers measure it.

    judged_files                               systems
    queries, judgments, purchases              catalog ─► encoder_ranking (exact search) ┐
                  │                            published version, searched as it serves ─┴─► ranking
                  ├──────► annotation (labels for pairs that no file labels) ◄─────────────────┤
                  ▼                                                                            │
              measures (labels of results, one value a query) ◄────────────────────────────────┘
                  └─► comparison ─► report

`python -m pipelines.evaluate` is the command. Rankings, labels and values are arrays with one row a query.
"""
