"""Evaluation: what encoders and published indexes find, measured as the papers measure it.

    judged_files                                 systems
    queries, judgments, purchases                catalog ─► encoder_ranking (exact search) ┐
                  │                              published version ─► index_ranking ───────┴─► ranking
                  ▼                                                                              │
              judgments ◄── annotation (labels for pairs that no file labels) ◄──────────────────┤
                  │                                                                              ▼
                  └───────────────────────────────► measures (one value a query) ─► comparison ─► report

`python -m pipelines.evaluate` is the command. Rankings, labels and values are arrays with one row a query.
"""
