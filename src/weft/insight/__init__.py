"""Knowledge about workloads from their past: forecasts, cycles, classes, anomalies. Pure: arrays in, findings out."""
