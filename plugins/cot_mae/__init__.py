"""CoT-MAE: a span's vector helps to reconstruct its neighbour (arXiv:2208.07670). Functions; no component yet."""
