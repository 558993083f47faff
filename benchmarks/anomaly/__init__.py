"""How well the scores tell anomalies from normal images: docs/anomaly.md, from what is served."""
