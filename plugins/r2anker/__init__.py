"""R2anker: a ranker trained on the pooled negatives of several retrievers (arXiv:2206.08063).

Every stage of it is core: `mine` with several retrievers, the `mined` sampler over their lists (`mix: equal-share` or
`pool`), the loss `localized-contrastive` for the ranker and `kl` for a retriever that learns from it. The plugin holds
the distribution that this spans, in `pool.py`.
"""
